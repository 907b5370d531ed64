# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import csv
import json
import logging
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from paq_detr.evaluation import CocoBoxEvaluator

from .scenes import feed, instances

A, B, C = (10, 10, 60, 60), (100, 20, 160, 120), (200, 50, 280, 190)


def row_of_boxes(n):
    return [(2.0 * i, 10.0, 2.0 * i + 1.5, 60.0) for i in range(n)]


def test_perfect_detections_score_100(register_dataset):
    name = register_dataset([(1, [(0, A, 0), (1, B, 0)]), (2, [(0, C, 0)])], ("cat", "dog"))
    predictions = {1: instances([A, B], [0.9, 0.8], [0, 1]), 2: instances([C], [0.7], [0])}
    box = feed(CocoBoxEvaluator(name, 100), predictions)["bbox"]
    for metric in ("AP", "AP50", "AP75", "AR", "AP-cat", "AP-dog"):
        assert box[metric] == pytest.approx(100)
    assert "AP@100dets" not in box


def test_half_of_the_objects_found_gives_51_of_101_recall_points(register_dataset):
    name = register_dataset([(1, [(0, A, 0), (0, B, 0)])])
    box = feed(CocoBoxEvaluator(name, 100), {1: instances([A], [0.9])})["bbox"]
    assert box["AP"] == pytest.approx(100 * 51 / 101)
    assert box["AR"] == pytest.approx(50)


@pytest.mark.parametrize(
    "width, expected", [(62, (30, 100, 0)), (72, (50, 100, 0)), (77, (60, 100, 100)), (97, (100, 100, 100))]
)
def test_an_overlap_counts_at_the_thresholds_below_it(register_dataset, width, expected):
    name = register_dataset([(1, [(0, (0, 0, 100, 100), 0)])])
    box = feed(CocoBoxEvaluator(name, 100), {1: instances([(0, 0, width, 100)], [0.9])})["bbox"]
    assert (box["AP"], box["AP50"], box["AP75"]) == pytest.approx(expected)


def test_results_are_written_to_a_thousandth_of_a_pixel(register_dataset, tmp_path):
    name = register_dataset([(1, [(0, A, 0)])])
    feed(CocoBoxEvaluator(name, 100, str(tmp_path)), {1: instances([(10.12345, 20.5, 30.62345, 50.75)], [0.1234567])})
    (row,) = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert row == {"image_id": 1, "category_id": 0, "bbox": [10.123, 20.5, 20.5, 30.25], "score": 0.123457}


def test_sizes_are_reported_apart(register_dataset):
    small, medium, large = (0, 0, 20, 20), (50, 50, 100, 100), (120, 20, 280, 180)
    name = register_dataset([(1, [(0, small, 0), (0, medium, 0), (0, large, 0)])])
    box = feed(CocoBoxEvaluator(name, 100), {1: instances([small, large], [0.9, 0.8])})["bbox"]
    assert (box["APs"], box["APm"], box["APl"]) == pytest.approx((100, 0, 100))


def test_max_detections_caps_an_image(register_dataset):
    name = register_dataset([(1, [(0, A, 0), (0, B, 0), (0, C, 0)])])
    box = feed(CocoBoxEvaluator(name, 2), {1: instances([A, B, C], [0.9, 0.8, 0.7])})["bbox"]
    assert box["AR"] == pytest.approx(200 / 3)
    assert box["AP"] == pytest.approx(100 * 67 / 101)
    assert box["AP@100dets"] == pytest.approx(100)


def test_crowded_images_count_fully_and_the_published_cap_is_reported_beside(register_dataset):
    boxes = row_of_boxes(120)
    name = register_dataset([(1, [(0, b, 0) for b in boxes])])
    box = feed(CocoBoxEvaluator(name, 300), {1: instances(boxes, [0.9 - i / 1000 for i in range(120)])})["bbox"]
    assert box["AP"] == box["AR"] == pytest.approx(100)
    assert box["AP@100dets"] == pytest.approx(100 * 84 / 101)


def test_detections_in_a_crowd_region_are_neither_right_nor_wrong(register_dataset):
    name = register_dataset([(1, [(0, A, 0), (0, (100, 20, 300, 200), 1)])])
    in_crowd = (150, 50, 180, 90)
    box = feed(CocoBoxEvaluator(name, 100), {1: instances([in_crowd, in_crowd, A], [0.9, 0.8, 0.7])})["bbox"]
    assert box["AP"] == pytest.approx(100)


