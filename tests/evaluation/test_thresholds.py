# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The score from which detections are worth showing."""

import json
import math

import numpy as np
import pytest

from paq_detr.evaluation import CocoBoxEvaluator, CrowdHumanEvaluator
from paq_detr.evaluation.thresholds import best_f1, read_thresholds

from .scenes import feed, instances

A, B, C, D = (10, 10, 60, 60), (100, 20, 160, 120), (200, 50, 280, 190), (0, 150, 40, 190)


@pytest.mark.parametrize(
    "scores, is_true, objects, threshold, value",
    [
        ([0.9, 0.8, 0.3], [1, 1, 0], 2, 0.55, 1.0),
        ([0.3, 0.9, 0.8], [0, 1, 1], 2, 0.55, 1.0),  # whatever the order
        ([0.9, 0.6, 0.6, 0.2], [1, 0, 1, 0], 2, 0.4, 0.8),  # equal scores stand or fall together
        ([0.6, 0.6], [1, 0], 1, 0.3, 2 / 3),
        ([0.8], [1], 3, 0.4, 0.5),  # nothing below: half of it
        ([0.8], [0], 3, math.nan, 0.0),
        ([], [], 3, math.nan, 0.0),
    ],
)
def test_the_best_f1_by_hand(scores, is_true, objects, threshold, value):
    found = best_f1(np.array(scores), np.array(is_true, dtype=bool), objects)
    assert found == pytest.approx((threshold, value), nan_ok=True)


def test_the_best_f1_is_that_of_a_loop_over_all_thresholds():
    random = np.random.RandomState(3)
    scores, is_true = random.rand(200).round(2), random.rand(200) < 0.5
    threshold, value = best_f1(scores, is_true, 150)

    def f1(t):
        chosen = scores >= t
        return 2 * (chosen & is_true).sum() / (chosen.sum() + 150)

    assert value == pytest.approx(max(map(f1, np.unique(scores)))) and f1(threshold) == pytest.approx(value)


def stored(folder, name):
    return json.loads((folder / name).read_text())


def test_coco_evaluation_stores_the_threshold_of_all_classes_and_of_each(register_dataset, tmp_path):
    region = (0, 0, 300, 8)
    name = register_dataset([(1, [(0, A, 0), (1, B, 0)]), (2, [(0, C, 0), (0, region, 1)])], ("cat", "dog"))
    predictions = {
        1: instances([A, B, D], [0.9, 0.5, 0.3], [0, 1, 0]),
        2: instances([C, (10, 0, 40, 6)], [0.6, 0.95], [0, 0]),  # the second one lies in the region
    }
    feed(CocoBoxEvaluator(name, 100, str(tmp_path)), predictions)
    found = stored(tmp_path, "f1_threshold.json")
    assert (found["threshold"], found["value"]) == pytest.approx((0.4, 1.0))
    assert found["classes"]["cat"]["threshold"] == pytest.approx(0.45)
    assert found["classes"]["dog"]["threshold"] == pytest.approx(0.25)


def test_a_file_of_an_earlier_evaluation_does_not_outlive_one_without_a_true_detection(register_dataset, tmp_path):
    evaluator = CocoBoxEvaluator(register_dataset([(1, [(0, A, 0)])]), 100, str(tmp_path))
    feed(evaluator, {1: instances([A], [0.9])})
    assert (tmp_path / "f1_threshold.json").exists()
    feed(evaluator, {1: instances([B], [0.9])})
    assert not (tmp_path / "f1_threshold.json").exists()


def test_crowd_evaluation_stores_the_threshold_of_the_best_ji(register_dataset, tmp_path):
    name = register_dataset([(1, [(0, A, 0), (0, B, 0)])])
    found = instances([A, B, C, D], [0.9, 0.65, 0.55, 0.25])
    feed(CrowdHumanEvaluator(name, str(tmp_path)), {1: found})
    assert stored(tmp_path, "ji_threshold.json")["threshold"] == 0.6


def test_of_several_classes_the_mean_ji_counts_and_a_class_without_objects_does_not(register_dataset, tmp_path):
    name = register_dataset([(1, [(0, A, 0), (1, B, 0)])], ("person", "dog", "absent"))
    found = instances([A, C, B, D, D], [0.55, 0.35, 0.75, 0.25, 0.95], [0, 0, 1, 1, 2])
    feed(CrowdHumanEvaluator(name, str(tmp_path)), {1: found})
    assert stored(tmp_path, "ji_threshold.json")["threshold"] == 0.4


def test_ji_counts_before_f1_and_a_broken_file_is_no_threshold(tmp_path):
    def write(dataset, name, text):
        (tmp_path / "inference" / dataset).mkdir(parents=True, exist_ok=True)
        (tmp_path / "inference" / dataset / name).write_text(text)

    assert read_thresholds(str(tmp_path)) == {}
    write("a", "f1_threshold.json", '{"threshold": 0.4, "metric": "F1", "value": 0.5}')
    write("b", "f1_threshold.json", '{"threshold": 0.3, "metric": "F1", "value": 0.5}')
    write("b", "ji_threshold.json", '{"threshold": 0.2, "metric": "JI", "value": 0.5}')
    write("c", "f1_threshold.json", "{")
    assert {name: found["threshold"] for name, found in read_thresholds(str(tmp_path)).items()} == {"a": 0.4, "b": 0.2}
