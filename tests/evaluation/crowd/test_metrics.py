# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import numpy as np
import pytest

from paq_detr.evaluation.crowd.matching import box_iou, clip_boxes, match_by_weight
from paq_detr.evaluation.crowd.metrics import _bin as bin_of

from . import reference
from .odgt_scenes import SIZE, A, B, mask, one_image, person, same, warnings

METRICS = ("AP", "MR", "JI", "JI_threshold", "Recall")


def assert_equal(ours, loops):
    assert {m: ours[m] for m in METRICS} == pytest.approx({m: loops[m] for m in METRICS}, abs=1e-9, nan_ok=True)
    for letter in "knm":
        assert [line[letter] for line in ours["thresholds"]] == loops[letter]


# ---- against loops ----


@pytest.mark.parametrize("protocol", ["crowddet", "dh"])
@pytest.mark.parametrize("seed", range(6))
def test_equal_to_naive_loops_on_random_crowds(evaluate, seed, protocol):
    annotations, dump = reference.random_scene(seed)
    ours = evaluate(annotations, dump, protocol=protocol)
    assert_equal(ours, reference.evaluate(annotations, dump, protocol=protocol))
    assert 0.1 < ours["JI"] < ours["Recall"] <= 1  # the scene is no trivial one


@pytest.mark.parametrize("box", ["vbox", "hbox"])
def test_equal_to_naive_loops_for_visible_and_head_boxes(evaluate, box):
    annotations, dump = reference.random_scene(50)
    for record in dump:
        del record["gtboxes"]
    assert_equal(evaluate(annotations, dump, box=box), reference.evaluate(annotations, dump, box=box))


def test_equal_to_naive_loops_where_the_annotations_hold_another_size(evaluate):
    annotations, dump = reference.random_scene(51)
    for record in annotations:
        record.update(height=100, width=150)
    assert_equal(evaluate(annotations, dump), reference.evaluate(annotations, dump))


OTHER_TRUTHS = {
    "one box less": lambda record: record["gtboxes"].pop(),
    "a moved box": lambda record: record["gtboxes"][0].update(box=[1, 2, 70, 80]),
    "another tag": lambda record: record["gtboxes"][0].update(tag=-record["gtboxes"][0]["tag"]),
    "another size": lambda record: record.update(height=60, width=60),
}


@pytest.mark.parametrize("case", OTHER_TRUTHS)
def test_equal_to_naive_loops_where_the_dump_has_a_ground_truth_of_its_own(evaluate, caplog, case):
    annotations, dump = reference.random_scene(52)
    annotations = [{**record, "height": 120, "width": 200} for record in annotations]
    crowded = [record for record in dump if len(record["gtboxes"]) > 5]
    for record in crowded:
        OTHER_TRUTHS[case](record)
    assert_equal(evaluate(annotations, dump), reference.evaluate(annotations, dump))
    (text,) = warnings(caplog)
    first = min((record["ID"] for record in crowded), key=lambda name: int(name.split(",")[0]))
    assert f"in {len(crowded)} images, the first of which is {first!r}; as published, JI goes by it" in text
    caplog.clear()
    evaluate(annotations, dump, protocol="dh")
    assert warnings(caplog) == []


def test_a_rounded_clipped_and_shuffled_copy_of_the_ground_truth_is_no_other_one(evaluate, caplog):
    truth = [person(20.04, 10.16, 40.04, 100.04), person(-30, 50, 60, 500), mask(*B)]
    annotations, dump = one_image(truth, [(A, 0.9)])
    boxes = [[0, 50, 30, 150], [20.0, 10.2, 40.0, 100.0], list(B)]
    dump[0]["gtboxes"] = [{"box": box, "tag": tag} for box, tag in zip(boxes, (1, 1, -1), strict=True)]
    evaluate(annotations, dump)
    assert warnings(caplog) == []
    boxes[1][2] += 0.3
    evaluate(annotations, dump)
    assert len(warnings(caplog)) == 1


def test_equal_to_naive_loops_with_images_that_have_no_record(evaluate, caplog):
    annotations, dump = reference.random_scene(53)
    sized = [{**record, "height": 120, "width": 200} for record in annotations]
    assert_equal(evaluate(sized, dump[:30]), reference.evaluate(sized, dump[:30]))
    assert "no detections for 10 of 40" in caplog.text


@pytest.mark.parametrize("count_first", [False, True])
def test_peeled_matching_weighs_as_much_as_the_best_of_all_matchings(count_first):
    rng = np.random.default_rng(4)
    for _ in range(200):
        weights = np.where(rng.random((4, 5)) < 0.45, rng.uniform(0.5, 1, (4, 5)).round(2) + 9 * count_first, 0)
        best = max(sum(weights[p, d] for p, d in enumerate(ds)) for ds in itertools.permutations(range(5), 4))
        person, detection = np.nonzero(weights)
        order = np.argsort(-weights[person, detection])
        person, detection = person[order], detection[order]
        weight = weights[person, detection]
        chosen = match_by_weight(person, detection, weight, np.zeros_like(person))
        assert weight[chosen].sum() == pytest.approx(best)
        assert len(set(person[chosen])) == len(set(detection[chosen])) == len(chosen)


