# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A registered dataset in the form that pycocotools evaluates."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Hashable

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as rle
from pycocotools.coco import COCO

from ..data.coco_file import CocoFile, read_coco
from ..data.json_values import Unfit, as_flag
from ..data.segmentation import Segmentation, as_segmentation, check_mask_size, to_run_lengths
from .records import Detections, has_annotations


class GroundTruth:
    """A registered dataset as a pycocotools ``COCO`` object whose image ids are places in the dataset.

    Where the dataset has an annotation file (``MetadataCatalog.get(name).json_file``, as in Detectron2), objects and
    their sizes (``area``) are the file's; else they are those of the registered dicts, with box areas as sizes. Boxes
    without area or outside their image, which no detection can find, are left out. ``annotated`` is
    False where the file lacks the very key ``annotations``, or ``records.has_annotations`` says so.

    With ``masks`` objects have their segmentations, as run lengths, whose sizes stand in where the file says none; an
    ignore region without one has its box.

    Raises:
        ValueError: the file breaks the format, an image_id comes twice, a category is none of the dataset's classes, or
            an object has no sound segmentation where masks are asked for.
    """

    def __init__(self, dataset_name: str, masks: bool = False):
        metadata = MetadataCatalog.get(dataset_name)
        dicts = DatasetCatalog.get(dataset_name)
        names = metadata.get("thing_classes")
        if not names:
            raise ValueError(f"the metadata of dataset {dataset_name!r} has no thing_classes")
        to_contiguous = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(names))}

        self.dataset_name, self.masks = dataset_name, masks
        self.sizes = [(d.get("height"), d.get("width")) for d in dicts]
        self.files = [d.get("file_name", "") for d in dicts]
        self.class_names = list(names)
        self.category_ids = sorted(to_contiguous, key=to_contiguous.get)  # original id of each contiguous one
        self.image_ids = [d["image_id"] for d in dicts]
        self.image_index = {image_id: index for index, image_id in enumerate(self.image_ids)}
        if len(self.image_index) < len(self.image_ids):
            raise ValueError(f"dataset {dataset_name!r} holds an image_id more than once")

        self.annotated = has_annotations(dicts, metadata)
        json_file = metadata.get("json_file")
        if json_file:
            content = read_coco(json_file, masks)
            self.annotated, rows = self.annotated and content.annotated, self._rows_of_file(content)
        else:
            rows = self._rows_of_dicts(dicts)
        rows = [row for row in rows if _can_be_found(row["bbox"], dicts[row["image_id"]])]
        self.coco = self.in_memory(rows)
        counts = {category: 0 for category in self.category_ids}
        for row in rows:
            counts[row["category_id"]] += not row["iscrowd"]
        self.boxes_per_class = np.array([counts[c] for c in self.category_ids])

    def in_memory(self, rows: list[dict]) -> COCO:
        """A ``COCO`` of the dataset's images and classes with ``rows`` as annotations."""
        return in_memory_coco(self.sizes, self.category_ids, rows)

    def results(self, records: dict[Hashable, Detections]) -> list[dict]:
        """Detections as pycocotools rows: places for image ids, original category ids, xywh boxes."""
        rows = []
        for index, image_id in enumerate(self.image_ids):
            record = records.get(image_id)
            if record is None or not len(record):
                continue
            boxes = record.boxes_xyxy.astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            columns = boxes.tolist(), record.scores.tolist(), record.classes.tolist()
            for place, (box, score, label) in enumerate(zip(*columns)):
                category = self._category(label, f"predicted class {label} on image {image_id!r}")
                rows.append(_row(index, category, box, score=score))
                if self.masks:
                    rows[-1]["segmentation"] = record.masks[place]
        return rows

    def _category(self, label: int, what: str) -> int:
        """The original id of a contiguous one."""
        if not 0 <= label < len(self.category_ids):
            raise ValueError(f"{what}, but dataset {self.dataset_name!r} has {len(self.category_ids)} classes")
        return self.category_ids[label]

    def _rows_of_dicts(self, dicts: list[dict]) -> list[dict]:
        rows = []
        for index, image in enumerate(dicts):
            for annotation in image.get("annotations", ()):
                label = annotation["category_id"]
                category = self._category(label, f"category_id {label} of an annotation of image {image['image_id']!r}")
                box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
                iscrowd = as_flag(annotation.get("iscrowd"))
                row = _row(index, category, [float(v) for v in box], annotation.get("area"), iscrowd=iscrowd)
                rows.append(row)
                if self.masks:
                    where = f"image {image['image_id']!r} of dataset {self.dataset_name!r}"
                    self._add_mask(row, annotation.get("segmentation"), annotation.get("area"), where)
        return rows

    def _rows_of_file(self, content: CocoFile) -> list[dict]:
        """The file's annotations of images and classes that are registered; others are none of the dataset's."""
        known, rows = set(self.category_ids), []
        for a in content.annotations:
            if a.image_id in self.image_index and a.category_id in known:
                rows.append(_row(self.image_index[a.image_id], a.category_id, a.bbox, a.area, iscrowd=a.iscrowd))
                if self.masks:
                    self._add_mask(rows[-1], a.segmentation, a.area, f"annotation {a.id} of {content.path}")
        return rows

    def _add_mask(self, row: dict, segmentation: Segmentation | None, area: float | None, where: str) -> None:
        """The segmentation, and its area where the file says none."""
        size = self.sizes[row["image_id"]]
        if segmentation is None and row["iscrowd"]:
            row["segmentation"] = rle.frPyObjects(np.array([row["bbox"]]), *size)[0]
            return
        try:
            checked = as_segmentation(segmentation)
            check_mask_size(checked, *size)
        except Unfit as error:
            raise ValueError(f"the segmentation of an object on {where} is {error}") from None
        row["segmentation"] = to_run_lengths(checked, *size)
        row["area"] = float(rle.area(row["segmentation"])) if area is None else area


def _can_be_found(box_xywh: list[float], image: dict) -> bool:
    x, y, width, height = box_xywh
    within = -width < x < image.get("width", np.inf) and -height < y < image.get("height", np.inf)
    return within and min(width, height) > 0


def _row(image: int, category: int, box_xywh: list[float], area: float | None = None, **extra) -> dict:
    area = box_xywh[2] * box_xywh[3] if area is None else area
    return {"image_id": image, "category_id": category, "bbox": box_xywh, "area": area, "iscrowd": 0, **extra}


def in_memory_coco(sizes: list[tuple], category_ids: list[int], rows: list[dict]) -> COCO:
    """A ``COCO`` of images 0, 1, ... of these (height, width), as far as known, with ``rows`` as annotations."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": index, "height": height, "width": width} for index, (height, width) in enumerate(sizes)],
        "categories": [{"id": category} for category in category_ids],
        "annotations": [{**row, "id": index} for index, row in enumerate(rows, start=1)],  # id 0 means "no match"
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
