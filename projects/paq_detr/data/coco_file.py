# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The one reader of COCO detection json: every value checked and converted once, for training and for evaluation.

Format: https://cocodataset.org/#format-data. What is unambiguous is taken (``json_values``), ``images``,
``annotations`` and ``categories`` also as objects by id; everything else is one sentence with file, id, key and value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from .json_columns import plain_boxes, plain_numbers
from .json_file import open_file, parse_json
from .json_values import Unfit, absent, as_flag, as_id, as_number, as_size, as_text, shown
from .segmentation import Segmentation, as_segmentation, check_mask_size, no_segmentation


@dataclass(slots=True)
class CocoImage:
    id: int | str  # as the file writes it
    file_name: str
    width: int | None  # None: the file does not say
    height: int | None


@dataclass(slots=True)
class CocoAnnotation:
    id: int | str  # its place, counted from 1, where the file gives none
    image_id: int | str  # as the image's entry writes it
    category_id: int
    bbox: list[float]  # x, y, width, height in pixels; sizes are not negative
    area: float | None  # None: the file does not say
    iscrowd: int  # 1: an ignore region, by ``iscrowd`` or by ``ignore``
    ignore: int  # 1: by ``ignore``
    segmentation: Segmentation | None = None  # None: not asked for, or an ignore region that has none


@dataclass(slots=True)
class CocoFile:
    """What a COCO json holds."""

    path: str
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: dict[int, str]  # names by id, in the order of the ids
    annotated: bool  # False: there is no ``annotations`` at all, as in COCO's image_info files of test sets


#: Which segmentations are read: False, none; True, those of all objects, which must have sound ones; SOME, those that
#: there are.
Masks = bool | Literal["some"]
SOME: Masks = "some"


def read_coco(path: str, masks: Masks = False) -> CocoFile:
    """Read and check a COCO json, with ``masks`` also segmentations.

    Raises:
        ValueError: one sentence with the file, the entry's id, the key and the value.
    """
    with open_file(path) as file:
        return check_coco(parse_json(file.read(), path), path, masks)


def check_coco(content: Any, path: str, masks: Masks = False) -> CocoFile:
    """Check what a COCO json holds; ``path`` is what messages call it.

    Raises:
        ValueError: as ``read_coco``.
    """
    return _Reader(path).read(content, masks)