def test_category_ids_with_gaps_go_out_as_they_came_in(register_dataset, tmp_path):
    name = register_dataset(
        [("a", [(0, A, 0), (1, B, 0), (2, C, 0)])],
        ("last", "first", "middle"),
        thing_dataset_id_to_contiguous_id={90: 0, 1: 1, 7: 2},
    )
    prediction = instances([A, B], [0.9, 0.8], [0, 1])
    box = feed(CocoBoxEvaluator(name, 100, str(tmp_path)), {"a": prediction})["bbox"]
    assert (box["AP-last"], box["AP-first"], box["AP-middle"]) == pytest.approx((100, 100, 0))
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in written] == [
        ("a", 90, [10, 10, 50, 50]),
        ("a", 1, [100, 20, 60, 100]),
    ]


def test_per_class_table_is_logged_and_written(register_dataset, tmp_path, caplog):
    name = register_dataset([(1, [(0, A, 0), (0, B, 0), (1, C, 0), (1, A, 1)])], ("cat", "dog", "absent"))
    with caplog.at_level(logging.INFO, "paq_detr"):
        feed(CocoBoxEvaluator(name, 300, str(tmp_path)), {1: instances([A, C], [0.9, 0.8], [0, 1])})
    assert "| cat" in caplog.text and "| mean" in caplog.text
    with open(tmp_path / "per_class_ap.csv", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert rows["cat"] == {"class": "cat", "AP": "50.4950", "AP50": "50.4950", "AP75": "50.4950", "AR": "50.0000",
                           "boxes": "2"}  # fmt: skip
    assert rows["dog"]["AP"] == "100.0000" and rows["dog"]["boxes"] == "1"
    assert rows["absent"]["AP"] == "nan" and rows["absent"]["boxes"] == "0"
    assert rows["mean"]["AP"] == "75.2475" and rows["mean"]["boxes"] == "3"


def test_no_detections_give_0_with_a_warning(register_dataset, caplog):
    name = register_dataset([(1, [(0, A, 0)]), (2, [])])
    box = feed(CocoBoxEvaluator(name, 300), {1: instances([], []), 2: instances([], [])})["bbox"]
    assert box["AP"] == box["AR"] == box["AP@100dets"] == 0
    assert "no detections" in caplog.text


def test_non_finite_detections_are_counted_and_dropped(register_dataset, caplog):
    name = register_dataset([(1, [(0, A, 0)])])
    bad = [(float("nan"), 0, 1, 1), A, A]
    box = feed(CocoBoxEvaluator(name, 100), {1: instances(bad, [0.9, float("inf"), 0.5])})["bbox"]
    assert box["AP"] == pytest.approx(100)
    assert "2 detections with a NaN or infinite" in caplog.text


def test_images_that_were_not_predicted_are_named_in_a_warning(register_dataset, caplog):
    name = register_dataset([(1, [(0, A, 0)]), (2, [(0, A, 0)])])
    box = feed(CocoBoxEvaluator(name, 100), {1: instances([A], [0.9])})["bbox"]
    assert box["AR"] == pytest.approx(50)
    assert "1 of 2 images" in caplog.text


def test_unknown_image_and_class_are_refused(register_dataset):
    evaluator = CocoBoxEvaluator(register_dataset([(1, [(0, A, 0)])]), 100)
    with pytest.raises(ValueError, match="image_id 5 "):
        feed(evaluator, {5: instances([A], [0.9])})
    with pytest.raises(ValueError, match="predicted class 3"):
        feed(evaluator, {1: instances([A], [0.9], [3])})


# ---- annotation files ----


def coco_json(**changes):
    """A COCO json of two images and two classes with an object on the first image, 50 x 50 but of area 900."""
    annotation = {"id": 1, "image_id": 1, "category_id": 4, "bbox": [10, 10, 50, 50], "area": 900.0, "iscrowd": 0}
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 200, "width": 300} for i in (1, 2)],
        "annotations": [annotation],
        "categories": [{"id": 4, "name": "person"}, {"id": 2, "name": "dog"}],
        **changes,
    }


@pytest.fixture
def register_file(register_dataset, tmp_path):
    """Register a json's content, of which only the images are in the dicts; "person" comes first, its id is 4."""

    def register(content, images=(1, 2), **metadata):
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        ids = {"thing_dataset_id_to_contiguous_id": {4: 0, 2: 1}}
        return register_dataset([(i, []) for i in images], ("person", "dog"), json_file=str(path), **ids, **metadata)

    return register


