# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Any dataset in COCO's detection format, with its classes and their contiguous ids taken from the json.

``coco_file`` reads and checks the json; here it becomes a registered dataset.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from .coco_file import SOME, CocoFile, CocoImage, Masks, check_coco
from .formats.coco import CocoSource
from .formats.source import Content, Source
from .image_file import image_size
from .json_values import Unfit
from .pictures import hint_at, local_name
from .plausible import doubt_about_areas, doubt_about_boxes
from .segmentation import check_mask_size

logger = logging.getLogger(__name__)

_EXAMPLES = 3  # dropped boxes that the warning names


def register_coco_json(name: str, json_file: str, image_root: str, masks: Masks = False) -> None:
    """Register a COCO-format dataset with Detectron2's catalogs.

    Classes are the json's ``categories`` sorted by id, whatever the gaps between the ids; the map from ids to
    0 .. K-1 is logged. Boxes without area or outside their image are dropped with one warning; others count boxes that
    are hardly [x, y, width, height] in pixels, and areas that are hardly theirs. Annotations with ``iscrowd`` or
    ``ignore`` 1 are ignore regions.
    The metadata gets ``thing_classes``, ``thing_dataset_id_to_contiguous_id``, ``json_file``, ``image_root``,
    ``annotated`` (False: the json has no ``annotations``; fit for a test set alone) and ``evaluator_type``.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        json_file: COCO annotations with ``images``, ``annotations`` and ``categories``.
        image_root: folder that the images' ``file_name`` start at.
        masks: the dicts hold segmentations too: True, of every object, which must have one; ``SOME``, of some.

    Raises:
        FileNotFoundError: the json or the folder is missing.
        ValueError: the json breaks the format, or the name already stands for another dataset. Registering the same
            dataset again does nothing.
    """
    if not os.path.isfile(json_file):
        raise FileNotFoundError(f"dataset {name!r}: the annotation file {json_file} does not exist")
    register_coco(name, CocoSource(json_file, images=image_root or "."), masks)


def register_coco(name: str, source: Source, masks: Masks = False) -> None:
    """Register a source of any format as ``register_coco_json`` does a json; the metadata's ``json_file`` is there for
    a json alone.

    Raises:
        FileNotFoundError, ValueError: as ``register_coco_json``.
    """
    if name in DatasetCatalog:
        _check_same(name, DatasetCatalog[name], source)
        if DatasetCatalog[name].masks in (True, masks) or not masks:
            return
        DatasetCatalog.remove(name)  # to read its segmentations, too
        MetadataCatalog.remove(name)
    dataset = CocoDataset(name, source, masks)
    DatasetCatalog.register(name, dataset)
    _set_metadata(name, dataset)


def reorder_classes(name: str, classes: Sequence[str]) -> None:
    """Give the classes of a registered dataset the order of ``classes``, which it ``can_have``.

    ``thing_dataset_id_to_contiguous_id`` keeps the file's own ids, so that results are written with these.
    """
    dataset = DatasetCatalog[name]
    logger.info("dataset %r numbers its classes otherwise: they are matched by name", name)
    dataset.reorder_classes(classes)
    MetadataCatalog.remove(name)  # metadata that is set once cannot be changed
    _set_metadata(name, dataset)


