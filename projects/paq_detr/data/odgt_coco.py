# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""CrowdHuman's odgt as the content of a COCO json, and back.

COCO form: images numbered from 1 in the order of the file, named ID.jpg, with the sizes that the odgt holds; one
category, person, id 1; ``bbox`` and ``area`` of the whole full-body box, ``bbox_vis`` the visible part, ``iscrowd`` 1
for masks and ignored persons. So far it is the form that other CrowdHuman code uses. What COCO has no word for stays
under further keys, ``bbox_head``, ``tag``, ``extra`` and ``head_attr``, and ``ID`` where it is not the file's bare
name, so that the way back gives the same records, with sizes.

Back from a json without these keys: iscrowd boxes become masks, there are no head boxes, and the ID is the file's name
without folder and ending. Keys that neither form knows are left out, and pictures that are not named ID.jpg will not be
found; notes count both.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from .json_file import value_of
from .json_values import Unfit, absent, as_flag, as_id, as_number, as_text, shown
from .odgt import image_name, read_odgt, size_of, tag_of

BOX_KEYS = {"bbox": "fbox", "bbox_vis": "vbox", "bbox_head": "hbox"}
KEPT_KEYS = ("tag", "extra", "head_attr")
ODGT_KEYS = {"ID", "height", "width", "gtboxes"}
ODGT_BOX_KEYS = {*BOX_KEYS.values(), *KEPT_KEYS}
COCO_IMAGE_KEYS = {"id", "file_name", "height", "width", "ID"}
COCO_BOX_KEYS = {"id", "image_id", "category_id", "area", "iscrowd", "ignore", *BOX_KEYS, *KEPT_KEYS}


def to_coco(odgt: str) -> tuple[dict, list[str]]:
    """The content of a COCO json, and notes on what it leaves out.

    Raises:
        ValueError: naming line and image, where the odgt is broken.
    """
    images, annotations, left_out = [], [], Counter()
    for number, (where, record) in enumerate(read_odgt(odgt), start=1):
        image = {"id": number, "file_name": f"{record['ID']}.jpg"}
        if _bare_name(image["file_name"]) != record["ID"]:
            image["ID"] = record["ID"]
        left_out.update(record.keys() - ODGT_KEYS)
        size = size_of(record, where)
        if size is not None:
            image.update(height=size[0], width=size[1])
        images.append(image)
        for place, box in enumerate(record["gtboxes"], start=1):
            annotation = _annotation(box, f"{where}, box {place}")
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
            left_out.update(box.keys() - ODGT_BOX_KEYS)
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    return coco, _left_out(left_out)


def _annotation(box: dict, where: str) -> dict:
    value_of(box, "fbox", where)
    boxes = {key: _numbers(box[kind], kind, where) for key, kind in BOX_KEYS.items() if kind in box}
    kept = {key: box[key] for key in KEPT_KEYS if key in box}
    ignored = int(tag_of(box, "fbox", where) != 1)
    return {"category_id": 1, **boxes, "area": boxes["bbox"][2] * boxes["bbox"][3], "iscrowd": ignored, **kept}


def _numbers(box: Any, key: str, where: str) -> list[float]:
    """The four numbers of a box, integers as they are."""
    try:
        if not isinstance(box, list) or len(box) != 4:
            raise Unfit(shown(box))
        return [value if type(value) is int else as_number(value) for value in box]
    except Unfit:
        raise ValueError(f"{where}: {key!r} is {shown(box)}, must be four finite numbers") from None


def _taken(convert: Callable[[Any], Any], entry: Any, key: str, where: str) -> Any:
    """The value of ``entry`` under ``key`` as what ``convert`` makes of it."""
    value = value_of(entry, key, where)
    try:
        return convert(value)
    except Unfit as error:
        raise ValueError(f"{where}: {key!r} is {error}") from None


def _entries(coco: Any, key: str, where: str) -> list[tuple[str, Any]]:
    """The list under ``key`` as ("WHERE, entry N of 'KEY'", entry)."""
    entries = value_of(coco, key, where)
    if not isinstance(entries, list):
        raise ValueError(f"{where}: {key!r} is {shown(entries)}, must be a list")
    return [(f"{where}, entry {place} of {key!r}", entry) for place, entry in enumerate(entries, start=1)]


def to_odgt(coco: dict, where: str) -> tuple[list[dict], list[str]]:
    """The records of an odgt file, one for each image in the order of the COCO json, images without boxes included;
    and notes on what they leave out.

    Args:
        coco: content of the json.
        where: its name, for messages.

    Raises:
        ValueError: naming the entry that is broken.
    """
    categories = _entries(coco, "categories", where)
    if len(categories) != 1:
        raise ValueError(f"{where}: CrowdHuman has one category, person; there are {len(categories)} here")
    records, names, misnamed, left_out = {}, set(), [], Counter()
    for here, image in _entries(coco, "images", where):
        file_name = _taken(as_text, image, "file_name", here)
        name = image_name(image, "ID", here) if "ID" in image else _bare_name(file_name)
        key, size = _taken(as_id, image, "id", here), size_of(image, here)
        size = {} if size is None else {"height": size[0], "width": size[1]}
        if key in records or name in names:
            raise ValueError(f"{where}: two images have the id {key} or the name {name!r}")
        records[key] = {"ID": name, **size, "gtboxes": []}
        names.add(name)
        left_out.update(image.keys() - COCO_IMAGE_KEYS)
        if file_name != f"{name}.jpg":
            misnamed.append((file_name, name))
    for here, annotation in _entries(coco, "annotations", where):
        image = _taken(as_id, annotation, "image_id", here)
        if image not in records:
            raise ValueError(f"{here} is of image {image!r}, which is not in 'images'")
        records[image]["gtboxes"].append(_box(annotation, here))
        left_out.update(annotation.keys() - COCO_BOX_KEYS)
    notes = _left_out(left_out)
    if misnamed:
        first, name = misnamed[0]
        notes.insert(0, f"{len(misnamed)} of {len(records)} pictures are not named ID.jpg, where an odgt's pictures "
                        f"are looked for; the first is {first!r} with the ID {name!r}")  # fmt: skip
    return list(records.values()), notes


def _box(annotation: dict, where: str) -> dict:
    value_of(annotation, "bbox", where)
    boxes = {kind: _numbers(annotation[k], k, where) for k, kind in BOX_KEYS.items() if k in annotation}
    kept = {key: annotation[key] for key in KEPT_KEYS if not absent(annotation.get(key))}
    if "tag" not in kept:  # not written by this tool
        flags = [_taken(as_flag, annotation, key, where) for key in ("iscrowd", "ignore") if key in annotation]
        ignored = int(any(flags))
        kept = {"tag": "mask" if ignored else "person", "extra": {"ignore": ignored}}
    return {**boxes, **kept}


def _bare_name(file_name: str) -> str:
    return os.path.splitext(os.path.basename(file_name))[0]


def _left_out(keys: Counter) -> list[str]:
    found = ", ".join(f"{key!r} ({count} times)" for key, count in keys.most_common())
    return [f"these keys are not converted: {found}"] if keys else []