class _Reader:
    def __init__(self, path: str) -> None:
        self.path = path

    def read(self, content: Any, masks: Masks) -> CocoFile:
        if not isinstance(content, dict):
            raise self._error(f"the top level must be an object, it is a {type(content).__name__}")
        annotated = "annotations" in content
        categories = self._categories(self._entries(content, "categories"))
        images = self._images(self._entries(content, "images"))
        entries = self._entries(content, "annotations") if annotated else []
        annotations = _plain_annotations(entries, images, categories)
        if annotations is None:
            annotations = self._annotations(entries, images, categories)
        if masks:
            self._add_segmentations(annotations, entries, images, must=masks is True)
        return CocoFile(self.path, list(images.values()), annotations, categories, annotated)

    def _entries(self, content: dict, key: str) -> list[dict]:
        """The list under ``key``; an object of entries by id becomes one."""
        entries = content.get(key)
        if entries is None:
            raise self._error(f"the list {key!r} is missing")
        if isinstance(entries, dict):
            entries = [_with_id(name, entry, key) for name, entry in entries.items()]
        if not isinstance(entries, list):
            raise self._error(f"{key!r} is {shown(entries)}, must be a list")
        for place, entry in enumerate(entries, start=1):
            if not isinstance(entry, dict):
                raise self._error(f"entry {place} of {key!r} is {shown(entry)}, must be an object")
        return entries

    def _categories(self, entries: list[dict]) -> dict[int, str]:
        names: dict[int, str] = {}
        for place, entry in enumerate(entries, start=1):
            category = self._take(as_id, entry, "id", f"category entry {place}")
            if not isinstance(category, int):
                raise self._error(f"the category id {category!r} is no integer")
            if category in names:
                raise self._error(f"two entries have the category id {category}")
            name = self._take(as_text, entry, "name", f"category {category}")
            if name in names.values():
                raise self._error(f"two categories are named {name!r}; names must tell classes apart")
            names[category] = name
        if not names:
            raise self._error("the list 'categories' is empty")
        return dict(sorted(names.items()))

    def _images(self, entries: list[dict]) -> dict[int | str, CocoImage]:
        """Images by the id that annotations are compared with."""
        images: dict[int | str, CocoImage] = {}
        for place, entry in enumerate(entries, start=1):
            key = self._take(as_id, entry, "id", f"image entry {place}")
            if key in images:
                raise self._error(f"two entries have the image id {key}")
            where = f"image {key}"
            width, height = (
                None if absent(entry.get(side)) else self._take(as_size, entry, side, where)
                for side in ("width", "height")
            )
            images[key] = CocoImage(entry["id"], self._file_name(entry, where), width, height)
        return images

    def _file_name(self, entry: dict, where: str) -> str:
        """``file_name``; LVIS has none, but ``coco_url``, whose last two parts are the picture's folder and file."""
        url = entry.get("coco_url")
        if absent(entry.get("file_name")) and isinstance(url, str) and url.count("/") > 3:
            return "/".join(url.split("/")[-2:])
        name = self._needed(entry, "file_name", where)
        if not isinstance(name, str) or absent(name):
            raise self._error(f"the file_name of {where} is {shown(name)}, must be a text")
        return name

    def _annotations(self, entries: list[dict], images: dict, categories: dict) -> list[CocoAnnotation]:
        found, ids = [], set()
        for place, entry in enumerate(entries, start=1):
            key = place
            if not absent(entry.get("id")):
                key = self._take(as_id, entry, "id", f"annotation entry {place}")
                if key in ids:
                    raise self._error(f"two entries have the annotation id {key}")
                ids.add(key)
            where = f"annotation {key}"
            image = self._take(as_id, entry, "image_id", where)
            if image not in images:
                raise self._error(f"{where} is of image {entry['image_id']!r}, which is not in 'images'")
            category = self._take(as_id, entry, "category_id", where)
            if category not in categories:
                raise self._error(f"{where} is of category {entry['category_id']!r}, which is not in 'categories'")
            ignore = self._flag(entry, "ignore", where)
            found.append(
                CocoAnnotation(
                    id=key,
                    image_id=images[image].id,
                    category_id=category,
                    bbox=self._box(entry, where),
                    area=self._area(entry, where),
                    iscrowd=self._flag(entry, "iscrowd", where) or ignore,
                    ignore=ignore,
                )
            )
        self._refuse_negative_sizes(found)
        return found

    def _box(self, entry: dict, where: str) -> list[float]:
        box = self._needed(entry, "bbox", where)
        if not isinstance(box, list) or len(box) != 4:
            raise self._error(f"the bbox of {where} is not four numbers: {shown(box)}")
        try:
            return [as_number(value) for value in box]
        except Unfit as error:
            kind = "finite" if "finite" in str(error) else "four numbers"
            raise self._error(f"the bbox of {where} is not {kind}: {shown(box)}") from None

    def _area(self, entry: dict, where: str) -> float | None:
        if absent(entry.get("area")):
            return None
        area = self._take(as_number, entry, "area", where)
        if area < 0:
            raise self._error(f"the area of {where} is {shown(entry['area'])}, must not be negative")
        return area

    def _flag(self, entry: dict, key: str, where: str) -> int:
        return self._take(as_flag, entry, key, where) if key in entry else 0

    def _refuse_negative_sizes(self, annotations: list[CocoAnnotation]) -> None:
        negative = [annotation for annotation in annotations if annotation.bbox[2] < 0 or annotation.bbox[3] < 0]
        if negative:
            raise self._error(
                f"the bbox of annotation {negative[0].id} has a negative size: {negative[0].bbox}, as have "
                f"{len(negative)} of {len(annotations)}; a bbox is [x, y, width, height], x and y of the upper left "
                "corner"
            )

    def _add_segmentations(
        self, annotations: list[CocoAnnotation], entries: list[dict], images: dict, must: bool
    ) -> None:
        """An ignore region may have none, and if no object ``must`` have one, so may others."""
        without = []
        for annotation, entry in zip(annotations, entries):
            value, where = entry.get("segmentation"), f"annotation {annotation.id}"
            if no_segmentation(value):
                if not annotation.iscrowd:
                    without.append(where)
                continue
            image = images[as_id(annotation.image_id)]
            try:
                annotation.segmentation = as_segmentation(value)
                if image.height and image.width:
                    check_mask_size(annotation.segmentation, image.height, image.width)
            except Unfit as error:
                annotation.segmentation = None
                if must:
                    raise self._error(f"the segmentation of {where} is {error}") from None
        if without and must:
            raise self._error(
                f"{without[0]} has no segmentation, as have {len(without)} of {len(annotations)}, and "
                "MODEL.DETR.MASK.ENABLED needs one of every object"
            )

    def _take(self, convert: Callable[[Any], Any], entry: dict, key: str, where: str) -> Any:
        try:
            return convert(self._needed(entry, key, where))
        except Unfit as error:
            raise self._error(f"the {key} of {where} is {error}") from None

    def _needed(self, entry: dict, key: str, where: str) -> Any:
        if key not in entry:
            raise self._error(f"{where} has no {key!r}: {shown(entry)}")
        return entry[key]

    def _error(self, message: str) -> ValueError:
        return ValueError(f"{self.path}: {message}")


def _plain_annotations(entries: list[dict], images: dict, categories: dict) -> list[CocoAnnotation] | None:
    """The annotations of a file whose values are all of the very types that COCO's are, looked at column by column;
    None where one is not, or is wrong, which the reader then says."""
    try:
        ids, of_images, of_categories = ([entry[key] for entry in entries] for key in ("id", "image_id", "category_id"))
        boxes, areas = (plain([entry[key] for entry in entries]) for plain, key in _COLUMNS)
    except KeyError:
        return None
    crowds, ignores = ([entry.get(key, 0) for entry in entries] for key in ("iscrowd", "ignore"))
    whole = set().union(*(map(type, values) for values in (ids, of_images, of_categories, crowds, ignores))) <= {int}
    if boxes is None or areas is None or not whole or not {*crowds, *ignores} <= {0, 1}:
        return None
    known = images.keys() >= set(of_images) and categories.keys() >= set(of_categories)
    if not known or len(set(ids)) < len(ids) or (boxes[:, 2:] < 0).any() or (areas < 0).any():
        return None
    of_images = [images[key].id for key in of_images]
    flags = [crowd or ignore for crowd, ignore in zip(crowds, ignores)]
    columns = ids, of_images, of_categories, boxes.tolist(), areas.tolist(), flags, ignores
    return list(map(CocoAnnotation, *columns))


_COLUMNS = ((plain_boxes, "bbox"), (plain_numbers, "area"))


def _with_id(name: str, entry: Any, key: str) -> Any:
    """An entry of an object by id as it stands in a list; a category's may be its mere name."""
    number = name if absent(name) else as_id(name)  # json knows only texts there
    if key == "categories" and not isinstance(entry, dict):
        return {"id": number, "name": entry}
    return {"id": number, **entry} if isinstance(entry, dict) else entry
