# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Files that are read without a fault and yet hardly mean what they seem to: counted, and refused in one sentence.

Scores outside 0 to 1, negative sizes, fractions of the image and corners instead of sizes are told by the numbers
alone. Boxes in yet another form are told by comparison: if hardly any detection meets a person, but many would were
the boxes read as corners, centres or fractions, they are that.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .images import CrowdImage, Truth
from .matching import box_iou

_ROUNDING = 1e-6  # by which a score may miss 0 or 1
_SLACK = 0.02  # of the image's side, by which corners may miss it
_OUTSIDE = 0.2  # of the boxes: so many reach beyond their image only where something is wrong
_FEW = 2  # persons that another reading must meet at least
_IMAGES = 200  # that are enough to compare readings

Size = tuple[float, float] | None  # (height, width)

# How else four numbers may be meant, as x0, y0, x1, y1.
_FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "[x, y, width, height]": lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], 1),
    "corners [x0, y0, x1, y1]": lambda b: b,
    "[centre x, centre y, width, height]": lambda b: np.concatenate(
        [b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], 1
    ),
    "[y, x, height, width]": lambda b: np.concatenate([b[:, 1::-1], b[:, 1::-1] + b[:, :1:-1]], 1),
}

# Units other than pixels, and what part of the image's side one of them is.
_UNITS = {"fractions": 1.0, "percents": 0.01, "thousandths": 0.001}


@dataclass
class Noted:
    """What is odd about the boxes and scores that were noted."""

    count: int = 0
    max_score: float = 0.0  # where one is above 1
    found: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # by kind: how many, first place, its value
    in_first_pixel: int = 0
    may_be_corners: bool = True  # all that were noted
    outside: int = 0  # if so
    unknown: int = 0  # images of the detections that are not annotated
    first_unknown: str = ""  # where it was

    def note(self, place: int, boxes_xyxy: np.ndarray, scores: np.ndarray, size: Size) -> None:
        """Look at one image's boxes (D, 4) and scores (D,), or (0,) of a ground truth."""
        if not len(boxes_xyxy):
            return
        # Every image passes here: what is rare is looked at only where the extremes allow it.
        start, end = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
        sides = end - start
        self.count += len(boxes_xyxy)
        if len(scores) and (scores.max() > 1 + _ROUNDING or scores.min() < -_ROUNDING):
            self.max_score = max(self.max_score, scores.max())
            self._add("above", place, scores, scores > 1 + _ROUNDING)
            self._add("below", place, scores, scores < -_ROUNDING)
        if sides.min() < 0:
            self._add("negative", place, np.concatenate([start, sides], 1), (sides < 0).any(1))
        if end.min() <= 1:
            self.in_first_pixel += int(((start >= 0) & (end <= 1) & (sides > 0)).all(1).sum())
        self.may_be_corners = self.may_be_corners and size is not None and _are_corners(start, sides, size)
        if self.may_be_corners:
            self.outside += int((end > np.array(size)[::-1] * (1 + _SLACK) + 1).any(1).sum())

    def _add(self, kind: str, place: int, values: np.ndarray, odd: np.ndarray) -> None:
        if odd.any():
            value = str(values[odd.argmax()].tolist())
            self._merge(kind, (int(odd.sum()), place, value))

    def _merge(self, kind: str, new: tuple[int, int, str]) -> None:
        count, place, value = self.found.get(kind, (0, new[1], new[2]))
        first = new if new[1] < place else (count, place, value)
        self.found[kind] = (count + new[0], *first[1:])

    def note_unknown(self, where: str, count: int = 1) -> None:
        self.unknown, self.first_unknown = self.unknown + count, self.first_unknown or where

    def join(self, other: Noted) -> None:
        if other.unknown:
            self.note_unknown(other.first_unknown, other.unknown)
        self.count += other.count
        self.max_score = max(self.max_score, other.max_score)
        self.in_first_pixel += other.in_first_pixel
        self.outside += other.outside
        self.may_be_corners &= other.may_be_corners
        for kind, new in other.found.items():
            self._merge(kind, new)

    def sentence(self, key: str, ids: list[Hashable]) -> str:
        """What is wrong with the values under ``key``, counted, with the first and the likely cause; empty: nothing."""
        if "above" in self.found:
            percent = self.max_score <= 100 and "below" not in self.found
            cause = "percent: divide them by 100" if percent else "logits"
            return self._counted("above", "scores are above 1", "score", ids, f"they are probably {cause}")
        if "below" in self.found:
            return self._counted("below", "scores are below 0", "score", ids, "they are probably logits")
        if "negative" in self.found:
            cause = "a box is [x, y, width, height], x and y of the upper left corner"
            return self._counted("negative", "boxes have a negative size", key, ids, cause)
        if 2 * self.in_first_pixel > self.count:
            return (f"{self.in_first_pixel} of {self.count} boxes ({key!r}) lie within the first pixel: they are "
                    "probably fractions of the image, and must be pixels")  # fmt: skip
        if self.may_be_corners and self.outside > _OUTSIDE * self.count:
            return (f"{self.outside} of {self.count} boxes ({key!r}) reach far outside their image: they are probably "
                    "corners [x0, y0, x1, y1], and must be [x, y, width, height]")  # fmt: skip
        return ""

    def _counted(self, kind: str, what: str, key: str, ids: list[Hashable], cause: str) -> str:
        count, place, value = self.found[kind]
        return f"{count} of {self.count} {what}, the first is {key!r} {value} of the image {ids[place]!r}; {cause}"


