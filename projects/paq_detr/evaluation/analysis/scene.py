# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A whole evaluation as flat arrays: all objects and all detections, each with the number of its image.

Letters: M objects, D detections, I images, K classes, P pairs of a detection and an object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

PAIRS_AT_ONCE = 2_000_000  # some 150 MB


@dataclass
class Objects:
    """The ground truth, by image; regions to ignore are among it."""

    boxes_xyxy: np.ndarray  # (M, 4) float64 pixels
    classes: np.ndarray  # (M,) int64
    image: np.ndarray  # (M,) int64 ascending
    areas: np.ndarray  # (M,) float64 square pixels, of the mask where the annotation says so
    ignored: np.ndarray  # (M,) bool: a region whose detections are neither right nor wrong

    def __len__(self) -> int:
        return len(self.classes)


@dataclass
class Found:
    """The detections, by image, in each the highest score first."""

    boxes_xyxy: np.ndarray  # (D, 4) float64 pixels
    scores: np.ndarray  # (D,) float64
    classes: np.ndarray  # (D,) int64
    image: np.ndarray  # (D,) int64 ascending

    def __len__(self) -> int:
        return len(self.classes)


@dataclass
class Pairs:
    """Detections and objects of one image that overlap."""

    found: np.ndarray  # (P,) int64 ascending
    object: np.ndarray  # (P,) int64
    iou: np.ndarray  # (P,) float64

    def chosen(self, which: np.ndarray) -> Pairs:
        return Pairs(self.found[which], self.object[which], self.iou[which])


@dataclass
class Scene:
    """What is analysed. Objects and detections may come in any order."""

    objects: Objects
    found: Found
    class_names: Sequence[str]
    image_names: Sequence[str]  # I, what an image is called on a page
    files: Sequence[str] = ()  # I pictures, or none
    sizes: Sequence[tuple[int | None, int | None]] = field(default_factory=list)  # I (height, width), None: unknown

    def __post_init__(self) -> None:
        o, f = self.objects, self.found
        by_image = np.argsort(o.image, kind="stable")
        o = (o.boxes_xyxy[by_image], o.classes[by_image], o.image[by_image], o.areas[by_image], o.ignored[by_image])
        by_score = np.lexsort((-f.scores, f.image))
        f = (f.boxes_xyxy[by_score], f.scores[by_score], f.classes[by_score], f.image[by_score])
        self.objects, self.found = Objects(*o), Found(*f)

    @cached_property
    def by_score(self) -> np.ndarray:
        """(D,) the detections of all images, the highest score first."""
        return np.argsort(-self.found.scores, kind="stable")

    @cached_property
    def counts(self) -> np.ndarray:
        """(K,) objects of each class, without regions to ignore."""
        return np.bincount(self.objects.classes[~self.objects.ignored], minlength=len(self.class_names))


def overlaps(
    boxes: np.ndarray, image: np.ndarray, others: np.ndarray, image_of_others: np.ndarray, of_first: bool = False
) -> Iterator[Pairs]:
    """All pairs of a box and another of the same image, with their IoU, in pieces of at most ``PAIRS_AT_ONCE`` pairs
    (more where one box alone has more).

    Args:
        boxes, image: (D, 4) corners and (D,) ascending; the pairs' ``found``.
        others, image_of_others: (M, 4) and (M,) ascending; the pairs' ``object``.
        of_first: the intersection's share of the first box in place of IoU.
    """
    start, stop = (np.searchsorted(image_of_others, image, side) for side in ("left", "right"))
    counts = stop - start
    ends = np.cumsum(counts)
    areas, areas_of_others = (np.clip(b[:, 2:] - b[:, :2], 0, None).prod(1) for b in (boxes, others))
    first = 0
    while first < len(boxes):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + PAIRS_AT_ONCE, "right")), first + 1)
        count = counts[first:last]
        row = np.repeat(np.arange(first, last), count)
        column = np.arange(len(row)) + np.repeat(start[first:last] - (ends[first:last] - count - before), count)
        low = np.maximum(boxes[row, :2], others[column, :2])
        high = np.minimum(boxes[row, 2:], others[column, 2:])
        shared = np.clip(high - low, 0, None).prod(1)
        whole = areas[row] if of_first else areas[row] + areas_of_others[column] - shared
        yield Pairs(row, column, np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0))
        first = last


def joined(parts: Sequence[Pairs]) -> Pairs:
    if not parts:
        return Pairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    return Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("found", "object", "iou")))
