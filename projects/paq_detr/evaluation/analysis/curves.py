# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Precision, recall and F1 against the score, and what is taken for what at one score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..thresholds import best_f1
from .matching import FOREGROUND, Match
from .scene import Scene


@dataclass
class Curve:
    """Of one class, or of all together; (P,) by falling score, one point for each score that occurs."""

    score: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    threshold: float  # the score of the best F1; NaN where nothing is right
    best: float  # that F1

    def at(self, score: float) -> tuple[float, float]:
        """Precision and recall of the detections that score at least so much; precision is NaN without any."""
        shown = int((self.score >= score).sum())
        return (float(self.precision[shown - 1]), float(self.recall[shown - 1])) if shown else (float("nan"), 0.0)


def curve(scores: np.ndarray, right: np.ndarray, objects: int) -> Curve:
    """
    Args:
        scores, right: (D,) of the detections that count, in any order.
        objects: how many there are to find.
    """
    threshold, best = best_f1(scores, right, objects)
    order = np.argsort(-scores, kind="stable")
    scores, true = scores[order], np.cumsum(right[order])
    rank = np.flatnonzero(np.append(scores[1:] != scores[:-1], [True] * min(len(scores), 1))) + 1
    scores, true = scores[rank - 1], true[rank - 1]
    return Curve(scores, true / rank, true / max(objects, 1), 2 * true / (rank + objects), threshold, best)


def curves_of(scene: Scene, match: Match) -> tuple[Curve, list[Curve]]:
    """The curve of all classes together, and each class's own."""
    counted = ~match.in_region
    scores, classes, right = scene.found.scores[counted], scene.found.classes[counted], match.partner[counted] >= 0
    order = np.argsort(classes, kind="stable")
    edges = np.searchsorted(classes[order], np.arange(len(scene.counts) + 1))
    of_class = (order[start:stop] for start, stop in zip(edges[:-1], edges[1:]))
    each = [curve(scores[own], right[own], int(count)) for own, count in zip(of_class, scene.counts)]
    return curve(scores, right, int(scene.counts.sum())), each


def confusion(scene: Scene, match: Match, score: float) -> np.ndarray:
    """(K + 1, K + 1) int64: rows are objects' classes, columns detections' classes; the last row holds detections where
    no object is, the last column objects that are not found.

    Detections that score at least so much count. Those that find an object of their class stand on the diagonal; what
    is left is paired likewise, by score and then IoU from 0.5, whatever the classes.
    """
    objects, found, pairs = scene.objects, scene.found, match.pairs
    shown = (found.scores >= score) & ~match.in_region
    partner = np.where(shown, match.partner, -1)
    taken = np.zeros(len(objects), dtype=bool)
    taken[partner[partner >= 0]] = True
    partner, taken = partner.tolist(), taken.tolist()
    close = pairs.chosen(shown[pairs.found] & (pairs.iou >= FOREGROUND))
    order = np.lexsort((-close.iou, close.found))
    for detection, target in zip(close.found[order].tolist(), close.object[order].tolist()):
        if partner[detection] < 0 and not taken[target]:
            partner[detection], taken[target] = target, True
    count = len(scene.class_names)
    partner = np.array(partner, dtype=np.int64)[shown]
    rows = np.append(objects.classes, count)[partner]  # -1: the last
    missed = objects.classes[~np.array(taken, dtype=bool) & ~objects.ignored]
    cells = np.concatenate([rows * (count + 1) + found.classes[shown], missed * (count + 1) + count])
    return np.bincount(cells, minlength=(count + 1) ** 2).reshape(count + 1, count + 1)