# ---- golden cases: numbers that CrowdDet's own program gave ----

PERSONS = [
    (1330, 317, 418, 1338),
    (792, 24, 723, 2017),
    (693, 291, 307, 894),
    (522, 290, 285, 826),
    (728, 336, 175, 602),
    (92, 337, 267, 681),
]
GOLDEN_TRUTH = [person(*box) for box in PERSONS] + [mask(1387, 353, 320, 285)]
DOUBLE, ABSORBED, FALSE = ((523, 292, 285, 826), 0.78), ((1400, 360, 300, 270), 0.97), ((1100, 1300, 100, 200), 0.4)
RANKED = list(zip(PERSONS, (0.95, 0.9, 0.85, 0.8, 0.75, 0.7), strict=True))


@pytest.mark.parametrize(
    "detections, expected, jaccard",
    [
        ([(box, 1.0) for box in PERSONS], (0.833333, 0.0, 1.0, 1.0), [1.0] * 10),
        (
            [*RANKED, DOUBLE, ABSORBED, FALSE],
            (0.776984, 0.333333, 0.857143, 1.0),
            [0.75] * 4 + [0.8571] * 3 + [0.7143, 0.5, 0.1667],
        ),
        (
            [*RANKED[:5], DOUBLE, ABSORBED, FALSE],
            (0.636111, 0.333333, 0.714286, 0.833333),
            [0.625] * 4 + [0.7143] * 4 + [0.5, 0.1667],
        ),
    ],
)
def test_golden_cases(evaluate, detections, expected, jaccard):
    annotations, dump = one_image(GOLDEN_TRUTH, detections)
    dump[0].update(height=1640, width=1640)
    ours = evaluate(annotations, dump)
    assert [ours[m] for m in ("AP", "MR", "JI", "Recall")] == pytest.approx(expected, abs=2e-6)
    assert [line["JI"] for line in ours["thresholds"]] == pytest.approx(jaccard, abs=5e-5)


# ---- by hand ----


def counts(summary, threshold=0.0):
    line = next(line for line in summary["thresholds"] if line["threshold"] == threshold)
    return line["k"], line["n"], line["m"]


def test_perfect_detections_miss_one_step_of_ap(evaluate):
    ours = evaluate(*one_image([person(*A), person(*B)], [(A, 0.9), (B, 0.8)]))
    assert (ours["AP"], ours["MR"], ours["Recall"]) == (0.5, 0.0, 1.0)
    assert ours["JI"] == 2 / (2 + 1e-6) and ours["JI_threshold"] == 0.0


def test_half_an_overlap_is_not_enough(evaluate):
    half = (10, 10, 40, 50)  # IoU with A is 0.5
    ours = evaluate(*one_image([person(*A)], [(half, 0.9)]))
    assert ours["Recall"] == 0 and counts(ours) == (0, 1, 1)
    ours = evaluate(*one_image([mask(*half), person(*B)], [(A, 0.9), (B, 0.8)]))  # IoA of A is 0.5
    assert ours["AP"] == 1 * (1 / 2 + 0) / 2 and counts(ours) == (1, 2, 1)


# The detection covers a person of 40 x 100 by half and lies inside it: IoU = 2000 / (4000 + 1e-6), just below 0.5.
HALF = (10, 10, 40, 50)
FAR = (250, 150, 20, 20)


@pytest.mark.parametrize(
    "persons, detections, k",
    [
        ([A], [(HALF, 0.9)], 1),  # one person, one detection
        ([A], [(HALF, 0.9), (FAR, 0.9)], 1),  # one person
        ([A, B], [(HALF, 0.9)], 1),  # one detection
        ([A, B], [(HALF, 0.9), (FAR, 0.15)], 1),  # one detection above 0.2, two at first
        ([A, B], [(HALF, 0.9), (FAR, 0.9)], 0),  # two and two: not below 0.5
        ([A, B], [(A, 0.9), (HALF, 0.8), (B, 0.7)], 2),  # nor may the lax comparison match a third time
    ],
)
def test_dh_takes_half_an_overlap_only_where_one_box_stands_alone(evaluate, persons, detections, k):
    records = one_image([person(*box) for box in persons], detections)
    assert counts(evaluate(*records, protocol="dh"), 0.2)[0] == k
    assert_equal(evaluate(*records, protocol="dh"), reference.evaluate(*records, protocol="dh"))
    assert_equal(evaluate(*records), reference.evaluate(*records))


