# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Which detection finds which object, by COCO's rule, at an IoU of 0.5."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scene import Pairs, Scene, joined, overlaps

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU from which an object is found, and up to which there is nothing (TIDE)


@dataclass
class Match:
    """Indices into the scene's objects and detections."""

    partner: np.ndarray  # (D,) int64 the object that a detection finds; -1: none
    found_by: np.ndarray  # (M,) int64 the detection that finds an object; -1: none
    in_region: np.ndarray  # (D,) bool: finds nothing, and lies in a region to ignore: neither right nor wrong
    pairs: Pairs  # of detections and objects, regions left out, whose IoU is at least BACKGROUND


def match(scene: Scene) -> Match:
    """Detections in the order of their scores take the free object of their class with the highest IoU, from
    ``FOREGROUND``. Those that find none and lie by half in a region of their class do not count (COCO's iscrowd)."""
    objects, found = scene.objects, scene.found
    real = np.flatnonzero(~objects.ignored)
    parts = overlaps(found.boxes_xyxy, found.image, objects.boxes_xyxy[real], objects.image[real])
    pairs = joined([part.chosen(part.iou >= BACKGROUND) for part in parts])
    pairs.object = real[pairs.object]
    partner, found_by = _pair_greedily(scene, pairs)
    regions = np.flatnonzero(objects.ignored)
    free = np.flatnonzero(partner < 0)
    in_region = np.zeros(len(found), dtype=bool)
    for part in overlaps(found.boxes_xyxy[free], found.image[free], objects.boxes_xyxy[regions],
                         objects.image[regions], of_first=True):  # fmt: skip
        row, column = free[part.found], regions[part.object]
        in_region[row[(part.iou >= FOREGROUND) & (found.classes[row] == objects.classes[column])]] = True
    return Match(partner, found_by, in_region, pairs)


def _pair_greedily(scene: Scene, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    same = scene.found.classes[pairs.found] == scene.objects.classes[pairs.object]
    partner, found_by = [-1] * len(scene.found), [-1] * len(scene.objects)
    close = pairs.chosen(same & (pairs.iou >= FOREGROUND))
    # The detections of an image stand by score. Of equal IoU the later object counts, as in pycocotools.
    order = np.lexsort((-close.object, -close.iou, close.found))
    for detection, target in zip(close.found[order].tolist(), close.object[order].tolist()):
        if partner[detection] < 0 and found_by[target] < 0:
            partner[detection], found_by[target] = target, detection
    return np.array(partner, dtype=np.int64), np.array(found_by, dtype=np.int64)


def best_of(pairs: Pairs, which: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(D,) the highest IoU of each detection among some of its pairs, and with which object; 0 and -1 without any."""
    chosen = pairs.chosen(which)
    order = np.lexsort((-chosen.object, chosen.iou, chosen.found))
    iou, target = np.zeros(count), np.full(count, -1)
    iou[chosen.found[order]] = chosen.iou[order]  # of a detection's pairs the last one stays, which is the best
    target[chosen.found[order]] = chosen.object[order]
    return iou, target
