# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Any dataset in COCO's detection format, with its classes and their contiguous ids taken from the json.

Format: https://cocodataset.org/#format-data. What a file gets wrong is said with its name and the entry's id.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Hashable
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from .image_file import image_size
from .json_file import open_file, parse_json

logger = logging.getLogger(__name__)

_EXAMPLES = 3  # dropped boxes that the warning names


def register_coco_json(name: str, json_file: str, image_root: str) -> None:
    """Register a COCO-format dataset with Detectron2's catalogs.

    Classes are the json's ``categories`` sorted by id, whatever the gaps between the ids; the map from ids to
    0 .. K-1 is logged. Boxes without area or outside their image are dropped with one warning. The metadata gets
    ``thing_classes``, ``thing_dataset_id_to_contiguous_id``, ``json_file``, ``image_root`` and ``evaluator_type``.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        json_file: COCO annotations with ``images``, ``annotations`` and ``categories``.
        image_root: folder that the images' ``file_name`` start at.

    Raises:
        FileNotFoundError: the json or the folder is missing.
        ValueError: the json breaks the format, or the name already stands for another dataset. Registering the same
            dataset again does nothing.
    """
    if name in DatasetCatalog:
        _check_same(name, DatasetCatalog[name], json_file, image_root)
        return
    dataset = CocoJsonDataset(name, json_file, image_root)
    DatasetCatalog.register(name, dataset)
    MetadataCatalog.get(name).set(
        thing_classes=dataset.class_names,
        thing_dataset_id_to_contiguous_id=dataset.contiguous_ids,
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
    )


