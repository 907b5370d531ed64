# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Which objects are found: by size, by overlap with their neighbours, and at the image's border; and why others are
not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .matching import FOREGROUND, Match
from .scene import Scene, overlaps

SIDES = (32, 96)  # COCO's: an object is small up to 32^2 square pixels, large from 96^2
OVERLAPS = (0.0, 0.2, 0.4, 0.6)  # lower ends of the groups of crowded objects
BORDER = 1.0  # pixel from the image's edge
REASONS = {
    "score": "a right detection scores lower",
    "class": "detected as another class",
    "place": "a detection is near, but overlaps it by less than half",
    "nothing": "nothing is near",
}


@dataclass
class Group:
    """Objects of one kind."""

    aspect: str  # "size", "crowdedness", "border"
    name: str
    member: np.ndarray  # (M,) bool, without regions to ignore

    @property
    def count(self) -> int:
        return int(self.member.sum())


def crowdedness(scene: Scene) -> np.ndarray:
    """(M,) an object's largest IoU with another object of its image, whatever their classes; 0 for regions."""
    objects = scene.objects
    real = np.flatnonzero(~objects.ignored)
    boxes, image = objects.boxes_xyxy[real], objects.image[real]
    largest = np.zeros(len(objects))
    for part in overlaps(boxes, image, boxes, image):
        other = part.found != part.object
        np.maximum.at(largest, real[part.found[other]], part.iou[other])
    return largest


def at_border(scene: Scene) -> np.ndarray | None:
    """(M,) whether an object touches the edge of its image; None where an image's size is not known."""
    if not len(scene.sizes) or any(None in size for size in scene.sizes):
        return None
    height, width = np.array(scene.sizes, dtype=np.float64).reshape(-1, 2)[scene.objects.image].T
    x0, y0, x1, y1 = scene.objects.boxes_xyxy.T
    return (x0 <= BORDER) | (y0 <= BORDER) | (x1 >= width - BORDER) | (y1 >= height - BORDER)


def groups_of(scene: Scene) -> list[Group]:
    """Every object is in one group of each aspect; groups without objects are left out."""
    real, side, crowd = ~scene.objects.ignored, np.sqrt(scene.objects.areas), crowdedness(scene)
    low, high = SIDES
    found = [
        Group("size", f"small (to {low}² pixels)", side <= low),
        Group("size", f"medium ({low}² to {high}²)", (side > low) & (side <= high)),
        Group("size", f"large (over {high}²)", side > high),
        Group("crowdedness", "alone (overlaps none)", crowd == 0),
    ]
    for start, stop in zip(OVERLAPS, (*OVERLAPS[1:], np.inf)):
        text = f"IoU {start:g} to {stop:g} with another" if stop < np.inf else f"IoU over {start:g} with another"
        found.append(Group("crowdedness", text, (crowd > start) & (crowd <= stop)))
    cut = at_border(scene)
    if cut is not None:
        found += [Group("border", "inside the image", ~cut), Group("border", "touches the border", cut)]
    for group in found:
        group.member = group.member & real
    return [group for group in found if group.count]


def found_from(scene: Scene, match: Match, score: float) -> np.ndarray:
    """(M,) whether a detection of at least this score finds the object."""
    return (match.found_by >= 0) & (np.append(scene.found.scores, 0)[match.found_by] >= score)


def reasons(scene: Scene, match: Match, score: float) -> dict[str, int]:
    """Why objects are not found at a score, by ``REASONS``; the first that is true counts."""
    objects, found, pairs = scene.objects, scene.found, match.pairs
    left = ~objects.ignored & ~found_from(scene, match, score)
    other = pairs.iou >= FOREGROUND  # of its own class these have found it, or another object
    other &= found.classes[pairs.found] != objects.classes[pairs.object]
    near, as_other = np.zeros(len(objects), dtype=bool), np.zeros(len(objects), dtype=bool)
    near[pairs.object], as_other[pairs.object[other]] = True, True
    counts = {}
    for reason, which in (("score", match.found_by >= 0), ("class", as_other), ("place", near), ("nothing", left)):
        counts[reason] = int((left & which).sum())
        left = left & ~which
    return counts