def test_the_slack_of_dh_ends_at_a_ten_millionth(evaluate):
    for width, k in ((39.9999999, 1), (39.999, 0)):  # IoU 0.5 - 1.5e-9 and 0.5 - 1.2e-5
        records = one_image([person(*A)], [((10, 10, width, 50), 0.9)])
        assert counts(evaluate(*records, protocol="dh"), 0.1)[0] == k
        assert counts(evaluate(*records), 0.1)[0] == 0
    two = one_image([person(*A), person(*B)], [((10, 10, 39.9999999, 50), 0.9), (FAR, 0.15)])
    lines = evaluate(*two, protocol="dh")["thresholds"]
    assert [line["k"] for line in lines[:2]] == [0, 1]  # alone from the threshold on that leaves one detection


def test_a_region_absorbs_any_number_of_detections(evaluate):
    ours = evaluate(*one_image([mask(0, 0, 300, 200), person(*A)], [(A, 0.5), (B, 0.4)] + [(B, 0.9)] * 8))
    assert (ours["Recall"], ours["MR"]) == (1.0, 0.0)
    assert counts(ours) == (1, 1, 1)


def test_a_second_detection_of_a_person_vanishes_only_where_a_region_covers_it(evaluate):
    detections = [(A, 0.9), (A, 0.8), (B, 0.7), (B, 0.6)]
    ours = evaluate(*one_image([person(*A), person(*B), mask(90, 0, 100, 150)], detections))
    assert ours["AP"] == pytest.approx(0.5 * (2 / 3 + 1 / 2) / 2)
    assert counts(ours) == (2, 3, 2)


def test_a_missed_person_in_a_region_is_forgiven_by_ji_alone(evaluate):
    ours = evaluate(*one_image([person(*A), person(*B), mask(90, 0, 100, 150)], [(A, 0.9)]))
    assert ours["Recall"] == 0.5 and counts(ours) == (1, 1, 1)


def test_an_ignored_person_and_a_mask_without_a_flag_are_regions(evaluate):
    truth = [person(*A), person(*B, extra={"ignore": 1}), mask(200, 10, 40, 100)]
    ours = evaluate(*one_image(truth, [(B, 0.9), ((200, 10, 40, 100), 0.8), (A, 0.7)]))
    assert (ours["persons"], ours["Recall"], ours["MR"]) == (1, 1.0, 0.0)


def test_heads_are_ignored_by_their_own_flag(evaluate):
    annotations, dump = one_image([person(*A, head_attr={"ignore": 1}), person(*B)], [(B, 0.9)], key="hbox")
    assert evaluate(annotations, dump, box="hbox")["persons"] == 1
    annotations, dump = one_image([person(*A, head_attr={"ignore": 1}), person(*B)], [(B, 0.9)])
    assert evaluate(annotations, dump)["persons"] == 2


def test_two_heavy_pairs_beat_three_light_ones_unless_dh_counts(evaluate):
    """d1 p1 d2 p2 d3 p3 stand in a row; neighbours overlap by 0.515, 0.961, 0.515, 0.961 and 0.515."""
    d1, p1, d2, p2, d3, p3 = ((x, 0, 100, 100) for x in (0, 32, 34, 66, 68, 100))
    records = one_image([person(*p) for p in (p1, p2, p3)], [(d1, 0.9), (d2, 0.9), (d3, 0.9)])
    assert counts(evaluate(*records), 0.1) == (2, 3, 3)
    assert counts(evaluate(*records, protocol="dh"), 0.1) == (3, 3, 3)
    assert evaluate(*records)["Recall"] == 1


def test_boxes_right_of_the_image_match_and_left_of_it_never(evaluate):
    right, left = (310, 20, 40, 100), (-80, 20, 40, 100)
    ours = evaluate(*one_image([person(*right), person(*left)], [((400, 20, 10, 100), 0.9), (left, 0.8)]))
    assert ours["Recall"] == 0.5


def test_clipping_keeps_its_asymmetry():
    clipped = clip_boxes(np.array([[400.0, -5, 500, 900], [-90, 10, -50, 20]]), (200, 300))
    assert clipped.tolist() == [[299, 0, 300, 200], [0, 10, 0, 20]]


def test_scores_on_a_threshold_are_out_and_score_0_never_counts_in_ji(evaluate):
    ours = evaluate(*one_image([person(*A), person(*B)], [(A, 0.5), (B, 0.0)]))
    assert ours["Recall"] == 1
    assert counts(ours, 0.0) == counts(ours, 0.4) == (1, 1, 2)
    assert counts(ours, 0.5) == (0, 0, 2)