class CocoDataset:
    """A source, read and checked once; calling it gives Detectron2's dataset dicts.

    The first call hands the dicts over and keeps nothing, later ones read the files again: a loader keeps a compact
    copy of its own, and two copies of a large dataset would fill the memory.
    """

    def __init__(self, name: str, source: Source, masks: Masks = False) -> None:
        if not os.path.isdir(source.image_root):
            raise FileNotFoundError(f"dataset {name!r}: the image folder {source.image_root} does not exist")
        self.name, self.source, self.masks = name, source, masks
        source_content, content = self._read()
        self.annotated = content.annotated
        self.class_names = list(content.categories.values())
        self.contiguous_ids = {category: index for index, category in enumerate(content.categories)}
        self._dicts, dropped = self._build(content)
        self.file_names = [record["file_name"] for record in self._dicts]
        self.sizes = [(record["width"], record["height"]) for record in self._dicts]
        self.objects_per_image = np.array([_count_objects(d) for d in self._dicts], dtype=np.int64)
        self._report(source_content, content, dropped)

    def __call__(self) -> list[dict]:
        dicts, self._dicts = self._dicts, None
        return self._build(self._read()[1])[0] if dicts is None else dicts

    def _read(self) -> tuple[Content, CocoFile]:
        content = self.source.content()
        return content, check_coco(content.coco, self.source.path, self.masks)

    def can_have(self, classes: Sequence[str]) -> bool:
        """Whether ``classes`` are this dataset's in any order, or could be as its format lists none."""
        extra = set(classes) - set(self.class_names)
        return set(self.class_names) <= set(classes) and (not extra or self.source.open_classes)

    def reorder_classes(self, classes: Sequence[str]) -> None:
        before, ids = self.contiguous_ids, dict(zip(self.class_names, self.contiguous_ids))
        free = (number for number in itertools.count(1) if number not in before)  # ids of classes without objects
        self.class_names = list(classes)
        self.contiguous_ids = {ids[name] if name in ids else next(free): i for i, name in enumerate(classes)}
        moved = {before[category]: self.contiguous_ids[category] for category in before}
        for record in self._dicts or ():
            for annotation in record["annotations"]:
                annotation["category_id"] = moved[annotation["category_id"]]

    def _build(self, content: CocoFile) -> tuple[list[dict], list[str]]:
        """The dataset dicts, and a description of each box that was dropped."""
        records = {image.id: self._record(image) for image in content.images}
        dropped = []
        for annotation in content.annotations:
            record = records[annotation.image_id]
            fault = _fault(annotation.bbox, record)
            if fault:
                file_name = os.path.basename(record["file_name"])
                dropped.append(f"annotation {annotation.id} of {file_name}, {annotation.bbox}, {fault}")
                continue
            record["annotations"].append(
                {
                    "bbox": annotation.bbox,
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": self.contiguous_ids[annotation.category_id],
                    "iscrowd": annotation.iscrowd,
                }
            )
            if annotation.segmentation is not None:
                try:
                    check_mask_size(annotation.segmentation, record["height"], record["width"])
                except Unfit as error:
                    if self.masks == SOME:
                        continue
                    text = f"the segmentation of annotation {annotation.id} is {error}"
                    raise ValueError(f"{self.source.path}: {text}") from None
                record["annotations"][-1]["segmentation"] = annotation.segmentation
        return list(records.values()), dropped

    def _record(self, image: CocoImage) -> dict:
        """The dataset dict of an image, without annotations yet."""
        file_name = local_name(self.source.image_root, image.file_name)
        width, height = image.width, image.height
        if width is None or height is None:
            try:
                width, height = image_size(file_name)
            except ValueError as error:
                hint = "" if os.path.exists(file_name) else hint_at(file_name, self.source.image_root)
                text = f"image {image.id} has no width and height, and {error}{hint}"
                raise ValueError(f"{self.source.path}: {text}") from error
        return {"file_name": file_name, "image_id": image.id, "height": height, "width": width, "annotations": []}

    def _report(self, read: Content, content: CocoFile, dropped: list[str]) -> None:
        boxes = np.zeros(len(self.class_names), dtype=np.int64)
        for record in self._dicts:
            for annotation in record["annotations"]:
                boxes[annotation["category_id"]] += not annotation["iscrowd"]
        rows = [f"{text} {key} -> {i} ({boxes[i]})" for i, (key, text) in enumerate(content.categories.items())]
        logger.info(
            "dataset %r: %d images, %d boxes; class, id in %s -> here (boxes): %s",
            self.name, len(self._dicts), boxes.sum(), self.source.path, ", ".join(rows),
        )  # fmt: skip
        where = f"dataset {self.name!r} ({self.source.path})"
        for note in read.notes:
            logger.info("%s: %s", where, note)
        ignored = sum(annotation.ignore for annotation in content.annotations)
        if ignored:
            logger.warning("%s: %d of %d annotations have 'ignore' 1: they are ignore regions, as those with 'iscrowd' "
                           "1", where, ignored, len(content.annotations))  # fmt: skip
        examples = "; ".join(dropped[:_EXAMPLES]) + (" ..." if len(dropped) > _EXAMPLES else "")
        doubts = (
            f"dropped {len(dropped)} of {len(content.annotations)} boxes: {examples}" if dropped else "",
            *read.doubts,
            doubt_about_boxes(*self._boxes_and_sizes()),
            _doubt_about_areas(content),
        )
        self.notes, self.doubts = list(read.notes), [doubt for doubt in doubts if doubt]
        for doubt in self.doubts:
            logger.warning("%s: %s", where, doubt)

    def _boxes_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, 4) XYWH and (N, 2) width and height of the image, of all boxes that were not dropped."""
        boxes = [annotation["bbox"] for record in self._dicts for annotation in record["annotations"]]
        counts = [len(record["annotations"]) for record in self._dicts]
        sizes = np.array([(record["width"], record["height"]) for record in self._dicts], dtype=np.float64)
        return np.array(boxes, dtype=np.float64).reshape(-1, 4), sizes.reshape(-1, 2).repeat(counts, 0)


def _doubt_about_areas(content: CocoFile) -> str:
    given = [annotation for annotation in content.annotations if annotation.area is not None]
    boxes = np.array([annotation.bbox for annotation in given], dtype=np.float64).reshape(-1, 4)
    return doubt_about_areas(np.array([annotation.area for annotation in given], dtype=np.float64), boxes)


def _set_metadata(name: str, dataset: CocoDataset) -> None:
    MetadataCatalog.get(name).set(
        thing_classes=dataset.class_names,
        thing_dataset_id_to_contiguous_id=dataset.contiguous_ids,
        **{"json_file" if isinstance(dataset.source, CocoSource) else "source": dataset.source.path},
        image_root=dataset.source.image_root,
        annotated=dataset.annotated,
        evaluator_type="coco",
    )


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


def _check_same(name: str, registered: Any, source: Source) -> None:
    asked = _in_words(source)
    have = _in_words(registered.source) if isinstance(registered, CocoDataset) else "a dataset of other code"
    if have != asked:
        raise ValueError(f"dataset {name!r} is already registered as {have}; it cannot become {asked}")


def _in_words(source: Source) -> str:
    split = f", split {source.split}," if source.split else ""
    return f"{os.path.abspath(source.path)}{split} with images in {os.path.abspath(source.image_root)}"
