# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From a scene to everything that a report shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .curves import Curve, confusion, curves_of
from .errors import DUPLICATE, NOT_COUNTED, RIGHT, Errors, ap_by_class, classify, costs, mean_ap
from .matching import Match, match
from .scene import Scene
from .strata import Group, found_from, groups_of, reasons


@dataclass
class Analysis:
    """AP and costs are points of AP50, 0 to 100; scores, precision, recall and F1 are from 0 to 1."""

    scene: Scene
    match: Match
    errors: Errors
    ap50: float  # mean over the classes that have objects; NaN without objects
    class_ap50: np.ndarray  # (K,) NaN for a class without objects
    overall: Curve
    classes: list[Curve]  # K
    score: float  # from which detections count below: that of the best F1 of all classes, 0.5 where there is none
    confusion: np.ndarray  # (K + 1, K + 1), see ``curves.confusion``
    costs: dict[str, float]  # dAP by kind of error
    groups: list[Group]
    missed_costs: list[float]  # dAP of the missed objects of each group alone
    found: np.ndarray  # (M,) bool objects that are found from ``score`` on
    reasons: dict[str, int]  # why the others are not

    def recall(self, group: Group, score: bool = True) -> float:
        """Of a group, from ``score`` on or at any score."""
        found = self.found if score else self.match.found_by >= 0
        return float(found[group.member].mean())


def analyse(scene: Scene) -> Analysis:
    """Takes some 2 seconds for 100,000 detections; deterministic."""
    matched = match(scene)
    errors = classify(scene, matched)
    overall, classes = curves_of(scene, matched)
    score = overall.threshold if math.isfinite(overall.threshold) else 0.5
    groups, base = groups_of(scene), mean_ap(scene, matched, errors)
    missed = [mean_ap(scene, matched, errors, "missed", group.member) - base for group in groups]
    return Analysis(
        scene=scene,
        match=matched,
        errors=errors,
        ap50=base,
        class_ap50=ap_by_class(scene, matched),
        overall=overall,
        classes=classes,
        score=score,
        confusion=confusion(scene, matched, score),
        costs=costs(scene, matched, errors),
        groups=groups,
        missed_costs=[max(cost, 0.0) for cost in missed],
        found=found_from(scene, matched, score),
        reasons=reasons(scene, matched, score),
    )


def worst_images(analysis: Analysis, count: int) -> list[int]:
    """The images with the most faults from ``score`` on (missed objects, false and duplicate detections), most first;
    none without a fault."""
    scene, kinds = analysis.scene, analysis.errors.kind
    wrong = (kinds != RIGHT) & (kinds != NOT_COUNTED) & (scene.found.scores >= analysis.score)
    missed = ~scene.objects.ignored & ~analysis.found
    images = len(scene.image_names)
    faults = np.bincount(scene.found.image[wrong], minlength=images)
    faults += np.bincount(scene.objects.image[missed], minlength=images)
    order = np.argsort(-faults, kind="stable")[:count]
    return [int(image) for image in order if faults[image]]


def marks(analysis: Analysis, image: int) -> dict[str, np.ndarray]:
    """What is to be drawn on an image: indices of its objects ("missed", "region") or detections ("false", "duplicate",
    "right")."""
    scene, kinds = analysis.scene, analysis.errors.kind
    first, last = np.searchsorted(scene.found.image, [image, image + 1])
    shown = np.arange(first, last)
    shown = shown[scene.found.scores[shown] >= analysis.score]
    kind = kinds[shown]
    false = (kind != RIGHT) & (kind != NOT_COUNTED) & (kind != DUPLICATE)
    first, last = np.searchsorted(scene.objects.image, [image, image + 1])
    own = np.arange(first, last)
    ignored = scene.objects.ignored[own]
    return {
        "region": own[ignored],
        "right": shown[kind == RIGHT],
        "duplicate": shown[kind == DUPLICATE],
        "false": shown[false],
        "missed": own[~ignored & ~analysis.found[own]],
    }
