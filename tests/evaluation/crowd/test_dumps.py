# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Detection dumps and annotations as other programs write them: taken where there is no doubt, else refused."""

import copy
import math

import pytest

from paq_detr.evaluation.crowd.cli import main

from . import reference
from .odgt_scenes import SIZE, A, B, mask, one_image, person, same, warnings

C, REGION = (200, 60, 60, 120), (150, 150, 40, 40)


def scene(coco=False):
    """Three persons and a region; four detections, one of them false. As a dump, or as a COCO results list."""
    annotations, dump = one_image(
        [person(*A), person(*B), person(*C), mask(*REGION)],
        [(A, 0.9), (B, 0.8), (C, 0.7), ((20, 150, 30, 30), 0.6)],
    )
    annotations[0].update(SIZE)
    if coco:
        dump = [{"image_id": "a", "category_id": 1, "bbox": d["box"], "score": d["score"]} for d in dump[0]["dtboxes"]]
    return annotations, dump


def entries(detections):
    return detections[0].get("dtboxes", detections)


# Each of these gives a change of the two files.


def boxes_as(read):
    """``read`` makes the numbers of every detection from its x, y, w, h."""

    def change(annotations, detections):
        for entry in entries(detections):
            key = "box" if "box" in entry else "bbox"
            entry[key] = read(*entry[key])

    return change


def true_boxes_as(read):
    def change(annotations, detections):
        for entry in annotations[0]["gtboxes"]:
            entry["fbox"] = read(*entry["fbox"])

    return change


def scores_as(read):
    def change(annotations, detections):
        for entry in entries(detections):
            entry["score"] = read(entry["score"])

    return change


def box(value):
    return lambda annotations, detections: entries(detections)[0].update(box=value, bbox=value)


def first(**values):
    return lambda annotations, detections: entries(detections)[0].update(values)


def truth(**values):
    return lambda annotations, detections: annotations[0]["gtboxes"][0].update(values)


def image(**values):
    return lambda annotations, detections: annotations[0].update(values)


# ---- what is meant is plain ----

SAME = {
    "boxes as texts": boxes_as(lambda *b: [str(v) for v in b]),
    "boxes as texts with decimals": boxes_as(lambda *b: [f" {v}.0 " for v in b]),
    "boxes as floats": boxes_as(lambda *b: [float(v) for v in b]),
    "scores as texts": scores_as(str),
    "one score as text": first(score="9e-1"),
    "true boxes as texts": truth(fbox=[str(v) for v in A]),
    "sizes as texts": image(height="200", width="300.0"),
    "no flags": truth(extra=None, head_attr=None),
    "null as flag": truth(extra={"ignore": None}),
    "false as flag": truth(extra={"ignore": False}),
    "text as flag": truth(extra={"ignore": "0"}),
    "unknown keys": first(tag=1, proposal_num=3, id=None),
}


@pytest.mark.parametrize("coco", [False, True], ids=["dump", "coco"])
@pytest.mark.parametrize("case", SAME)
def test_values_of_another_type_are_taken_as_what_they_mean(evaluate, case, coco):
    expected = evaluate(*scene(coco))
    assert expected["Recall"] == 1
    changed = scene(coco)
    SAME[case](*changed)
    assert same(evaluate(*changed), expected)


def own_truth(person_tag, region_tag, key="box"):
    boxes = [{key: list(b), "tag": person_tag} for b in (A, B, C)]
    return {"gtboxes": [*boxes, {key: list(REGION), "tag": region_tag}]}


@pytest.mark.parametrize(
    "values",
    [
        {"gtboxes": None},
        {"height": "200", "width": "300"},
        {"height": None, "width": None},
        own_truth(1, -1),
        own_truth("1", "-1"),
        own_truth("person", -1.0, "fbox"),
        own_truth("person", "mask", "fbox"),
    ],
    ids=lambda values: ",".join(values),
)
def test_a_dump_s_own_values_are_taken_as_what_they_mean(evaluate, values, caplog):
    expected = evaluate(*scene())
    annotations, dump = scene()
    dump[0].update(values)
    assert same(evaluate(annotations, dump), expected)
    assert warnings(caplog) == []


@pytest.mark.parametrize("nothing", [None, [], ""])
def test_an_image_whose_detections_are_null_or_empty_has_none(evaluate, nothing):
    annotations, dump = scene()
    dump[0]["dtboxes"] = nothing
    assert evaluate(annotations, dump)["Recall"] == 0


