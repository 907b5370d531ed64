# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch.nn import functional as F

from paq_detr.layers import paired_giou, paired_iou
from paq_detr.modeling.assignment import FORBIDDEN, MatchCost
from paq_detr.modeling.losses import Matches
from paq_detr.papers.asag_targets import (
    AnchorQuality,
    AreaWeightedCost,
    QueryWeighting,
    area_factor,
    flipped_objects,
    objects_in,
    on_host,
    to_device,
)
from paq_detr.structures import Assignment, LayerOutput, Targets


def targets_of(*images, regions=()):
    """Objects (boxes) of each image, all of class 0 but every second of class 1."""
    boxes = torch.tensor([box for image in images for box in image]).view(-1, 4)
    image = torch.tensor([i for i, image in enumerate(images) for _ in image], dtype=torch.int64)
    return Targets(
        boxes=boxes,
        labels=torch.arange(len(boxes)) % 2,
        image=image,
        counts=tuple(len(image) for image in images),
        ignore_boxes=torch.tensor([box for _, box in regions]).view(-1, 4),
        ignore_image=torch.tensor([i for i, _ in regions], dtype=torch.int64),
    )


BOXES = [[0.2, 0.3, 0.1, 0.4], [0.5, 0.5, 0.3, 0.2], [0.9, 0.8, 0.2, 0.2]]


def test_on_host_every_object_is_of_one_class():
    targets = targets_of(BOXES[:1], [], BOXES[1:], regions=[(1, [0.5, 0.5, 0.2, 0.2])])
    host = on_host(targets)
    assert torch.equal(host.boxes, targets.boxes) and torch.equal(host.image, targets.image)
    assert host.labels.tolist() == [0, 0, 0]
    assert torch.equal(host.ignore_boxes, targets.ignore_boxes) and host.ignore_image.tolist() == [1]
    back = to_device(host, torch.device("cpu"))
    assert all(torch.equal(getattr(back, n), getattr(host, n)) for n in ("boxes", "labels", "image", "ignore_boxes"))


@pytest.mark.parametrize("whole", [False, True])
def test_the_objects_of_a_patch_are_those_of_the_loop(whole):
    torch.manual_seed(0)
    boxes = torch.cat([torch.rand(30, 2), torch.rand(30, 2) * 0.5], 1)
    targets = targets_of(boxes[:18].tolist(), [], boxes[18:].tolist(), regions=[(0, [0.3, 0.3, 0.4, 0.2])])
    image = torch.tensor([0, 0, 1, 2, 2])
    windows = torch.tensor(
        [[0.0, 0.0, 0.5, 0.5], [0.4, 0.1, 1.1, 0.9], [0, 0, 1, 1], [0, 0, 0.3, 0.3], [0.5, 0, 1, 0.5]]
    )
    found = objects_in(windows, image, targets, whole)
    expected, counts = [], []
    for i, (x0, y0, x1, y1) in zip(image.tolist(), windows.tolist()):
        counts.append(0)
        for box, of in zip(targets.boxes.tolist(), targets.image.tolist()):
            x, y, w, h = box
            if of != i or not (x0 <= x <= x1 and y0 <= y <= y1) or whole and (w > x1 - x0 or h > y1 - y0):
                continue
            left, right = max(x - w / 2, x0), min(x + w / 2, x1)
            top, bottom = max(y - h / 2, y0), min(y + h / 2, y1)
            width, height = x1 - x0, y1 - y0
            cx, cy = ((left + right) / 2 - x0) / width, ((top + bottom) / 2 - y0) / height
            expected.append([cx, cy, (right - left) / width, (bottom - top) / height])
            counts[-1] += 1
    assert found.counts == tuple(counts) and found.image.bincount(minlength=5).tolist() == counts
    torch.testing.assert_close(found.boxes, torch.tensor(expected), atol=1e-5, rtol=0)
    assert found.ignore_image.tolist() == [0, 1]  # image 0 has both
    torch.testing.assert_close(found.ignore_boxes[0], torch.tensor([0.6, 0.6, 0.8, 0.4]))


