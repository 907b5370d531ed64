# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a detection, and what each kind of error costs: TIDE (Bolya et al., ECCV 2020).

With IoU thresholds 0.5 and 0.1, a false detection is, by the first of these that is true,

* localisation: the best IoU with an object of its class is from 0.1 to 0.5;
* classification: it overlaps an object of another class by 0.5 or more;
* duplicate: it overlaps an object of its class by more than 0.5, which a higher score has found;
* background: its best IoU with any object is at most 0.1;
* both: class and place are wrong, the best IoU being with an object of another class.

An object is missed if no detection finds it and none of a wrong class or place is its own, that is, could find it if
that were mended. The cost of a kind (dAP) is by how much AP50 rises if its errors are mended and nothing else is: the
detections of the highest score get their object's class or place, others of the same object vanish, as do duplicates,
background and both; missed objects are not counted. As in the authors' program, except that a detection in a region to
ignore is no error, and that classes without objects do not count, as in COCO.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .matching import BACKGROUND, FOREGROUND, Match, best_of
from .scene import Scene

RIGHT, CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, ON_BACKGROUND, NOT_COUNTED = range(7)
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
_NUMBERS = dict(zip(KINDS, (CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, ON_BACKGROUND)))
RECALLS = np.linspace(0, 1, 101)


@dataclass
class Errors:
    kind: np.ndarray  # (D,) int8, one of RIGHT ... NOT_COUNTED
    mends: np.ndarray  # (D,) int64 the object that a wrong class or place would find, were it right; else -1
    missed: np.ndarray  # (M,) bool

    def count(self, kind: str) -> int:
        return int(self.missed.sum() if kind == "missed" else (self.kind == _NUMBERS[kind]).sum())


def classify(scene: Scene, match: Match) -> Errors:
    """The kind of every detection, and which objects are missed."""
    objects, found, pairs = scene.objects, scene.found, match.pairs
    same = found.classes[pairs.found] == objects.classes[pairs.object]
    iou_same, own = best_of(pairs, same, len(found))
    iou_other, other = best_of(pairs, ~same, len(found))
    kind = np.select(
        [
            match.partner >= 0,
            match.in_region,
            (iou_same >= BACKGROUND) & (iou_same <= FOREGROUND),
            iou_other >= FOREGROUND,
            iou_same > FOREGROUND,
            np.maximum(iou_same, iou_other) <= BACKGROUND,
        ],
        [RIGHT, NOT_COUNTED, LOCALISATION, CLASSIFICATION, DUPLICATE, ON_BACKGROUND],
        BOTH,
    ).astype(np.int8)
    target = np.select([kind == LOCALISATION, kind == CLASSIFICATION], [own, other], -1)
    target[np.append(match.found_by, -1)[target] >= 0] = -1
    wanting = np.flatnonzero(target >= 0)
    claimed = np.zeros(len(objects), dtype=bool)
    claimed[target[wanting]] = True
    # The highest score wins; detections of an image stand by score, so it is the first that names an object.
    winners = wanting[np.unique(target[wanting], return_index=True)[1]]
    mends = np.full(len(found), -1)
    mends[winners] = target[winners]
    return Errors(kind, mends, ~objects.ignored & (match.found_by < 0) & ~claimed)


def average_precisions(right: np.ndarray, classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(K,) AP of each class in percent by COCO's 101 points; 0 for one without objects.

    Args:
        right, classes: (D,) of the detections that count, the highest score first.
        counts: (K,) objects of each class.
    """
    classes = classes.astype(np.min_scalar_type(len(counts)))  # numpy sorts short integers in linear time
    order = np.argsort(classes, kind="stable")
    right = right[order]
    edges = np.searchsorted(classes[order], np.arange(len(counts) + 1))
    result = np.zeros(len(counts))
    for k in np.flatnonzero((counts > 0) & (np.diff(edges) > 0)):
        true = np.cumsum(right[edges[k] : edges[k + 1]])
        precision = np.maximum.accumulate((true / np.arange(1, len(true) + 1))[::-1])[::-1]
        place = np.searchsorted(true / counts[k], RECALLS, side="left")
        result[k] = 100 * precision[place[place < len(true)]].sum() / len(RECALLS)
    return result


def ap_by_class(scene: Scene, match: Match) -> np.ndarray:
    """(K,) AP50 in percent; NaN for a class without objects."""
    counted = scene.by_score[~match.in_region[scene.by_score]]
    ap = average_precisions(match.partner[counted] >= 0, scene.found.classes[counted], scene.counts)
    return np.where(scene.counts > 0, ap, np.nan)


def mean_ap(scene: Scene, match: Match, errors: Errors, mended: str = "", chosen: np.ndarray | None = None) -> float:
    """AP50 in percent, mean over the classes that have objects, with the errors of one kind mended; NaN without
    objects.

    Args:
        mended: one of ``KINDS``; empty: none.
        chosen: (M,) of "missed" only these.
    """
    counts = scene.counts
    keep, right, classes = ~match.in_region, match.partner >= 0, scene.found.classes
    if mended == "missed":
        gone = errors.missed if chosen is None else errors.missed & chosen
        counts = counts - np.bincount(scene.objects.classes[gone], minlength=len(counts))
    elif mended:
        of_kind = errors.kind == _NUMBERS[mended]
        turned = of_kind & (errors.mends >= 0)
        keep, right = keep & (~of_kind | turned), right | turned
        classes = np.where(turned, scene.objects.classes[errors.mends], classes) if turned.any() else classes
    kept = scene.by_score[keep[scene.by_score]]
    precision = average_precisions(right[kept], classes[kept], counts)
    # A class whose objects were all missed leaves the mean, unless it has false detections.
    left = (scene.counts > 0) & ((counts > 0) | (np.bincount(classes[kept], minlength=len(counts)) > 0))
    if not left.any():
        return 100.0 if scene.counts.any() else float("nan")  # nothing is left to be found
    return float(precision[left].mean())


def costs(scene: Scene, match: Match, errors: Errors) -> dict[str, float]:
    """dAP of every kind, in points of AP50; never negative."""
    base = mean_ap(scene, match, errors)
    return {kind: max(mean_ap(scene, match, errors, kind) - base, 0.0) for kind in KINDS}