@pytest.mark.parametrize("annotated, detected", [(7, "7"), ("7", 7), ("7", "7"), (7, 7)])
def test_ids_that_are_numbers_and_texts_are_the_same(evaluate, annotated, detected):
    annotations, rows = scene(coco=True)
    annotations[0]["ID"] = annotated
    for row in rows:
        row["image_id"] = detected
    assert evaluate(annotations, rows)["Recall"] == 1


def test_scores_that_miss_the_ends_by_rounding_are_taken(evaluate):
    changed = scene()
    scores_as({0.9: 1.0000001, 0.8: 0.5, 0.7: 0.0, 0.6: -1e-9}.get)(*changed)
    assert evaluate(*changed)["Recall"] == 1


# ---- refused: a value that means nothing ----

FOUR = r"the '(box|bbox)' of entry 1 is %s, must be four"
BAD = {
    "a box with null": (box([1, 2, None, 4]), FOUR % r"\[1, 2, None, 4\]"),
    "a box with a bool": (box([1, 2, True, 4]), FOUR % r"\[1, 2, True, 4\]"),
    "a box in words": (box("1 2 3 4"), FOUR % "'1 2 3 4'"),
    "a box as object": (box({"x": 1}), FOUR % r"\{'x': 1\}"),
    "a nested box": (box([[1], 2, 3, 4]), FOUR % r"\[\[1\], 2, 3, 4\]"),
    "five numbers": (box([1, 2, 3, 4, 5]), FOUR % r"\[1, 2, 3, 4, 5\]"),
    "a box of nan": (box([1, 2, math.nan, 4]), FOUR % r"\[1, 2, nan, 4\]"),
    "a huge integer": (box([1, 2, 10**400, 4]), FOUR % r"\[1, 2, 10.*"),
    "a score of null": (first(score=None), "the 'score' of entry 1 is None, must be a number"),
    "a score of true": (first(score=True), "the 'score' of entry 1 is True, must be a number"),
    "a score in words": (first(score="high"), "the 'score' of entry 1 is 'high', must be a number"),
    "a score as list": (first(score=[0.9]), r"the 'score' of entry 1 is \[0.9\], must be a number"),
    "an infinite score": (first(score=math.inf), "the 'score' of entry 1 is inf, which is not finite"),
    "nan as text": (first(score="nan"), "the 'score' of entry 1 is 'nan', must be a number"),
    "a true box with null": (truth(fbox=[1, 2, 3, None]), r"line 1, .* 'fbox' of entry 1 is \[1, 2, 3, None\]"),
    "a true box of nan": (truth(fbox=[1, 2, 3, math.nan]), r"line 1, .* 'fbox' of entry 1 is \[1, 2, 3, nan\]"),
    "a size in words": (image(height="tall"), "line 1, image 'a': height 'tall' and width 300"),
    "a flag in words": (truth(extra={"ignore": "perhaps"}), "line 1, image 'a': 'extra.ignore' is 'perhaps'"),
}


@pytest.mark.parametrize("coco", [False, True], ids=["dump", "coco"])
@pytest.mark.parametrize("case", BAD)
def test_values_that_mean_nothing_are_said_with_image_entry_key_and_value(evaluate, case, coco):
    change, message = BAD[case]
    changed = scene(coco)
    change(*changed)
    with pytest.raises(ValueError, match=f"(gt.odgt|dt.json), .*image 'a'.*{message}|{message}") as caught:
        evaluate(*changed)
    assert "image 'a'" in str(caught.value)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"dtboxes": {"b": 1}}, r"dt.json, line 1, image 'a': 'dtboxes' is \{'b': 1\}, must be a list of objects"),
        ({"dtboxes": [[1, 2]]}, r"image 'a': entry 1 of 'dtboxes' is \[1, 2\], must be an object"),
        ({"gtboxes": "none"}, "image 'a': 'gtboxes' is 'none', must be a list of objects"),
        ({"gtboxes": [{"box": [1, 2, 3, 4], "tag": 2}]}, r"the tag of entry 1 is 2, must be 1 \(person\)"),
        ({"height": 0}, "image 'a': height 0 and width 300 are no image size"),
        ({"ID": True}, "dt.json, line 1: the ID True is no name"),
        ({"ID": 7.5}, "dt.json, line 1: the ID 7.5 is no name"),
        ({"ID": ""}, "dt.json, line 1: the ID '' is no name"),
    ],
)
def test_a_dump_s_broken_values_are_said_with_their_line(evaluate, values, message):
    annotations, dump = scene()
    dump[0].update(values)
    with pytest.raises(ValueError, match=message):
        evaluate(annotations, dump)


