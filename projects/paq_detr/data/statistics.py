# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What a dataset is like, in numbers: classes, objects per image, sizes, how much objects cover each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as rle

COVERED = 0.5  # IoU to another box, above which a box counts as overlapped
SMALL, MEDIUM = 32**2, 96**2  # pixels: COCO's limits of small and medium objects


@dataclass(frozen=True)
class Spread:
    """How some numbers are spread; all are NaN where there are none."""

    smallest: float
    median: float
    percentile_99: float
    largest: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        if not len(values):
            return cls(*[float("nan")] * 4)
        return cls(*np.percentile(values, [0, 50, 99, 100]).tolist())


@dataclass(frozen=True)
class Statistics:
    """A dataset in numbers. Objects are boxes that are no ignore regions."""

    images: int
    images_without_objects: int
    objects: int
    ignore_regions: int
    classes: dict[str, int]  # objects by class, in the order of the ids; classes without any included
    objects_per_image: Spread
    image_widths: Spread  # pixels
    image_heights: Spread
    object_sizes: Spread  # square roots of box areas, pixels
    object_shares: Spread  # the same in shares of the square root of their image's area
    size_shares: dict[str, float]  # of objects that are "small", "medium", "large" by COCO's limits, in [0, 1]
    overlap: float  # share of objects with an IoU above 0.5 to another one of their image, of any class
    classes_per_image: Spread  # of images with objects


def describe(records: Sequence[dict], class_names: Sequence[str]) -> Statistics:
    """Statistics of Detectron2's dataset dicts, which have ``height``, ``width`` and ``annotations``.

    Args:
        records: one an image.
        class_names: in the order of ``category_id``.
    """
    boxes, labels, ignored = zip(*map(arrays_of, records)) if records else ((), (), ())
    regions = sum(int(flags.sum()) for flags in ignored)
    boxes = [b[~flags] for b, flags in zip(boxes, ignored)]
    labels = [names[~flags] for names, flags in zip(labels, ignored)]
    counts = np.array([len(b) for b in boxes], dtype=np.int64)
    sizes = np.array([(r["width"], r["height"]) for r in records], dtype=np.float64).reshape(-1, 2)
    areas = np.concatenate([b[:, 2] * b[:, 3] for b in boxes] or [np.zeros(0)])
    per_class = np.bincount(np.concatenate(labels or [np.zeros(0, dtype=np.int64)]), minlength=len(class_names))
    return Statistics(
        images=len(records),
        images_without_objects=int((counts == 0).sum()),
        objects=len(areas),
        ignore_regions=regions,
        classes=dict(zip(class_names, per_class.tolist())),
        objects_per_image=Spread.of(counts),
        image_widths=Spread.of(sizes[:, 0]),
        image_heights=Spread.of(sizes[:, 1]),
        object_sizes=Spread.of(np.sqrt(areas)),
        object_shares=Spread.of(np.sqrt(areas / sizes.prod(1).repeat(counts))),
        size_shares=_size_shares(areas),
        overlap=float(np.concatenate([largest_ious(b) > COVERED for b in boxes] or [np.zeros(0)]).mean())
        if len(areas)
        else 0.0,
        classes_per_image=Spread.of(np.array([len(np.unique(names)) for names in labels if len(names)])),
    )


def largest_ious(boxes_xywh: np.ndarray) -> np.ndarray:
    """(N,) IoU of each of the boxes (N, 4) to the one that it shares most with; 0 for one alone."""
    if len(boxes_xywh) < 2:
        return np.zeros(len(boxes_xywh))
    ious = rle.iou(boxes_xywh, boxes_xywh, [0] * len(boxes_xywh))
    np.fill_diagonal(ious, 0)
    return ious.max(1)


def arrays_of(record: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, 4) XYWH, (N,) labels and (N,) ignore flags of an image."""
    annotations = record["annotations"]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS) for a in annotations]
    labels = [a["category_id"] for a in annotations]
    ignored = [bool(a.get("iscrowd", 0)) for a in annotations]
    return (
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        np.array(ignored, dtype=bool),
    )


def _size_shares(areas: np.ndarray) -> dict[str, float]:
    small, medium = areas < SMALL, (areas >= SMALL) & (areas < MEDIUM)
    shares = {"small": small, "medium": medium, "large": ~(small | medium)}
    return {name: float(flags.mean()) if len(areas) else 0.0 for name, flags in shares.items()}