def test_an_object_on_the_border_belongs_to_both_sides():
    windows = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5]])
    targets = targets_of([[0.5, 0.2, 0.2, 0.2]])
    assert objects_in(windows, torch.zeros(2, dtype=torch.int64), targets, whole=False).counts == (1, 1)


def test_flips_of_the_whole_image():
    flipped = flipped_objects(targets_of([BOXES[0]], [], [BOXES[1]], regions=[(0, [0.1, 0.2, 0.1, 0.2])]))
    assert flipped.counts == (1,) * 4 + (0,) * 4 + (1,) * 4
    expected = [[0.2, 0.3, 0.1, 0.4], [0.8, 0.3, 0.1, 0.4], [0.2, 0.7, 0.1, 0.4], [0.8, 0.7, 0.1, 0.4]]
    torch.testing.assert_close(flipped.boxes[:4], torch.tensor(expected))
    assert flipped.ignore_image.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(flipped.ignore_boxes[1], torch.tensor([0.9, 0.2, 0.1, 0.2]))


def test_the_official_flips_take_centres_for_corners():
    flipped = flipped_objects(targets_of([BOXES[0]]), legacy=True)
    x, y, w, h = BOXES[0]
    horizontal = [1 - w, y, 1 - x, h]
    expected = [BOXES[0], horizontal, [x, 1 - h, w, 1 - y], [1 - w, 1 - h, 1 - x, 1 - y]]
    torch.testing.assert_close(flipped.boxes, torch.tensor(expected))


@pytest.mark.parametrize(
    ("iou", "score", "positive", "negative"),
    [
        (0.5, 0.5, 0.713, 0.590),
        (0.7, 0.5, 0.817, 0.355),
        (0.9, 0.9, 0.974, 0.130),
        (0, 0.5, 0.192, 0.723),
        (1, 0.5, 0.914, 0),
    ],
)
def test_known_query_weights(iou, score, positive, negative):
    weighting, args = QueryWeighting(), (torch.tensor(float(score)), torch.tensor(float(iou)))
    assert weighting.positive(*args).item() == pytest.approx(positive, abs=6e-4)
    assert weighting.negative(*args).item() == pytest.approx(negative, abs=6e-4)
    assert weighting.negative(torch.tensor(0.0), torch.tensor(0.3)).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("large", "expected"), [(False, [4, 4 - 3 * 0.2, 1]), (True, [1, 1 + 3 * 0.2, 4])])
def test_the_area_factor_favours_small_objects_or_large_ones(large, expected):
    boxes = torch.tensor([[0.5, 0.5, 0, 0.3], [0.2, 0.3, 0.1, 0.4], [0.5, 0.5, 1, 1]])
    torch.testing.assert_close(area_factor(boxes, 4.0, large), torch.tensor(expected, dtype=torch.float32))
    assert area_factor(boxes, 1.0, large).tolist() == [1, 1, 1]


def example(num_images=2, num_queries=6, classes=2):
    """Random output of two images, the second of fewer objects, and some pairs."""
    torch.manual_seed(0)
    targets = targets_of(BOXES[:2], BOXES[2:])
    boxes = targets.boxes[torch.tensor([[0, 1, 0, 1, 0, 1], [2] * 6])] + 0.05 * torch.randn(num_images, num_queries, 4)
    output = LayerOutput(torch.randn(num_images, num_queries, classes).requires_grad_(), boxes.abs())
    pairs = Assignment(torch.tensor([0, 0, 1]), torch.tensor([4, 1, 2]), torch.tensor([0, 1, 2]))
    return output, pairs, targets


def test_the_cost_is_multiplied_by_the_area_factor_and_the_forbidden_stays_so():
    output, _, targets = example()
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 3] = False
    stacked = LayerOutput(output.logits.detach()[None], output.boxes[None].clone(), valid=valid[None])
    stacked.boxes[0, 0, 0] = float("nan")
    plain, weighted = MatchCost()(stacked, targets), AreaWeightedCost(area_weight=4.0)(stacked, targets)
    usual = plain < 1e6
    factor = area_factor(targets.boxes, 4.0)[:, None].expand_as(plain[0])
    torch.testing.assert_close(weighted[usual], (plain * factor)[usual])
    assert torch.equal(weighted[~usual], plain[~usual])
    assert weighted[0, 2, 3] >= FORBIDDEN > weighted[0, 0, 0]


