# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What to do next, by rules that the report states beside the sentence that follows from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .results import Analysis
from .strata import OVERLAPS, Group

LEAST_AP50 = 5.0  # below, kinds of errors mean little
LEAST_COST = 1.0  # points of AP50 that are worth a change
HALF = 0.5  # share of a loss from which it is named after one thing


@dataclass(frozen=True)
class Rule:
    """Of the rules the first one counts that gives a sentence."""

    condition: str
    sentence: Callable[[Analysis], str]  # "" where it does not apply


def what_to_do(analysis: Analysis) -> tuple[str, int]:
    """The sentence, and the place of its rule in ``RULES``."""
    for place, rule in enumerate(RULES):
        sentence = rule.sentence(analysis)
        if sentence:
            return sentence, place
    raise AssertionError("the last rule always applies")


def _worst(analysis: Analysis) -> str:
    return max(analysis.costs, key=analysis.costs.get)


def _no_objects(analysis: Analysis) -> str:
    return "" if analysis.scene.counts.any() else "There is nothing to find: the ground truth holds no object."


def _nothing_works(analysis: Analysis) -> str:
    if analysis.ap50 >= LEAST_AP50:
        return ""
    return (
        f"Hardly anything is found (AP50 {analysis.ap50:.1f}): see on the pictures below whether boxes and classes are "
        "where they should be, then train longer, or from weights that know similar objects (MODEL.WEIGHTS)."
    )


def _nothing_costs_much(analysis: Analysis) -> str:
    if max(analysis.costs.values()) >= LEAST_COST:
        return ""
    return (
        f"No kind of error costs more than {LEAST_COST:g} point of AP50: what is left to gain is in how tightly boxes "
        "fit (AP75 and AP), by larger images (INPUT.MIN_SIZE_TRAIN, INPUT.MIN_SIZE_TEST) or longer training."
    )


def _too_few_detections(analysis: Analysis) -> str:
    """Images that hold more objects than the model may detect."""
    scene, missed = analysis.scene, analysis.errors.missed
    if _worst(analysis) != "missed" or not missed.any():
        return ""
    images = len(scene.image_names)
    detections = np.bincount(scene.found.image, minlength=images)
    full = detections == detections.max()
    crowded = np.bincount(scene.objects.image[~scene.objects.ignored], minlength=images) > detections
    share = (full & crowded)[scene.objects.image[missed]].mean()
    if share < HALF or not detections.any():
        return ""
    return (
        f"{share:.0%} of the missed objects are in images that hold more objects than the {detections.max()} "
        "detections that they got: raise TEST.DETECTIONS_PER_IMAGE and MODEL.DETR.QUERIES.NUM."
    )


def _missed_of(aspect: str, chosen: Callable[[Group], bool], what: str, cure: str) -> Callable[[Analysis], str]:
    def sentence(analysis: Analysis) -> str:
        cost = analysis.costs["missed"]
        if _worst(analysis) != "missed":
            return ""
        groups = [(g, c) for g, c in zip(analysis.groups, analysis.missed_costs) if g.aspect == aspect and chosen(g)]
        member = np.any([g.member for g, _ in groups], axis=0) if groups else None
        if not groups or sum(c for _, c in groups) < HALF * cost:
            return ""
        missed, real = analysis.errors.missed, ~analysis.scene.objects.ignored
        rest = real & ~member
        if rest.any() and missed[member].mean() <= missed[rest].mean():
            return ""  # they are missed because there are many of them
        return f"Most AP50 is lost to missed objects ({cost:.1f} points), and most of these are {what}: {cure}."

    return sentence


