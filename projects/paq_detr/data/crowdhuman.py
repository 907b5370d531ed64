# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""CrowdHuman from its own files: annotation_train.odgt or annotation_val.odgt, and a folder of ID.jpg.

The format, and which boxes are ignore regions, is ``odgt``'s.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from .json_columns import boxes_xyxy_of
from .odgt import BOX_KINDS, box_kind, read_odgt, size_of, sizes_of_pictures, tag_of
from .plausible import doubt_about_boxes

logger = logging.getLogger(__name__)

_EXAMPLES = 3  # boxes that the warning names


def register_crowdhuman(name: str, odgt: str, image_root: str, box: str) -> None:
    """Register CrowdHuman, or data of its format, with Detectron2's catalogs.

    The file is read when the dataset is first asked for, and so are the headers of the pictures whose size it lacks;
    ``register_datasets`` asks for the datasets of ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
    The metadata gets ``thing_classes``, ``thing_dataset_id_to_contiguous_id`` (1, as in CrowdHuman's COCO form),
    ``odgt_file``, ``image_root``, ``box`` and ``evaluator_type``.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        odgt: the annotation file.
        image_root: folder of the pictures, ``ID.jpg``.
        box: which boxes are the targets, "full", "visible" or "head" (or the file's own "fbox", "vbox" or "hbox").

    Raises:
        FileNotFoundError: the file or the folder is missing.
        ValueError: there are no such boxes, or the name already stands for another dataset. Registering the same
            dataset again does nothing.
    """
    dataset = CrowdHumanDataset(name, odgt, image_root, box)
    if name in DatasetCatalog:
        _check_same(name, DatasetCatalog[name], dataset)
        return
    DatasetCatalog.register(name, dataset)
    MetadataCatalog.get(name).set(
        thing_classes=["person"],
        thing_dataset_id_to_contiguous_id={1: 0},
        odgt_file=odgt,
        image_root=image_root,
        box=dataset.box,
        evaluator_type="crowdhuman",
    )


@dataclass
class _Image:
    where: str  # file, line and ID, for messages
    key: Hashable
    size: tuple[float, float] | None  # (height, width)
    boxes_xyxy: np.ndarray  # (G, 4) of the chosen kind, not clipped
    full_xyxy: np.ndarray | None  # (G, 4) of full bodies, where all boxes have them
    visible_xyxy: np.ndarray | None  # (G, 4) of what is seen, likewise
    tags: np.ndarray  # (G,)
    odd_tags: set[str]  # neither a person's nor a mask's