def test_mr_takes_the_row_of_the_false_positive_that_reaches_a_reference(evaluate):
    """One image, three persons: every reference is reached by the first false positive."""
    truth = [person(*A), person(*B), person(200, 10, 40, 100)]
    far = (250, 150, 20, 20)
    ours = evaluate(*one_image(truth, [(A, 0.9), (far, 0.8), (B, 0.7)]))
    assert ours["MR"] == pytest.approx(2 / 3)
    assert evaluate(*one_image(truth, [(A, 0.9), (B, 0.8)]))["MR"] == pytest.approx(1 / 3)  # the last row stands in


def test_references_are_the_rounded_ones(evaluate):
    """At 10,000 images 0.0316 is reached by false positive 316; the power 10^-1.5 would need 317."""
    annotations = [{"ID": i, **SIZE, "gtboxes": []} for i in range(10_000)]
    annotations[0]["gtboxes"] = [person(*A), person(*B)]
    false = [{"box": [250, 150, 20, 20], "score": 0.9} for _ in range(316)]
    dump = [{"ID": 0, "dtboxes": [*false, {"box": list(A), "score": 0.8}]}]
    assert evaluate(annotations, dump)["MR"] == pytest.approx(math.exp(6 * math.log(0.5) / 9))


def test_nothing_detected_and_nothing_to_detect(evaluate):
    ours = evaluate(*one_image([person(*A)], []))
    assert (ours["AP"], ours["Recall"], ours["JI"]) == (0, 0, 0) and math.isnan(ours["MR"])
    ours = evaluate(*one_image([mask(*A)], [(B, 0.9)]))
    assert all(math.isnan(ours[m]) for m in ("AP", "MR", "Recall")) and ours["JI"] == 0
    ours = evaluate(*one_image([], []))
    assert math.isnan(ours["JI"])


def test_dh_does_not_look_at_regions_of_an_image_without_a_person(evaluate):
    annotations, dump = one_image([mask(0, 0, 300, 200)], [(B, 0.9), (B, 0.85)])
    annotations.append({"ID": "b", "gtboxes": [person(*A)]})
    dump.append({"ID": "b", **SIZE, "dtboxes": [{"box": list(A), "score": 0.8}, {"box": list(A), "score": 0.04}]})
    assert evaluate(annotations, dump)["MR"] == 0
    assert evaluate(annotations, dump, protocol="dh")["MR"] == 1  # one false positive per image before the true one


# ---- invariants ----


def test_order_of_records_and_number_of_processes_do_not_matter(evaluate):
    annotations, dump = reference.random_scene(60)
    alone = evaluate(annotations, dump)
    assert same(evaluate(annotations, dump[::-1]), alone)
    assert same(evaluate(annotations, dump, workers=3), alone)


def test_bounds_that_hold_on_any_data(evaluate):
    lines = evaluate(*reference.random_scene(61))["thresholds"]
    for line in lines:
        assert line["k"] <= min(line["n"], line["m"])
    assert all(low["m"] >= high["m"] for low, high in itertools.pairwise(lines))


def test_groups_by_crowdedness_hold_every_person_once(evaluate):
    ours = evaluate(*reference.random_scene(62))
    assert sum(g["persons"] for g in ours["by_image_crowdedness"].values()) == ours["persons"]
    assert sum(g["persons"] for g in ours["by_person_crowdedness"].values()) == ours["persons"]
    found = sum(g["persons"] * g["Recall"] for g in ours["by_person_crowdedness"].values())
    assert found / ours["persons"] == pytest.approx(ours["Recall"])


def test_crowdedness_is_the_largest_overlap_with_another_person(evaluate):
    close = (20, 10, 40, 100)  # IoU 0.6 with A
    ours = evaluate(*one_image([person(*A), person(*close), person(*B)], [(A, 0.9), (A, 0.8), (B, 0.7)]))
    assert ours["by_person_crowdedness"] == {
        "0.0": {"persons": 1, "Recall": 1.0, "duplicates": 0.0},
        "0.5": {"persons": 2, "Recall": 1.0, "duplicates": 0.0},  # 0.6 less the epsilon of the overlap
    }
    assert list(ours["by_image_crowdedness"]) == ["0.3"]
    assert bin_of(np.array([0, 0.1, 0.3, 0.6, 0.7, 1, math.nan])).tolist() == [0, 1, 3, 6, 6, 6, -1]
    doubles = evaluate(*one_image([person(*A), person(*B)], [(A, 0.9), (A, 0.8), (A, 0.7), (B, 0.95)]))
    assert doubles["JI_threshold"] == 0.8 and doubles["by_person_crowdedness"]["0.0"]["duplicates"] == 0
    iou = box_iou(np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 0, 2, 2], [2, 2, 3, 3]]))
    assert iou.tolist() == [[4 / (4 + 1e-6), 0]]