def _are_corners(start: np.ndarray, other: np.ndarray, size: tuple[float, float]) -> bool:
    side = np.array(size)[::-1]
    inside = (start >= -_SLACK * side - 1) & (other <= side * (1 + _SLACK) + 1)
    return bool((inside & (other >= start)).all())


def other_reading(images: Iterable[CrowdImage], dt: str, gt: str) -> str:
    """Which other reading of the boxes of either file lets many more persons be met; empty where none does.

    Args:
        images: some of the images; ``_IMAGES`` with detections and persons are looked at.
        dt, gt: names of the detection file and of the annotation file.
    """
    met: dict[tuple[str, str], int] = {}
    looked = 0
    for image in images:
        if not len(image.boxes_xyxy) or not (image.truth.tags == 1).any():
            continue
        for reading, count in _persons_met(image, dt, gt):
            met[reading] = met.get(reading, 0) + count
        looked += 1
        if looked == _IMAGES:
            break
    own = met.pop(("", ""), 0)
    if not met:
        return ""
    (path, form), best = max(met.items(), key=lambda item: item[1])
    if best < max(2 * own + 1, _FEW):
        return ""
    return (f"the boxes of {path} are probably {form}, and must be [x, y, width, height] in pixels: so read, {best} "
            f"persons of the first {looked} images have a detection, and as they stand {own}")  # fmt: skip


def _persons_met(image: CrowdImage, dt: str, gt: str) -> Iterable[tuple[tuple[str, str], int]]:
    """(file, reading) and how many persons a detection then overlaps by half; ("", "") is the reading as it is."""
    persons, boxes = image.truth.boxes_xyxy[image.truth.tags == 1], image.boxes_xyxy
    size = image.size or image.ji_size
    yield ("", ""), _count_met(persons, boxes)
    for form, read in _readings(boxes, size):
        yield (dt, form), _count_met(persons, read)
    for form, read in _readings(persons, size):
        yield (gt, form), _count_met(read, boxes)


def _readings(boxes_xyxy: np.ndarray, size: Size) -> Iterable[tuple[str, np.ndarray]]:
    """The boxes, given as if they had been [x, y, width, height], read in every other way."""
    numbers = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], 1)
    for form, corners in list(_FORMS.items())[1:]:
        yield form, corners(numbers)
    if size is not None:
        scale = np.array([size[1], size[0]] * 2)
        for unit, part in _UNITS.items():
            for form, corners in list(_FORMS.items())[:-1]:
                yield f"{form} in {unit} of the image", corners(numbers * scale * part)


def _count_met(persons: np.ndarray, boxes: np.ndarray) -> int:
    sound = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
    if not len(sound):
        return 0
    proper = (persons[:, 2:] > persons[:, :2]).all(1)
    return int(((box_iou(persons, sound) > 0.5).any(1) & proper).sum())


def note_truths(truths: Iterable[Truth], sizes: Iterable[Size]) -> Noted:
    """The persons of an annotation file; ignore regions may be anything."""
    noted = Noted()
    nothing: Any = np.zeros(0)
    for place, (truth, size) in enumerate(zip(truths, sizes)):
        noted.note(place, truth.boxes_xyxy[truth.tags == 1], nothing, size)
    return noted