def test_an_annotation_file_in_place_of_detections_is_told_apart(evaluate):
    annotations, _ = scene()
    with pytest.raises(ValueError, match="dt.json, line 1: a COCO json with 'annotations'"):
        evaluate(annotations, {"images": [], "annotations": []})


# ---- refused: numbers that hardly mean what they seem to ----


def corners(x, y, w, h):
    return [x, y, x + w, y + h]


def centre(x, y, w, h):
    return [x + w / 2, y + h / 2, w, h]


def fraction(x, y, w, h):
    return [x / 300, y / 200, w / 300, h / 200]


def in_units(count):
    """``count`` of them are a side of the image."""
    return lambda *box: [count * value for value in fraction(*box)]


def from_the_far_corner(x, y, w, h):
    return [x + w, y + h, -w, -h]


PIXEL = r"%d of %d boxes \('(box|bbox|fbox)'\) lie within the first pixel: they are probably fractions of the image"
NEGATIVE = r"%d of %d boxes have a negative size, the first is '(box|bbox|fbox)' \[50.0, 110.0, -40.0, -100.0\] of the "
CORNERS = r"probably corners \[x0, y0, x1, y1\]"
CENTRES = r"probably \[centre x, centre y, width, height\]"
PERCENT = "scores are above 1, the first is 'score' %s of the image 'a'; they are probably percent"
ODD = {
    "percent": (scores_as(lambda s: 100 * s), f"4 of 4 {PERCENT % '90.0'}"),
    "one score above 1": (first(score=1.5), f"1 of 4 {PERCENT % '1.5'}"),
    "logits": (scores_as(lambda s: 200 * s), "4 of 4 scores are above 1, .*; they are probably logits"),
    "logits on both sides of 0": (scores_as(lambda s: 10 * s - 7.5), "1 of 4 scores are above 1, .* probably logits"),
    "negative scores": (scores_as(lambda s: s - 0.75), "2 of 4 scores are below 0, .* of the image 'a'"),
    "negative sizes": (boxes_as(from_the_far_corner), NEGATIVE % (4, 4)),
    "one negative width": (box([50, 10, -40, 100]), "1 of 4 boxes have a negative size, .* of the image 'a'"),
    "fractions": (boxes_as(fraction), PIXEL % (4, 4)),
    "fractions as corners": (boxes_as(lambda *b: corners(*fraction(*b))), r"corners .* in fractions of the image"),
    "corners": (boxes_as(corners), CORNERS),
    "centres": (boxes_as(centre), CENTRES),
    "percents": (boxes_as(in_units(100)), r"probably \[x, y, width, height\] in percents of the image"),
    "percents as corners": (boxes_as(lambda *b: corners(*in_units(100)(*b))), r"corners .* in percents of the image"),
    "thousandths": (boxes_as(in_units(1000)), r"probably \[x, y, width, height\] in thousandths of the image"),
    "x and y swapped": (boxes_as(lambda x, y, w, h: [y, x, h, w]), r"probably \[y, x, height, width\]"),
}


@pytest.mark.parametrize("coco", [False, True], ids=["dump", "coco"])
@pytest.mark.parametrize("case", ODD)
def test_implausible_detections_are_counted_with_the_likely_cause(evaluate, case, coco):
    change, message = ODD[case]
    changed = scene(coco)
    change(*changed)
    with pytest.raises(ValueError, match=f"dt.json.*{message}"):
        evaluate(*changed)


@pytest.mark.parametrize(
    "read, message",
    [(from_the_far_corner, NEGATIVE % (3, 3)), (fraction, PIXEL % (3, 3)), (corners, CORNERS), (centre, CENTRES)],
)
def test_implausible_annotations_are_counted_with_the_likely_cause(evaluate, read, message):
    changed = scene()
    true_boxes_as(read)(*changed)
    with pytest.raises(ValueError, match=f"gt.odgt.*{message}"):
        evaluate(*changed)


def test_detections_that_meet_nobody_get_a_warning(evaluate, caplog):
    annotations, detections = scene()
    boxes_as(lambda x, y, w, h: [x / 2, y / 2, w / 2, h / 2])(annotations, detections)
    evaluate(annotations, detections)
    assert "overlaps a person of" in caplog.text and "or of the same in another size" in caplog.text