def test_annotation_file_gives_the_object_sizes(register_file):
    box = feed(CocoBoxEvaluator(register_file(coco_json()), 100), {1: instances([A], [0.9])})["bbox"]
    assert (box["AP"], box["APs"]) == pytest.approx((100, 100))
    assert math.isnan(box["APm"])


def test_objects_of_images_that_are_not_registered_do_not_count(register_file):
    content = coco_json()
    content["annotations"].append({**content["annotations"][0], "id": 2, "image_id": 2})
    for images, recall in (((1, 2), 50), ((1,), 100)):
        box = feed(CocoBoxEvaluator(register_file(content, images), 100), {1: instances([A], [0.9])})["bbox"]
        assert box["AR"] == pytest.approx(recall)


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": ["10", "10", "50", "50.0"]},
        {"iscrowd": None},
        {"iscrowd": ""},
        {"iscrowd": False},
        {"iscrowd": "0", "area": "900"},
        {"category_id": "4"},
        {"image_id": "1"},
        {"image_id": 1.0, "category_id": 4.0},
        {"id": None},
        {"ignore": 0},
    ],
    ids=str,
)
def test_values_of_another_type_are_taken_as_what_they_mean(register_file, change):
    content = coco_json()
    content["annotations"][0].update(change)
    box = feed(CocoBoxEvaluator(register_file(content), 100), {1: instances([A], [0.9])})["bbox"]
    assert (box["AP"], box["AP-person"], box["APs"]) == pytest.approx((100, 100, 100))


@pytest.mark.parametrize(
    "change",
    [{"iscrowd": 1}, {"iscrowd": True}, {"iscrowd": "1"}, {"ignore": 1}, {"ignore": "true"}, {"bbox": [10, 10, 0, 50]},
     {"bbox": [300, 10, 20, 20]}, {"bbox": [10, -20, 20, 20]}],
    ids=str,
)  # fmt: skip
def test_regions_and_boxes_that_nothing_can_find_are_no_objects(register_file, change):
    content = coco_json()
    content["annotations"].append({**content["annotations"][0], "id": 2, **change})
    box = feed(CocoBoxEvaluator(register_file(content), 100), {1: instances([A], [0.9])})["bbox"]
    assert (box["AR"], box["AP"]) == pytest.approx((100, 100))


def test_a_file_without_area_has_the_boxes_own(register_file):
    for area in ({}, {"area": None}):
        content = coco_json()
        del content["annotations"][0]["area"]
        content["annotations"][0].update(area)
        box = feed(CocoBoxEvaluator(register_file(content), 100), {1: instances([A], [0.9])})["bbox"]
        assert box["APm"] == pytest.approx(100) and math.isnan(box["APs"])


def test_a_broken_file_is_said_with_file_id_key_and_value(register_file):
    content = coco_json()
    content["annotations"][0]["iscrowd"] = "perhaps"
    with pytest.raises(ValueError, match="annotations.json: the iscrowd of annotation 1 is 'perhaps', must be 0 or 1"):
        CocoBoxEvaluator(register_file(content), 100)


def test_classes_numbered_otherwise_are_told_apart_by_the_registered_map(register_file, tmp_path):
    content = coco_json()
    content["annotations"].append({"id": 2, "image_id": 2, "category_id": 2, "bbox": [100, 20, 60, 100]})
    predictions = {1: instances([A], [0.9], [0]), 2: instances([B, A], [0.9, 0.8], [1, 0])}
    box = feed(CocoBoxEvaluator(register_file(content), 100, str(tmp_path)), predictions)["bbox"]
    assert (box["AP-person"], box["AP-dog"]) == pytest.approx((100, 100))
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [row["category_id"] for row in written] == [4, 2, 4]


# ---- nothing to compare with ----


@pytest.mark.parametrize("told_by", ["the file", "the metadata", "the dicts"])
def test_a_test_set_without_annotations_gives_results_and_no_metrics(
    register_file, register_dataset, tmp_path, caplog, told_by
):
    without = coco_json()
    del without["annotations"]
    name = {
        "the file": lambda: register_file(without),
        "the metadata": lambda: register_file(coco_json(), annotated=False),
        "the dicts": lambda: register_dataset([(1, None), (2, None)]),
    }[told_by]()
    assert feed(CocoBoxEvaluator(name, 100, str(tmp_path)), {1: instances([A], [0.9])}) == {}
    (row,) = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert (row["image_id"], row["bbox"]) == (1, [10, 10, 50, 50])
    assert f"{name} has no annotations" in caplog.text and "no ground truth" not in caplog.text
    assert not (tmp_path / "per_class_ap.csv").exists()