class CrowdHumanDataset:
    """An odgt file, read and checked once; calling it gives Detectron2's dataset dicts in the file's order.

    ``image_id`` is the ID. Ignore regions are persons with ``iscrowd`` 1. Besides Detectron2's keys, an annotation has
    the whole target box, which may reach outside the image, as ``full_bbox``, ``visible_bbox`` or ``head_bbox`` (XYWH),
    and ``full_bbox`` and ``visible_bbox`` in any case where the line has them; a record's ``amodal`` says whether the
    target stays whole where something covers the person. A box without any area inside the image stays, for evaluation;
    the mapper leaves it out in training. One warning counts these boxes.

    Raises (where the file is first read):
        ValueError: a line is broken, a picture is missing or unreadable, or a box is not of the chosen kind.
    """

    masks = False  # it has none
    class_names = ("person",)

    def __init__(self, name: str, odgt: str, image_root: str, box: str) -> None:
        self.kind = box_kind(box, f"dataset {name!r}")
        if not os.path.isfile(odgt):
            raise FileNotFoundError(f"dataset {name!r}: the annotation file {odgt} does not exist")
        if not os.path.isdir(image_root):
            raise FileNotFoundError(f"dataset {name!r}: the image folder {image_root} does not exist")
        self.name, self.odgt, self.image_root = name, odgt, image_root
        self.box = next(word for word, kind in BOX_KINDS.items() if kind == self.kind)

    def __call__(self) -> list[dict]:
        return [self._record(image) for image in self._images]

    @property
    def objects_per_image(self) -> np.ndarray:
        """(images,) int64 number of objects, ignore regions not counted."""
        return np.array([(image.tags == 1).sum() for image in self._images])

    @property
    def source(self) -> str:
        """What the dataset is made of, in words."""
        files = f"{os.path.abspath(self.odgt)} with images in {os.path.abspath(self.image_root)}"
        return f"{files} and {self.box} boxes"

    @cached_property
    def _images(self) -> list[_Image]:
        images = [self._image(where, record) for where, record in read_odgt(self.odgt)]
        self._check_pictures(images)
        unknown = [image for image in images if image.size is None]
        sizes = sizes_of_pictures([(self._file_name(image), image.where) for image in unknown])
        for image, size in zip(unknown, sizes):
            image.size = size
        self._report(images)
        return images

    def _image(self, where: str, record: dict) -> _Image:
        boxes, kind = record["gtboxes"], self.kind
        has = {other: kind != other and all(other in box for box in boxes) for other in ("fbox", "vbox")}
        return _Image(
            where=where,
            key=record["ID"],
            size=size_of(record, where),
            boxes_xyxy=boxes_xyxy_of(boxes, kind, where),
            full_xyxy=boxes_xyxy_of(boxes, "fbox", where) if has["fbox"] else None,
            visible_xyxy=boxes_xyxy_of(boxes, "vbox", where) if has["vbox"] else None,
            tags=np.array([tag_of(box, kind, where) for box in boxes], dtype=np.int8),
            odd_tags={str(box["tag"]) for box in boxes} - {"person", "mask"},
        )

    def _file_name(self, image: _Image) -> str:
        return os.path.join(self.image_root, f"{image.key}.jpg")

    def _check_pictures(self, images: list[_Image]) -> None:
        there = set(os.listdir(self.image_root))  # much faster than to ask for each
        missing = [i for i in images if f"{i.key}.jpg" not in there and not os.path.isfile(self._file_name(i))]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(images)} pictures are missing; the first is {self._file_name(missing[0])} "
                f"of {missing[0].where}"
            )

    def _report(self, images: list[_Image]) -> None:
        boxes = sum(len(image.tags) for image in images)
        persons = sum(int((image.tags == 1).sum()) for image in images)
        logger.info("dataset %r: %d images, %d persons, %d ignore regions, %s boxes of %s",
                    self.name, len(images), persons, boxes - persons, self.box, self.odgt)  # fmt: skip
        empty = [
            f"{image.where}, {box}"
            for image in images
            for box, inside, tag in zip(
                _to_xywh(image.boxes_xyxy).tolist(), _in_image(image.boxes_xyxy, image.size), image.tags
            )
            if tag == 1 and (inside[2] == 0 or inside[3] == 0)
        ]
        examples = "; ".join(empty[:_EXAMPLES]) + (" ..." if len(empty) > _EXAMPLES else "")
        odd = [image for image in images if image.odd_tags]
        tags = sorted(set().union(*(image.odd_tags for image in odd)))
        doubts = (
            f"{len(empty)} of {persons} persons have no area inside their image; they count in evaluation but not in "
            f"training: {examples}" if empty else "",
            self._doubt(images),
            f"{len(odd)} images hold boxes of the tags {tags}, which become ignore regions: only 'person' is an "
            f"object; the first is {odd[0].where}" if odd else "",
        )  # fmt: skip
        self.doubts = [doubt for doubt in doubts if doubt]
        for doubt in self.doubts:
            logger.warning("dataset %r (%s): %s", self.name, self.odgt, doubt)

    def _doubt(self, images: list[_Image]) -> str:
        """On boxes of persons that are hardly [x, y, width, height]; to end outside is not odd here."""
        boxes = np.concatenate([_to_xywh(image.boxes_xyxy[image.tags == 1]) for image in images])
        sizes = np.concatenate([np.tile(image.size[::-1], (int((image.tags == 1).sum()), 1)) for image in images])
        sound = (boxes[:, 2:] >= 0).all(1)
        return doubt_about_boxes(boxes[sound], sizes[sound], may_end_outside=True)

    def _record(self, image: _Image) -> dict:
        height, width = image.size
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": int(tag != 1)}
            for box, tag in zip(_in_image(image.boxes_xyxy, image.size), image.tags.tolist())
        ]
        for key, boxes_xyxy in (
            ("full", image.full_xyxy),
            ("visible", image.visible_xyxy),
            (self.box, image.boxes_xyxy),
        ):
            if boxes_xyxy is not None:
                for annotation, box in zip(annotations, _to_xywh(boxes_xyxy).tolist()):
                    annotation[f"{key}_bbox"] = box
        return {
            "file_name": self._file_name(image),
            "image_id": image.key,
            "height": height,
            "width": width,
            "amodal": self.box != "visible",
            "annotations": annotations,
        }


def _in_image(boxes_xyxy: np.ndarray, size: tuple[float, float]) -> list[list[float]]:
    """Boxes as XYWH that end at the image's edge, as COCO's do; the evaluator's own clipping gives the same of both."""
    height, width = size
    edge = np.array([width, height])
    end = boxes_xyxy[:, 2:].clip(0, edge)
    start = np.minimum(boxes_xyxy[:, :2].clip(0, edge), end)  # a box of negative size has no area
    return _to_xywh(np.concatenate([start, end], 1)).tolist()


def _to_xywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], 1)


def _check_same(name: str, registered: Any, asked: CrowdHumanDataset) -> None:
    have = registered.source if isinstance(registered, CrowdHumanDataset) else "a dataset of other code"
    if have != asked.source:
        raise ValueError(f"dataset {name!r} is already registered as {have}; it cannot become {asked.source}")
