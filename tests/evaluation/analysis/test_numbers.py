# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The arrays against loops, against pycocotools, and against the program of TIDE's authors."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from paq_detr.evaluation.analysis import analyse, scene
from paq_detr.evaluation.analysis.curves import curve
from paq_detr.evaluation.analysis.errors import _NUMBERS, KINDS, NOT_COUNTED, RIGHT
from paq_detr.evaluation.analysis.results import marks, worst_images
from paq_detr.evaluation.analysis.strata import crowdedness
from paq_detr.evaluation.coco_truth import in_memory_coco

from . import reference
from .reference import make_scene, random_scene

NAMES = {RIGHT: "right", NOT_COUNTED: "region", **{number: kind for kind, number in _NUMBERS.items()}}


@pytest.mark.parametrize("seed", range(6))
def test_partners_and_kinds_are_those_of_the_loops(seed, monkeypatch):
    monkeypatch.setattr(scene, "PAIRS_AT_ONCE", 7)  # many pieces
    made = random_scene(seed)
    found = analyse(made)
    partner, found_by, in_region = reference.match(made)
    assert found.match.partner.tolist() == partner and found.match.found_by.tolist() == found_by
    assert found.match.in_region.tolist() == in_region
    kinds, missed = reference.kinds(made)
    assert [NAMES[int(kind)] for kind in found.errors.kind] == kinds
    assert found.errors.missed.tolist() == missed
    assert {kind: found.errors.count(kind) for kind in KINDS} == {
        kind: sum(missed) if kind == "missed" else kinds.count(kind) for kind in KINDS
    }


def test_the_scenes_hold_every_kind():
    seen = {kind for seed in range(6) for kind in reference.kinds(random_scene(seed))[0]}
    assert seen == set(NAMES.values())


def coco_of(made, rows):
    return in_memory_coco([reference.SIZE] * len(made.image_names), range(len(made.class_names)), rows)


def xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def test_ap50_is_that_of_pycocotools():
    made = random_scene(3, images=30)
    o, f = made.objects, made.found
    truth = [
        {"image_id": i, "category_id": k, "bbox": xywh(b), "area": a, "iscrowd": int(c)}
        for b, k, i, a, c in zip(o.boxes_xyxy.tolist(), o.classes.tolist(), o.image.tolist(), o.areas, o.ignored)
    ]
    rows = [
        {"image_id": i, "category_id": k, "bbox": xywh(b), "area": 1.0, "iscrowd": 0, "score": s}
        for b, s, k, i in zip(f.boxes_xyxy.tolist(), f.scores.tolist(), f.classes.tolist(), f.image.tolist())
    ]
    evaluation = COCOeval(coco_of(made, truth), coco_of(made, rows), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    expected = 100 * evaluation.eval["precision"][0, :, :, 0, -1].mean(0)
    found = analyse(made)
    assert found.class_ap50 == pytest.approx(expected, abs=1e-9)
    assert found.ap50 == pytest.approx(expected.mean(), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_costs_are_those_of_the_authors_program(seed):
    tidecv = pytest.importorskip("tidecv", reason="needs pip install tidecv")
    made = random_scene(seed, images=40, regions=False)
    truth, detections = tidecv.Data("truth"), tidecv.Data("detections", max_dets=1000)
    for image, name in enumerate(made.image_names):  # it looks at no others, be there detections
        truth.add_image(image, name)
    o, f = made.objects, made.found
    for box, kind, image in zip(o.boxes_xyxy.tolist(), o.classes.tolist(), o.image.tolist()):
        truth.add_ground_truth(image, kind, xywh(box))
    for box, score, kind, image in zip(f.boxes_xyxy.tolist(), f.scores.tolist(), f.classes.tolist(), f.image.tolist()):
        detections.add_detection(image, kind, score, xywh(box))
    run = tidecv.TIDE().evaluate(truth, detections, mode=tidecv.TIDE.BOX)
    names = {"Cls": "classification", "Loc": "localisation", "Both": "both", "Dupe": "duplicate", "Bkg": "background"}
    names["Miss"] = "missed"
    expected = {names[error.short_name]: cost for error, cost in run.fix_main_errors().items()}
    counts = {names[error.short_name]: count for error, count in run.count_errors().items()}
    found = analyse(made)
    assert found.ap50 == pytest.approx(run.ap, abs=1e-9)
    assert {kind: found.errors.count(kind) for kind in KINDS} == counts
    assert found.costs == pytest.approx(expected, abs=1e-9)


def test_mending_gives_the_object_to_the_highest_score_and_takes_the_others_away():
    box, near = [10, 10, 60, 60], [40, 10, 90, 60]  # IoU 0.25
    made = make_scene(
        [(0, 0, box), (0, 1, [200, 100, 250, 150])],
        [(0, 0, near, 0.9), (0, 0, near, 0.8), (0, 1, box, 0.7), (0, 1, [200, 100, 250, 150], 0.6)],
    )
    found = analyse(made)
    # Class 0 has nothing right; the localisation error of 0.9 finds its object when mended. Class 1 then is as before:
    # its detection of 0.7, taken for a wrong class, stands before the right one.
    assert found.class_ap50.tolist() == [0, 50]
    assert found.costs["localisation"] == pytest.approx(50)
    # The object is claimed by the 0.9, so that mending the class takes the 0.7 away, and nothing finds class 0.
    assert found.costs["classification"] == pytest.approx(25)
    assert found.costs["missed"] == 0 and not found.errors.missed.any()


@pytest.mark.parametrize("seed", range(3))
def test_curves_have_the_values_of_a_count_at_every_score(seed):
    rng = np.random.default_rng(seed)
    scores, right = rng.integers(1, 9, 40) / 10, rng.random(40) < 0.4  # many are equal
    found = curve(scores, right, 25)
    assert found.score.tolist() == sorted(set(scores), reverse=True)
    for i, score in enumerate(found.score):
        true, shown = int((right & (scores >= score)).sum()), int((scores >= score).sum())
        expected = true / shown, true / 25, 2 * true / (shown + 25)
        assert (found.precision[i], found.recall[i], found.f1[i]) == pytest.approx(expected)
    assert found.best == found.f1.max() and found.at(found.threshold)[1] == found.recall[found.f1.argmax()]
    assert np.isnan(found.at(0.95)[0]) and found.at(0.95)[1] == 0


def test_the_confusion_counts_every_object_and_every_shown_detection_once():
    made = random_scene(4, images=30)
    found = analyse(made)
    shown = (made.found.scores >= found.score) & ~found.match.in_region
    matrix = found.confusion
    rest = matrix[:-1].sum(1) + 0
    assert rest.tolist() == made.counts.tolist()
    assert matrix[:, :-1].sum() == shown.sum() and matrix[-1, -1] == 0
    own = (found.match.partner >= 0) & shown
    assert matrix.diagonal()[:-1].tolist() == np.bincount(made.found.classes[own], minlength=3).tolist()


def test_a_detection_of_another_class_stands_in_its_object_s_row():
    box, far = [10, 10, 60, 60], [200, 100, 250, 150]
    made = make_scene([(0, 0, box), (0, 1, far)], [(0, 1, box, 0.9), (0, 0, [100, 10, 150, 60], 0.8), (0, 1, far, 0.7)])
    assert analyse(made).confusion.tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_groups_are_told_by_size_neighbours_and_border():
    made = make_scene(
        [
            (0, 0, [0, 50, 20, 70]),  # small, at the border
            (0, 0, [100, 50, 150, 100]),  # medium, crowded
            (0, 1, [110, 50, 160, 100]),  # IoU 2/3
            (0, 0, [100, 50, 150, 100], True),  # a region is no neighbour
            (1, 0, [50, 40, 250, 190]),  # large; its neighbour is in another image
        ],
        [(0, 0, [0, 50, 20, 70], 0.9), (0, 1, [110, 50, 160, 100], 0.1)],
        images=2,
    )
    assert crowdedness(made).tolist() == pytest.approx([0, 2 / 3, 2 / 3, 0, 0])
    found = analyse(made)
    assert found.score > 0.1 or found.score == pytest.approx(0.05)
    members = {group.name: np.flatnonzero(group.member).tolist() for group in found.groups}
    assert members == {
        "small (to 32² pixels)": [0],
        "medium (32² to 96²)": [1, 2],
        "large (over 96²)": [4],
        "alone (overlaps none)": [0, 4],
        "IoU over 0.6 with another": [1, 2],
        "inside the image": [1, 2, 4],
        "touches the border": [0],
    }
    assert [found.recall(group, score=False) for group in found.groups[:3]] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("seed", range(3))
def test_every_object_not_found_has_one_reason(seed):
    made = random_scene(seed, images=30)
    found = analyse(made)
    partner, found_by, _ = reference.match(made)
    o, f = made.objects, made.found
    expected = dict.fromkeys(found.reasons, 0)
    for g in range(len(o)):
        if o.ignored[g] or (found_by[g] >= 0 and f.scores[found_by[g]] >= found.score):
            continue
        near = [
            (iou, f.classes[d] == o.classes[g])
            for d in range(len(f))
            if f.image[d] == o.image[g] and (iou := reference.iou(f.boxes_xyxy[d], o.boxes_xyxy[g])) >= 0.1
        ]
        other = any(iou >= 0.5 and not same for iou, same in near)
        reason = "score" if found_by[g] >= 0 else "class" if other else "place" if near else "nothing"
        expected[reason] += 1
    assert found.reasons == expected


def test_the_worst_image_comes_first_and_its_marks_are_what_is_wrong_with_it():
    box = [10, 10, 60, 60]
    made = make_scene(
        [(0, 0, box), (1, 0, box), (1, 0, [100, 100, 150, 150]), (2, 0, box, True)],
        [(0, 0, box, 0.9), (1, 0, box, 0.9), (1, 0, box, 0.85), (1, 1, [200, 0, 240, 40], 0.8), (2, 0, box, 0.9)],
        images=3,
    )
    found = analyse(made)
    found.score = 0.5
    assert worst_images(found, 5) == [1]
    counts = {name: len(which) for name, which in marks(found, 1).items()}
    assert counts == {"region": 0, "right": 1, "duplicate": 1, "false": 1, "missed": 1}
    assert {name: len(which) for name, which in marks(found, 2).items() if len(which)} == {"region": 1}


@pytest.mark.parametrize(
    "objects, found, ap",
    [([], [], float("nan")), ([], [(0, 0, [0, 0, 9, 9], 0.5)], float("nan")), ([(0, 0, [0, 0, 9, 9])], [], 0.0)],
    ids=["nothing", "no objects", "no detections"],
)
def test_empty_scenes_are_analysed(objects, found, ap):
    result = analyse(make_scene(objects, found))
    assert result.ap50 == pytest.approx(ap, nan_ok=True) and result.score == 0.5
    assert result.costs["missed"] == pytest.approx(100.0 if objects else float("nan"), nan_ok=True)