class CocoJsonDataset:
    """A COCO json, read and checked once; calling it gives Detectron2's dataset dicts.

    The first call hands the dicts over and keeps nothing, later ones read the json again: a loader keeps a compact
    copy of its own, and two copies of a large dataset would fill the memory.
    """

    def __init__(self, name: str, json_file: str, image_root: str) -> None:
        if not os.path.isfile(json_file):
            raise FileNotFoundError(f"dataset {name!r}: the annotation file {json_file} does not exist")
        if not os.path.isdir(image_root):
            raise FileNotFoundError(f"dataset {name!r}: the image folder {image_root} does not exist")
        self.json_file, self.image_root = json_file, image_root
        content = self._read()
        names = self._categories(content)
        self.class_names = list(names.values())
        self.contiguous_ids = {category: index for index, category in enumerate(names)}
        self._dicts, dropped = self._build(content)
        self.objects_per_image = np.array([_count_objects(d) for d in self._dicts], dtype=np.int64)
        self._report(name, names, dropped)

    def __call__(self) -> list[dict]:
        dicts, self._dicts = self._dicts, None
        return self._build(self._read())[0] if dicts is None else dicts

    def _read(self) -> dict:
        with open_file(self.json_file) as file:
            content = parse_json(file.read(), self.json_file)
        if not isinstance(content, dict):
            raise self._error(f"the top level must be an object, it is a {type(content).__name__}")
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                raise self._error(f"the list {key!r} is missing")
        return content

    def _categories(self, content: dict) -> dict[int, str]:
        """Class names by the json's own ids, in the order of the ids."""
        by_id = self._by_id(content["categories"], "category")
        for category in by_id:
            if not isinstance(category, int):
                raise self._error(f"the category id {category!r} is no integer")
        names: dict[int, str] = {}
        for category in sorted(by_id):
            name = self._value(by_id[category], "name", "category")
            if name in names.values():
                raise self._error(f"two categories are named {name!r}; names must tell classes apart")
            names[category] = name
        if not names:
            raise self._error("the list 'categories' is empty")
        return names

    def _build(self, content: dict) -> tuple[list[dict], list[str]]:
        """The dataset dicts, and a description of each box that was dropped."""
        records = {key: self._image(entry) for key, entry in self._by_id(content["images"], "image").items()}
        dropped = []
        for key, annotation in self._by_id(content["annotations"], "annotation").items():
            image, category = (self._value(annotation, k, "annotation") for k in ("image_id", "category_id"))
            if image not in records:
                raise self._error(f"annotation {key} is of image {image!r}, which is not in 'images'")
            if category not in self.contiguous_ids:
                raise self._error(f"annotation {key} is of category {category!r}, which is not in 'categories'")
            box, record = self._box(annotation), records[image]
            fault = _fault(box, record)
            if fault:
                dropped.append(f"annotation {key} of {os.path.basename(record['file_name'])}, {box}, {fault}")
                continue
            record["annotations"].append(
                {
                    "bbox": box,
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": self.contiguous_ids[category],
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                }
            )
        return list(records.values()), dropped

    def _image(self, entry: dict) -> dict:
        """The dataset dict of an image, without annotations yet."""
        file_name = os.path.join(self.image_root, self._value(entry, "file_name", "image"))
        width, height = entry.get("width"), entry.get("height")
        if width is None or height is None:
            try:
                width, height = image_size(file_name)
            except OSError as error:
                text = f"no width and height of {file_name}, and the file cannot be read: {error}"
                raise self._error(text) from error
        if not all(isinstance(side, int) and side > 0 for side in (width, height)):
            text = f"image {entry['id']} has the width {width!r} and the height {height!r}"
            raise self._error(f"{text}, which must be positive integers")
        return {"file_name": file_name, "image_id": entry["id"], "height": height, "width": width, "annotations": []}

    def _box(self, annotation: dict) -> list[float]:
        box = self._value(annotation, "bbox", "annotation")
        try:
            x, y, width, height = (float(value) for value in box)
        except (TypeError, ValueError):
            raise self._error(f"the bbox of annotation {annotation['id']} is not four numbers: {box!r}") from None
        if not all(map(math.isfinite, (x, y, width, height))):
            raise self._error(f"the bbox of annotation {annotation['id']} is not finite: {box}")
        if width < 0 or height < 0:
            raise self._error(f"the bbox of annotation {annotation['id']} has a negative size: {box}")
        return [x, y, width, height]

    def _by_id(self, entries: list, kind: str) -> dict[Hashable, dict]:
        by_id: dict[Hashable, dict] = {}
        for entry in entries:
            key = self._value(entry, "id", kind)
            if key in by_id:
                raise self._error(f"two entries have the {kind} id {key}")
            by_id[key] = entry
        return by_id

    def _value(self, entry: Any, key: str, kind: str) -> Any:
        if not isinstance(entry, dict) or key not in entry:
            raise self._error(f"{kind} entry without {key!r}: {str(entry)[:200]}")
        return entry[key]

    def _error(self, message: str) -> ValueError:
        return ValueError(f"{self.json_file}: {message}")

    def _report(self, name: str, names: dict[int, str], dropped: list[str]) -> None:
        boxes = np.zeros(len(names), dtype=np.int64)
        for record in self._dicts:
            for annotation in record["annotations"]:
                boxes[annotation["category_id"]] += not annotation["iscrowd"]
        rows = [f"{text} {key} -> {i} ({boxes[i]})" for i, (key, text) in enumerate(names.items())]
        logger.info(
            "dataset %r: %d images, %d boxes; class, id in %s -> here (boxes): %s",
            name, len(self._dicts), boxes.sum(), self.json_file, ", ".join(rows),
        )  # fmt: skip
        if dropped:
            examples = "; ".join(dropped[:_EXAMPLES]) + (" ..." if len(dropped) > _EXAMPLES else "")
            logger.warning("%s: dropped %d of %d boxes: %s", self.json_file, len(dropped),
                           len(dropped) + sum(len(r["annotations"]) for r in self._dicts), examples)  # fmt: skip


def _fault(box: list[float], record: dict) -> str:
    """Why a box can be no target; empty if it can."""
    x, y, width, height = box
    if width == 0 or height == 0:
        return "has no area"
    if x >= record["width"] or y >= record["height"] or x + width <= 0 or y + height <= 0:
        return f"lies outside the image of {record['width']} x {record['height']}"
    return ""


def _count_objects(record: dict) -> int:
    return sum(not annotation["iscrowd"] for annotation in record["annotations"])


def _check_same(name: str, registered: Any, json_file: str, image_root: str) -> None:
    asked = f"{os.path.abspath(json_file)} with images in {os.path.abspath(image_root)}"
    have = "a dataset of other code"
    if isinstance(registered, CocoJsonDataset):
        have = f"{os.path.abspath(registered.json_file)} with images in {os.path.abspath(registered.image_root)}"
    if have != asked:
        raise ValueError(f"dataset {name!r} is already registered as {have}; it cannot become {asked}")
