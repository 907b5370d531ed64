# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Align-DETR's loss and matching against numbers worked out by hand from the release's formulas."""

import math

import pytest
import torch

from paq_detr.modeling.assignment import HungarianAssigner, MatchCost
from paq_detr.modeling.losses import Matches
from paq_detr.modeling.objective import supervise
from paq_detr.papers.align_detr import AlignLoss, RepeatedAssigner, ranks
from paq_detr.papers.mr_detr_assignment import OneClassPerQuery, RankedAlignLoss
from paq_detr.structures import Assignment, LayerOutput, Targets

from ..modeling.assemblies import PLUSPLUS, make_image, make_model, predict, predictions_of

ALIGN = {
    **PLUSPLUS,
    "MODEL.DETR.QUERIES.SCORE": "max",
    "MODEL.DETR.QUERIES.SUPERVISE": "selected",
    "MODEL.DETR.ASSIGNER.INTERMEDIATE": "align_repeated",
    "MODEL.DETR.ASSIGNER.ENCODER": "align_repeated",
    "MODEL.DETR.LOSS.CLASSIFICATION": "align",
    "MODEL.DETR.LOSS.CLASS_WEIGHT": 1.0,
}


def logit(p):
    return math.log(p / (1 - p))


def queries_of(pairs, others=(), num_objects=1):
    """Queries of known (score, IoU, object) and unmatched ones of known scores, one class: the output and its matches.

    All objects are the unit box's middle; a box of the same width and a share of the height overlaps by that share.
    """
    boxes = [[0.5, 0.5, 0.4, 0.4 * iou] for _, iou, _ in pairs] + [[0.5, 0.5, 0.1, 0.1]] * len(others)
    logits = torch.tensor([logit(s) for s, *_ in pairs] + [logit(s) for s in others])[None, :, None]
    output = LayerOutput(logits.requires_grad_(), torch.tensor([boxes]))
    zeros = torch.zeros(num_objects, dtype=torch.int64)
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    targets = Targets(torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(num_objects, 1), zeros, zeros, (num_objects,), *none)
    count = len(pairs)
    image, objects = torch.zeros(count, dtype=torch.int64), torch.tensor([o for *_, o in pairs], dtype=torch.int64)
    return output, Assignment(image, torch.arange(count), objects), targets


@pytest.mark.parametrize(
    ("score", "iou", "target"), [(0.6, 0.8, 0.744484), (0.3, 0.9, 0.683852), (0.05, 0.5, 0.281171), (0.5, 0.0, 0.01)]
)
def test_the_target_mixes_score_and_iou(score, iou, target):
    matches = Matches(*queries_of([(score, iou, 0)]))
    assert AlignLoss().target_and_weight(matches)[0].item() == pytest.approx(target, abs=1e-5)


def test_a_pair_of_first_rank_learns_its_target_and_one_of_second_rank_half_of_it():
    output, pairs, targets = queries_of([(0.6, 0.8, 0), (0.3, 0.9, 0)], others=[0.2])
    losses = AlignLoss()(Matches(output, pairs, targets))
    assert losses.flatten().tolist() == pytest.approx([0.614428, 0.654162, 0.008926], abs=1e-5)
    losses.sum().backward()
    gradient = output.logits.grad.flatten().tolist()
    assert gradient[0] == pytest.approx(0.6 - 0.744484, abs=1e-5)
    assert gradient[1] == pytest.approx(0.3 - 0.683852 * math.exp(-1 / 1.5), abs=1e-5)


def test_the_weight_of_other_entries_carries_a_gradient():
    output, pairs, targets = queries_of([], others=[0.3], num_objects=0)
    AlignLoss()(Matches(output, pairs, targets)).sum().backward()
    assert output.logits.grad.item() == pytest.approx(0.071941, abs=1e-5)  # 0.027, were s^2 detached


