# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import csv
import math

import numpy as np
import pytest

from paq_detr.evaluation import QueryUseEvaluator, gini_coefficient

from ..figures import curves
from .scenes import feed, instances

BOX = (0, 0, 10, 10)


def seen(slots, scores):
    return instances([BOX] * len(slots), scores, query_indices=slots)


def naive_gini(x):
    """Mean absolute difference over twice the mean."""
    n = len(x)
    return sum(abs(a - b) for a in x for b in x) / (2 * n * sum(x))


def test_gini_of_equal_counts_is_0_and_of_one_user_n_minus_1_over_n():
    assert gini_coefficient(np.full(7, 3)) == pytest.approx(0)
    assert gini_coefficient(np.array([0, 0, 0, 0, 9])) == pytest.approx(4 / 5)


def test_gini_is_the_mean_absolute_difference():
    rng = np.random.default_rng(0)
    for n in (1, 2, 13):
        x = rng.integers(0, 6, n) + (n == 1)
        assert gini_coefficient(x) == pytest.approx(naive_gini(x.tolist()))


def test_never_active_slots_stay_in():
    assert gini_coefficient(np.array([0, 0, 4, 4])) == pytest.approx(0.5)
    assert gini_coefficient(np.array([4, 4])) == pytest.approx(0)


def test_gini_without_activations_is_nan():
    assert math.isnan(gini_coefficient(np.zeros(4)))


def test_a_slot_counts_once_per_image_by_its_best_detection(tmp_path):
    evaluator = QueryUseEvaluator(5, 0.25, str(tmp_path))
    use = feed(
        evaluator,
        {
            1: seen([0, 0, 3, 1], [0.9, 0.35, 0.3, 0.2]),  # slot 0 twice, slot 1 below every threshold
            2: seen([0, 3], [0.45, 0.26]),
            3: seen([], []),
        },
    )["query_use"]
    with open(tmp_path / "query_use.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["images_above_0.25"]) for r in rows] == [2, 0, 0, 2, 0]
    assert [int(r["images_above_0.3"]) for r in rows] == [2, 0, 0, 0, 0]  # float32(0.3) > 0.3, yet not above itself
    assert [int(r["images_above_0.5"]) for r in rows] == [1, 0, 0, 0, 0]
    assert use["active_slots@0.25"] == pytest.approx(4 / 3)
    assert use["gini@0.25"] == pytest.approx(naive_gini([2, 0, 0, 2, 0]))
    assert use["top20_share@0.25"] == pytest.approx(0.5)
    assert use["gini@0.5"] == pytest.approx(4 / 5)


def test_no_active_slot_at_all_is_nan_with_a_warning(tmp_path, caplog):
    use = feed(QueryUseEvaluator(4, 0.3, str(tmp_path)), {1: seen([2], [0.1])})["query_use"]
    assert math.isnan(use["gini@0.3"]) and use["active_slots@0.3"] == 0
    assert "no query scored above 0.3" in caplog.text


def test_missing_or_impossible_slots_are_refused():
    with pytest.raises(ValueError, match="query_indices"):
        feed(QueryUseEvaluator(4), {1: instances([BOX], [0.9])})
    with pytest.raises(ValueError, match="query_indices of image 1 go down to -1; slots count from 0"):
        feed(QueryUseEvaluator(4), {1: seen([-1], [0.9])})


def test_images_with_more_slots_than_the_model_names_enlarge_the_count(tmp_path):
    """As where the number of queries follows from the image."""
    images = {1: seen([0, 6], [0.9, 0.9]), 2: seen([0, 7], [0.9, 0.1]), 3: seen([1], [0.9])}
    use = feed(QueryUseEvaluator(4, 0.3, str(tmp_path)), images)["query_use"]
    counts = [2, 1, 0, 0, 0, 0, 1, 0]  # slot 7 was there, though never active
    assert use["gini@0.3"] == pytest.approx(naive_gini(counts))
    with open(tmp_path / "query_use.csv", newline="") as file:
        assert [int(row["images_above_0.3"]) for row in csv.DictReader(file)] == counts
    evaluator = QueryUseEvaluator(4, 0.3)
    feed(evaluator, images)
    assert feed(evaluator, {1: seen([0], [0.9])})["query_use"]["gini@0.3"] == pytest.approx(3 / 4)  # 4 again


def test_scores_that_are_not_finite_count_as_no_activity():
    use = feed(QueryUseEvaluator(2, 0.3), {1: seen([0, 0, 1], [math.inf, math.nan, 0.9])})["query_use"]
    assert use["active_slots@0.3"] == 1


def test_the_picture_shows_sorted_counts_and_the_lorenz_curve(tmp_path, figures):
    images = {1: seen([0, 1, 2], [0.9, 0.35, 0.45]), 2: seen([0, 2], [0.9, 0.35]), 3: seen([0], [0.9])}
    feed(QueryUseEvaluator(4, 0.3, str(tmp_path)), images)  # counts 3, 1, 2, 0 at 0.3; 3, 0, 1, 0 at 0.4; 3, 0, 0, 0
    figure = figures["query_use.png"]
    left, right = figure.axes
    ranks = [1, 2, 3, 4]
    assert curves(left) == {
        "T = 0.3": (ranks, [3, 2, 1, 0]), "T = 0.4": (ranks, [3, 1, 0, 0]), "T = 0.5": (ranks, [3, 0, 0, 0]),
    }  # fmt: skip
    lorenz = curves(right)
    shares = [0, 0.25, 0.5, 0.75, 1]
    assert lorenz.pop("all slots used alike") == ([0, 1], [0, 1])
    assert list(lorenz) == [
        "T = 0.3: Gini 0.417, 2.0 active", "T = 0.4: Gini 0.625, 1.3 active", "T = 0.5: Gini 0.750, 1.0 active",
    ]  # fmt: skip
    assert lorenz["T = 0.3: Gini 0.417, 2.0 active"] == (shares, pytest.approx([0, 0, 1 / 6, 3 / 6, 1]))
    assert lorenz["T = 0.5: Gini 0.750, 1.0 active"] == (shares, [0, 0, 0, 0, 1])
    assert figure.get_suptitle() == ("Query use: Gini 0.417 at T = 0.3, 2.0 of 4 slots active per image, 3 images")


def test_a_threshold_that_no_slot_passes_has_no_lorenz_curve(tmp_path, figures):
    feed(QueryUseEvaluator(4, 0.3, str(tmp_path)), {1: seen([2], [0.35])})
    left, right = figures["query_use.png"].axes
    assert len(left.lines) == 3 and list(curves(right)) == ["T = 0.3: Gini 0.750, 1.0 active", "all slots used alike"]
