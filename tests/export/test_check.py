# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Detections are compared as sets."""

import numpy as np
import pytest

from paq_detr.data import SyntheticCrowd
from paq_detr.export.check import Detections, Differences, Tolerance, read_inputs

TOLERANCE = Tolerance(0.1, 0.01)


def detections(count=200, seed=0):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 500, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 80, (count, 2))], 1)
    return Detections(random.integers(0, 3, count), boxes, np.sort(random.uniform(0, 1, count))[::-1])


def differences(theirs, ours=None):
    found = Differences()
    found.add(ours or detections(), theirs, TOLERANCE)
    return found


def test_order_does_not_matter_and_the_largest_difference_is_told():
    ours = detections()
    order = np.random.default_rng(1).permutation(200)
    boxes, scores = ours.boxes.copy(), ours.scores.copy()
    boxes[7, 2] += 0.05
    scores[9] -= 0.004
    found = differences(Detections(ours.labels[order], boxes[order], scores[order]))
    assert found.within() and found.alone == 0 and found.total == 200
    assert found.box == pytest.approx(0.05) and found.score == pytest.approx(0.004)


@pytest.mark.parametrize("replaced, within", [(2, True), (3, False)])
def test_one_detection_in_a_hundred_may_be_another(replaced, within):
    theirs = detections()
    theirs.boxes[:replaced] += 30
    found = differences(theirs)
    assert (found.alone, found.within()) == (replaced, within)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: Detections((d.labels + 1) % 3, d.boxes, d.scores),
        lambda d: Detections(d.labels, d.boxes, d.scores + 0.02),
        lambda d: Detections(d.labels, d.boxes + 0.2, d.scores),
        lambda d: Detections(d.labels, d.boxes * np.nan, d.scores),
        lambda d: Detections(d.labels[:150], d.boxes[:150], d.scores[:150]),
        lambda d: Detections(d.labels[:0], d.boxes[:0], d.scores[:0]),
    ],
)
def test_other_detections_are_not_within(change):
    assert not differences(change(detections())).within()


def test_nothing_found_by_both_is_the_same():
    empty = detections(0)
    assert differences(empty, empty).within()


def test_inputs_are_stretched_or_near_a_multiple_of_the_stride():
    url = SyntheticCrowd(height=100, width=200).url("val", 0)
    ((image,),) = read_inputs([url], "RGB", (64, 96), 32, dynamic=False)
    assert image.shape == (1, 3, 64, 96) and image.dtype == np.float32 and 0 <= image.min() < image.max() <= 1
    ((image, sizes),) = read_inputs([url], "L", (128, 128), 32, dynamic=True)
    assert image.shape == (1, 1, 96, 192) and sizes.tolist() == [[96, 192]]