def test_rank_weights_scale_both_box_losses():
    output, pairs, targets = queries_of([(0.6, 0.8, 0), (0.3, 0.9, 0)])
    losses, _ = supervise([predict("x", output, pairs, classification=AlignLoss(), class_weight=1.0)], targets)
    second = math.exp(-1 / 1.5)
    assert losses["loss_class/x"].item() == pytest.approx(0.614428 + 0.654162, abs=1e-5)
    assert losses["loss_l1/x"].item() == pytest.approx(5 * (0.08 + second * 0.04), abs=1e-5)
    assert losses["loss_giou/x"].item() == pytest.approx(2 * (0.2 + second * 0.1), abs=1e-5)


def test_ranks_are_counted_within_each_object():
    target = torch.tensor([3, 1, 3, 1, 0, 3])
    quality = torch.tensor([0.2, 0.9, 0.5, 0.95, 0.1, 0.3])
    assert ranks(target, quality).tolist() == [2, 1, 0, 0, 0, 1]
    assert ranks(target[:0], quality[:0]).tolist() == []


@pytest.mark.parametrize(("value", "matched", "expected"), [(-120.0, True, 1.2), (40.0, False, 40.0)])
def test_extreme_logits_have_finite_losses_and_gradients(value, matched, expected):
    output, pairs, targets = queries_of([(0.5, 0.0, 0)] if matched else [], others=[] if matched else [0.5])
    extreme = LayerOutput(torch.full_like(output.logits, value).requires_grad_(), output.boxes)
    loss = AlignLoss()(Matches(extreme, pairs, targets)).sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-4) and extreme.logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("num_queries", "counts", "mended", "released"),
    [
        (900, [225], [2], [2]),
        (900, [226], [1], [1]),
        (900, [450], [1], [1]),
        (900, [451], [1], [0]),
        (300, [75], [2], [2]),
        (300, [76], [1], [1]),
        (300, [151], [1], [0]),
        (300, [10, 300, 10], [2, 1, 2], [2, 0, 0]),
        (900, [10, 300, 10], [2, 1, 2], [2, 1, 1]),
        (900, [500, 10], [1, 2], [0, 0]),
        (900, [0, 3], [2, 2], [2, 2]),
    ],
)
def test_copies_are_capped_image_by_image_and_in_the_release_once_for_all(num_queries, counts, mended, released):
    assert RepeatedAssigner(MatchCost()).copies_of_images(counts, num_queries) == mended
    assert RepeatedAssigner(MatchCost(), released_cap=True).copies_of_images(counts, num_queries) == released


def test_all_layers_but_the_last_and_the_selected_proposals_repeat_objects():
    image = make_image(64, 96, [[4, 6, 40, 50], [30, 8, 90, 60]], [0, 2])
    model = make_model(ALIGN)
    predictions = predictions_of(model, [image])
    kinds = {name: type(p.objective.assigner) for name, p in predictions.items()}
    assert kinds["encoder"] is kinds["layer1"] is kinds["layer2"] is RepeatedAssigner
    assert kinds["final"] is HungarianAssigner
    assert predictions["encoder"].output.logits.shape[1] == 12  # not all tokens
    losses = model([image])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("loss", [AlignLoss(), RankedAlignLoss(), OneClassPerQuery(AlignLoss())])
def test_no_denoising_query_is_second_to_another(loss):
    """Each group has a query for every object: ranked among each other, all but one would learn to be background."""
    output, pairs, targets = queries_of([(0.6, 0.8, 0), (0.3, 0.9, 0)], others=[0.2])
    group = predict("dn", output, pairs, classification=loss, class_weight=1.0).objective.of_group()
    losses = group.losses(Matches(output, pairs, targets))
    assert losses["class"].item() == pytest.approx(0.614428 + 0.936101 + 0.008926, abs=1e-5)
    assert losses["l1"].item() == pytest.approx(5 * (0.08 + 0.04), abs=1e-5)
    assert losses["giou"].item() == pytest.approx(2 * (0.2 + 0.1), abs=1e-5)


@pytest.mark.parametrize(("key", "value"), [("COPIES", 0), ("TAU", 0.0)])
def test_numbers_out_of_range_are_named(key, value):
    with pytest.raises(ValueError, match=f"MODEL.DETR.ALIGN.{key} is {value}"):
        make_model({**ALIGN, f"MODEL.DETR.ALIGN.{key}": value})