@pytest.mark.parametrize("objects", [[], [(0, A, 1)]], ids=["nothing", "a region"])
def test_a_set_without_objects_has_nan_for_every_metric(register_dataset, tmp_path, caplog, objects):
    name = register_dataset([(1, objects), (2, [])], ("cat", "dog"))
    box = feed(CocoBoxEvaluator(name, 300, str(tmp_path)), {1: instances([A, B], [0.9, 0.8], [0, 1])})["bbox"]
    assert {"AP", "AP50", "APs", "AR", "AP@100dets", "AP-cat", "AP-dog"} <= box.keys()
    assert all(math.isnan(value) for value in box.values())
    assert f"{name} has no ground truth boxes: every metric is NaN" in caplog.text
    assert (tmp_path / "per_class_ap.csv").exists()


def test_a_category_beyond_the_classes_is_refused(register_dataset):
    name = register_dataset([("a", [(1, A, 0)])])
    with pytest.raises(ValueError, match="category_id 1 of an annotation of image 'a', but dataset .* has 1 classes"):
        CocoBoxEvaluator(name, 100)


# ---- masks ----


def with_masks(result, masks):
    result.pred_masks = torch.tensor(np.stack(masks))
    return result


def box_mask(x0, y0, x1, y1):
    mask = np.zeros((200, 300), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def polygon(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def test_masks_are_scored_beside_boxes(register_file, tmp_path, caplog):
    """The box is right; of the mask the upper 62 % are there."""
    content = coco_json()
    content["annotations"][0]["segmentation"] = polygon(10, 10, 60, 60)
    evaluator = CocoBoxEvaluator(register_file(content), 100, str(tmp_path), masks=True)
    with caplog.at_level(logging.INFO, "paq_detr"):
        results = feed(evaluator, {1: with_masks(instances([A], [0.9]), [box_mask(10, 10, 60, 41)])})
    assert (results["bbox"]["AP"], results["bbox"]["AP75"]) == pytest.approx((100, 100))
    assert (results["segm"]["AP50"], results["segm"]["AP75"], results["segm"]["AP-person"]) == pytest.approx(
        (100, 0, 30)
    )
    assert "mask AP50 |" in caplog.text
    with open(tmp_path / "per_class_ap.csv", newline="") as file:
        person = next(row for row in csv.DictReader(file) if row["class"] == "person")
    assert (person["AP"], person["mask AP"], person["boxes"]) == ("100.0000", "30.0000", "1")
    (row,) = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert row["segmentation"]["size"] == [200, 300]
    assert (rle.decode(row["segmentation"]) == box_mask(10, 10, 60, 41)).all()


def test_a_mask_in_a_crowd_is_neither_right_nor_wrong_and_a_crowd_may_have_its_box_alone(register_file):
    content = coco_json()
    first = content["annotations"][0]
    first["segmentation"] = polygon(10, 10, 60, 60)
    content["annotations"].append({**first, "id": 2, "iscrowd": 1, "bbox": [100, 100, 80, 80], "segmentation": None})
    found = with_masks(instances([(120, 120, 150, 150), A], [0.9, 0.8]), [box_mask(120, 120, 150, 150), box_mask(*A)])
    results = feed(CocoBoxEvaluator(register_file(content), 100, masks=True), {1: found})
    assert results["segm"]["AP"] == results["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("segmentation", [[], None, [[1, 2, 3]], {"size": [300, 200], "counts": [60000]}], ids=str)
def test_a_test_set_without_sound_segmentations_is_refused(register_file, register_dataset, segmentation):
    content = coco_json()
    content["annotations"][0]["segmentation"] = segmentation
    with pytest.raises(ValueError, match="annotations.json: .*annotation 1 "):
        CocoBoxEvaluator(register_file(content), 100, masks=True)
    with pytest.raises(ValueError, match="segmentation of an object on image 1"):
        CocoBoxEvaluator(register_dataset([(1, [(0, A, 0)])]), 100, masks=True)


def test_detections_without_masks_are_refused(register_file):
    content = coco_json()
    content["annotations"][0]["segmentation"] = polygon(10, 10, 60, 60)
    with pytest.raises(ValueError, match="no field pred_masks"):
        feed(CocoBoxEvaluator(register_file(content), 100, masks=True), {1: instances([A], [0.9])})