def _confused(analysis: Analysis) -> str:
    if _worst(analysis) != "classification":
        return ""
    matrix = analysis.confusion[:-1, :-1].copy()
    np.fill_diagonal(matrix, 0)
    cost = f"Most AP50 is lost to wrong classes ({analysis.costs['classification']:.1f} points)"
    if not matrix.any():
        return f"{cost}: give the rarer classes more images, and see that their labels agree."
    row, column = np.unravel_index(int(matrix.argmax()), matrix.shape)
    names = analysis.scene.class_names
    return (
        f"{cost}, most often {names[row]} taken for {names[column]} ({matrix[row, column]} times): see that the labels "
        "of the two agree, give the rarer one more images, or make them one class."
    )


def _of_kind(kind: str, text: str) -> Callable[[Analysis], str]:
    def sentence(analysis: Analysis) -> str:
        return text.format(cost=analysis.costs[kind]) if _worst(analysis) == kind else ""

    return sentence


_MOST = f"missed objects cost most, at least {HALF:.0%} of that by"
_OFTENER = "which are missed oftener than the others"
RULES = (
    Rule("there are no objects", _no_objects),
    Rule(f"AP50 is below {LEAST_AP50:g}", _nothing_works),
    Rule(f"no kind of error costs {LEAST_COST:g} point of AP50", _nothing_costs_much),
    Rule(
        f"missed objects cost most, and {HALF:.0%} of them are in images that hold more objects than detections, as "
        "many as any image got",
        _too_few_detections,
    ),
    Rule(
        f"{_MOST} small ones, {_OFTENER}",
        _missed_of(
            "size",
            lambda group: group.name.startswith("small"),
            "small",
            "raise INPUT.MIN_SIZE_TEST, with INPUT.MIN_SIZE_TRAIN, or predict in tiles (paq-detr predict --tile)",
        ),
    ),
    Rule(
        f"{_MOST} objects that overlap another by an IoU over {OVERLAPS[2]:g}, {_OFTENER}",
        _missed_of(
            "crowdedness",
            lambda group: any(group.name.startswith(f"IoU {text}") for text in (f"{OVERLAPS[2]:g} to", "over")),
            "hidden in crowds",
            "train a config for crowds (configs/crowdhuman, or MODEL.DETR.DECODER.INTERACTION with dehomo) and see "
            "that MODEL.DETR.QUERIES.NUM is some times the number of objects in an image",
        ),
    ),
    Rule(
        f"{_MOST} objects that touch the border, {_OFTENER}",
        _missed_of(
            "border",
            lambda group: group.name.startswith("touches"),
            "cut off by the image's border",
            "train with crops (INPUT.CROP.ENABLED True), which cut objects off as well",
        ),
    ),
    Rule(
        "missed objects cost most otherwise",
        _of_kind(
            "missed",
            "Most AP50 is lost to missed objects ({cost:.1f} points), of no one size or place: train longer, or give "
            "the classes of low recall more images.",
        ),
    ),
    Rule("wrong classes cost most", _confused),
    Rule(
        "badly placed boxes cost most",
        _of_kind(
            "localisation",
            "Most AP50 is lost to badly placed boxes ({cost:.1f} points): see on the pictures whether the labels are "
            "tight, then raise INPUT.MIN_SIZE_TEST with INPUT.MIN_SIZE_TRAIN, or train longer.",
        ),
    ),
    Rule(
        "duplicates cost most",
        _of_kind(
            "duplicate",
            "Most AP50 is lost to objects that are detected twice ({cost:.1f} points): suppress them by "
            "MODEL.DETR.READ_OUT.NMS_IOU 0.7, or train longer.",
        ),
    ),
    Rule(
        "detections on background cost most",
        _of_kind(
            "background",
            "Most AP50 is lost to detections where no object is ({cost:.1f} points): see on the pictures whether these "
            "are objects that nobody labelled, and label them or mark them iscrowd; else add images that hold what is "
            "mistaken for objects.",
        ),
    ),
    Rule(
        "detections of a wrong class at a wrong place cost most",
        _of_kind(
            "both",
            "Most AP50 is lost to detections of a wrong class that are badly placed as well ({cost:.1f} points): train "
            "longer, and see that objects are labelled whole and by one rule.",
        ),
    ),
)