def test_both_files_in_corners_are_told_where_the_images_have_sizes(evaluate):
    changed = scene()
    boxes_as(corners)(*changed)
    true_boxes_as(corners)(*changed)
    with pytest.raises(ValueError, match=f"2 of 4 boxes .* reach far outside their image: they are {CORNERS}"):
        evaluate(*changed)


@pytest.mark.parametrize("workers", [1, 3])
def test_counts_are_of_the_whole_file_and_the_first_is_the_first_annotated(evaluate, workers):
    annotations, dump = reference.random_scene(90)
    for record in dump:
        for entry in record["dtboxes"]:
            entry["score"] *= 100
    above = {record["ID"]: sum(e["score"] > 1 for e in record["dtboxes"]) for record in dump}
    total = sum(len(record["dtboxes"]) for record in dump)
    name = next(record["ID"] for record in annotations if above[record["ID"]])
    message = f"{sum(above.values())} of {total} scores are above 1, the first is 'score' .* of the image '{name}'"
    with pytest.raises(ValueError, match=message):
        evaluate(annotations, dump, workers=workers)


def test_unknown_images_are_counted_with_a_hint(evaluate):
    annotations, dump = scene()
    others = [{**copy.deepcopy(dump[0]), "ID": name} for name in ("images/a.jpg", "z")]
    message = (
        r"2 images of .*dt.json are not annotated in .*gt.odgt; the first: .*dt.json, line 2, 'images/a.jpg' \(an ID"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(annotations, dump + others)
    annotations, rows = scene(coco=True)
    with pytest.raises(ValueError, match="1 images of .*dt.json are not annotated in .*; the first: .*dt.json, 'b'$"):
        evaluate(annotations, [*rows, {**rows[0], "image_id": "b"}])


def test_images_that_come_twice_are_counted(evaluate):
    message = "dt.json holds 1 images more than once, the first is 'a'"
    annotations, dump = scene()
    with pytest.raises(ValueError, match=message):
        evaluate(annotations, dump * 3)
    annotations, rows = scene(coco=True)
    by_number = {**rows[0], "image_id": 1}  # the first image, whose detections are there by name already
    with pytest.raises(ValueError, match=message):
        evaluate(annotations, [*rows, by_number])


# ---- and what is right stays right ----


def test_poor_but_sound_detections_are_not_doubted(evaluate):
    far = [((250 - i, 20 + i, 20, 30), 0.5) for i in range(20)]
    assert evaluate(*one_image([person(*A), person(*B)], far))["Recall"] == 0


@pytest.mark.parametrize("detections", [[centre(*A)], [B, centre(*A), centre(*C)]], ids=["one of 3", "two against one"])
def test_a_few_persons_that_another_reading_meets_by_chance_are_no_doubt(evaluate, detections):
    annotations, dump = one_image([person(*A), person(*B), person(*C)], [(b, 0.9) for b in detections])
    assert evaluate(annotations, dump)["Recall"] == pytest.approx((len(detections) > 1) / 3)


def test_full_bodies_that_end_outside_the_image_are_not_doubted(evaluate):
    outside = [((x, 100, 60, 300), 0.9) for x in range(0, 280, 10)]
    assert evaluate(*one_image([person(*b) for b, _ in outside], outside))["Recall"] == 1


def test_ignore_regions_may_have_any_size(evaluate):
    annotations, dump = scene()
    annotations[0]["gtboxes"] += [mask(0, 0, -5, 0), person(5, 5, -3, 9, extra={"ignore": 1})]
    assert evaluate(annotations, dump)["Recall"] == 1


@pytest.mark.parametrize("tag", ["Person", 1, None, "rider"])
def test_tags_that_make_a_person_an_ignore_region_are_counted(evaluate, caplog, tag):
    annotations, dump = scene()
    annotations[0]["gtboxes"][0]["tag"] = tag
    assert evaluate(annotations, dump)["persons"] == 2
    (text,) = warnings(caplog)
    assert text.endswith(f"1 boxes have other tags than 'person' and 'mask' and are ignore regions: {tag!r}")


def test_the_command_refuses_with_one_sentence_and_exit_code_2(tmp_path, evaluate, capsys):
    changed = scene()
    scores_as(lambda score: 100 * score)(*changed)
    with pytest.raises(ValueError):
        evaluate(*changed)
    with pytest.raises(SystemExit) as end:
        main(["--gt", str(tmp_path / "gt.odgt"), "--dt", str(tmp_path / "dt.json"), "--workers", "1"])
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f": {tmp_path / 'dt.json'}: 4 of 4 scores are above 1" in error