def test_query_weighting_is_the_formula():
    output, pairs, targets = example()
    matches, weighting = Matches(output, pairs, targets), QueryWeighting()
    loss = weighting(matches)
    s = output.logits.detach().sigmoid()
    expected = -(s**2) * torch.log(1 - s)
    for image, query, target in zip(pairs.image, pairs.query, pairs.target):
        label, box = targets.labels[target], targets.boxes[target]
        iou, score = paired_iou(output.boxes[image, query][None], box[None])[0], s[image, query, label]
        area = 4 - 3 * math.sqrt(box[2] * box[3])
        w_pos = torch.sigmoid(4.5 * (score**0.4 * iou**0.6 - 1 / 3)) / torch.sigmoid(torch.tensor(3.0))
        v = iou**0.6
        p_neg = 1.0 if v < 0.5 else 4 / 3 * (1 - v**2)
        w_neg = (torch.sigmoid(4.5 * (score**0.4 * p_neg - 1 / 3)) - torch.sigmoid(torch.tensor(-1.5))) / torch.sigmoid(
            torch.tensor(3.0)
        )
        expected[image, query, label] = area * (-w_pos * score.log() - w_neg * (1 - score).log())
    torch.testing.assert_close(loss.detach(), expected)
    (gradient,) = torch.autograd.grad(loss.sum(), output.logits)
    z = output.logits.detach().requires_grad_()
    (own,) = torch.autograd.grad((z.sigmoid() ** 2 * F.softplus(z)).sum(), z)
    assert gradient[0, 0, 0] == own[0, 0, 0]  # the weight s^2 has a gradient
    factors = weighting.pair_factors(matches)
    assert torch.equal(factors["l1"], factors["giou"]) and (factors["l1"] > 0.19).all()


def test_anchor_scores_learn_the_iou_and_good_unmatched_ones_nothing():
    output, pairs, targets = example(classes=1)
    targets.labels.zero_()
    loss = AnchorQuality()(Matches(output, pairs, targets)).detach()[..., 0]
    ignored = 0
    for image in range(2):
        own = targets.boxes[targets.image == image]
        for query in range(6):
            z, box = output.logits[image, query, 0].detach(), output.boxes[image, query]
            pair = ((pairs.image == image) & (pairs.query == query)).nonzero()
            ious = paired_iou(box.expand(len(own), -1), own)
            if len(pair):
                wanted = targets.boxes[pairs.target[pair[0, 0]]]
                u = paired_iou(box[None], wanted[None])[0]
                area = 4 - 3 * math.sqrt(wanted[2] * wanted[3])
                expected = area * (u - z.sigmoid()) ** 2 * F.binary_cross_entropy_with_logits(z, u)
            elif ious.max() >= 0.5:
                expected, ignored = torch.tensor(0.0), ignored + 1
            else:
                expected = z.sigmoid() ** 2 * F.softplus(z)
            torch.testing.assert_close(loss[image, query], expected)
    assert 0 < ignored < 9


def test_patches_without_objects_are_background():
    targets = targets_of([], [])
    output = LayerOutput(torch.randn(2, 3, 1), torch.rand(2, 3, 4))
    none = torch.zeros(0, dtype=torch.int64)
    loss = AnchorQuality()(Matches(output, Assignment(none, none, none), targets))
    torch.testing.assert_close(loss, output.logits.sigmoid() ** 2 * F.softplus(output.logits))


def test_better_pairs_weigh_more():
    output, pairs, targets = example()
    factors = QueryWeighting(area_weight=1.0).pair_factors(Matches(output, pairs, targets))["giou"]
    giou = paired_giou(output.boxes[pairs.image, pairs.query], targets.boxes)
    scores = output.logits.detach().sigmoid()[pairs.image, pairs.query, targets.labels]
    quality = scores**0.4 * paired_iou(output.boxes[pairs.image, pairs.query], targets.boxes) ** 0.6
    assert factors.argsort().tolist() == quality.argsort().tolist() and len(giou) == 3
