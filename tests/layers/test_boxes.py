# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""One box geometry, right however small the boxes are."""

import pytest
import torch

from paq_detr import ops
from paq_detr.layers import (
    boxes_cxcywh_to_xyxy,
    boxes_xyxy_to_cxcywh,
    intersection_over_own_area,
    paired_giou,
    paired_iou,
)

from ..boxes import centred_giou, centred_iou

SIDES = [0.3, 5e-3, 1e-3, 2e-4, 1e-7, 1e-12, 1e-20, 1e-30, 1e-38, 1e-42]


def random_boxes(count, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [0.3 + 0.4 * torch.rand(count, 2, generator=generator), scale * torch.rand(count, 2, generator=generator)], 1
    )


@pytest.mark.parametrize("scale", [0.6, 0.05])
def test_iou_and_giou_are_the_plain_formula(scale):
    a, b = random_boxes(200, 1, scale), random_boxes(200, 2, scale)
    b[100:, :2] = a[100:, :2] + 0.2 * scale
    pairs = list(zip(a.double().tolist(), b.double().tolist()))
    expected = torch.tensor([(centred_iou(*pair), centred_giou(*pair)) for pair in pairs])
    torch.testing.assert_close(paired_iou(a, b), expected[:, 0].float(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(paired_giou(a, b), expected[:, 1].float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_a_box_and_itself_have_iou_one_however_small(side):
    box = torch.tensor([[0.37, 0.61, side, side]])
    assert paired_iou(box, box).item() == paired_giou(box, box).item() == 1.0
    assert intersection_over_own_area(box[None], torch.tensor([[0.5, 0.5, 1.0, 1.0]])).item() == 1.0


@pytest.mark.parametrize("side", SIDES)
def test_half_a_box_has_iou_one_half_however_small(side):
    whole, half = torch.tensor([[0.5, 0.5, side, side]]), torch.tensor([[0.5, 0.5, side, side / 2]])
    expected = half[0, 3].item() / whole[0, 3].item()  # denormal numbers are coarse
    assert paired_iou(half, whole).item() == pytest.approx(expected, rel=1e-5)
    assert paired_giou(half, whole).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", [*SIDES, 0.0])
@pytest.mark.parametrize("shift", [0.0, 0.25, 3.0])
def test_gradients_are_finite_however_small(side, shift):
    a = torch.tensor([[0.5, 0.5, side, side]], requires_grad=True)
    b = torch.tensor([[0.5 + shift * side, 0.5, side, side]])
    for measure in (paired_iou, paired_giou):
        (gradient,) = torch.autograd.grad(measure(a, b).sum(), a)
        assert gradient.isfinite().all()


def test_empty_boxes_overlap_nothing():
    empty, box = torch.tensor([[0.5, 0.5, 0.0, 0.4]]), torch.tensor([[0.5, 0.5, 0.4, 0.4]])
    assert paired_iou(empty, box).item() == paired_iou(empty, empty).item() == 0
    assert intersection_over_own_area(empty[None], box).item() == 0
    assert paired_giou(empty, box).item() == 0


@pytest.mark.parametrize("side", [0.2, 5e-3, 1e-3, 2e-4])
def test_losses_and_matching_costs_see_the_same_giou(side):
    """``ops.match_cost`` with only its GIoU term against the loss's; it takes corners, in fp32."""
    predicted = random_boxes(30, 3, side)
    wanted = predicted + side * 0.3 * torch.randn(30, 4, generator=torch.Generator().manual_seed(4)).abs()
    zeros = torch.zeros(30, dtype=torch.int64)
    cost = ops.match_cost(
        torch.zeros(1, 1, 30, 1), predicted[None, None], zeros, wanted, zeros,
        class_weight=0.0, l1_weight=0.0, giou_weight=1.0,
    )[0]  # fmt: skip
    rounding = 5e-7 / side
    torch.testing.assert_close(-cost.diagonal(), paired_giou(predicted, wanted), atol=rounding, rtol=0)


def test_corners_and_back():
    boxes = random_boxes(20, 5)
    torch.testing.assert_close(boxes_xyxy_to_cxcywh(boxes_cxcywh_to_xyxy(boxes)), boxes)
