# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Pairwise box overlap, assignment quality and matching cost between objects and the queries of their own image.

Shape legend: L layers, B images, N queries, C classes, M objects of all images together.

The predictions of a step are stacked over layers and the objects of the batch are concatenated, so one call serves
all layers and images.  ``gt_image (M,)`` names the image of each object: only the pairs of an object with the queries
of its own image exist, result rows are objects and columns are queries, and the block ``[l, o_b:o_{b+1}]`` of image b
is contiguous.

Numeric rules shared by every function here:

* Arithmetic is fp32, or fp64 when ``boxes`` are fp64; 16-bit inputs are widened first and results are never 16-bit.
* A negative width or height counts as zero.  An empty union gives IoU 0, and an empty enclosing box adds nothing to
  GIoU, so degenerate boxes give finite values.  NaN coordinates give a NaN IoU.
* ``pair_quality`` and ``match_cost`` are always finite: a value that is not inside +-1e6 (NaN included) becomes
  ``NON_FINITE_QUALITY`` or ``NON_FINITE_COST``, so no solver or top-k can fail on a diverging prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _extension
from ._boxes import iou_and_giou
from ._checks import (
    arithmetic_dtype,
    check_device,
    check_dtype,
    check_floating,
    check_index,
    check_shape,
    check_tensors,
)

NON_FINITE_COST = 1e6
NON_FINITE_QUALITY = -1e6
# Taken off a sum of qualities before it is rounded up, so that 2.0000001 counts as 2.
COUNT_SLACK = 1e-6


def pair_iou(boxes: Tensor, gt_boxes: Tensor, gt_image: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of every object with every query of its image.

    Differentiable with respect to both box tensors.

    Args:
        boxes: (L, B, N, 4) predicted boxes, cxcywh.
        gt_boxes: (M, 4) objects, cxcywh in the same unit.
        gt_image: (M,) int64, the image of each object, in [0, B).

    Returns:
        IoU in [0, 1] and GIoU in [-1, 1], each (L, M, N).

    Raises:
        ValueError: a rank, size or device does not fit, or an image index is out of range (CPU tensors only: on
            another device looking at the values would stall the stream; the CUDA kernels stop with an error).
        TypeError: a dtype does not fit.
    """
    boxes, gt_boxes = _checked_boxes(boxes, gt_boxes, gt_image)
    return _extension.implementation("pair_iou", boxes, pair_iou_torch)(boxes, gt_boxes, gt_image)


def pair_quality(
    logits: Tensor,
    boxes: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_image: Tensor,
    *,
    score_weight: float,
    iou_weight: float,
) -> Tensor:
    """Assignment quality ``iou_weight * IoU + score_weight * sigmoid(logit of the object's class)``.

    PaQ-DETR Eq. 6 is ``iou_weight=1, score_weight=-gamma``; the mix of Mr. DETR's one-to-many routes is
    ``iou_weight=1 - alpha, score_weight=alpha``.  No gradient.

    Args:
        logits: (L, B, N, C) class logits.
        boxes: (L, B, N, 4) predicted boxes, cxcywh.
        gt_labels: (M,) int64 class of each object, in [0, C).
        gt_boxes: (M, 4) objects, cxcywh.
        gt_image: (M,) int64 image of each object, in [0, B).
        score_weight: factor of the class score.
        iou_weight: factor of the IoU.

    Returns:
        (L, M, N) quality; ``NON_FINITE_QUALITY`` where it would not be finite.

    Raises:
        ValueError, TypeError: as :func:`pair_iou`, and for labels out of range.
    """
    logits, boxes, gt_boxes = _checked_predictions(logits, boxes, gt_labels, gt_boxes, gt_image)
    run = _extension.implementation("pair_quality", boxes, pair_quality_torch)
    return run(logits, boxes, gt_labels, gt_boxes, gt_image, score_weight, iou_weight)


def quality_topk(
    logits: Tensor,
    boxes: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_image: Tensor,
    *,
    score_weight: float,
    iou_weight: float,
    k: int,
    min_count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best queries of each object and the number of positives it deserves (PaQ-DETR Eq. 7).

    ``count_j = max(ceil(sum of the k largest qualities - 1e-6), min_count)``, and never more than N.  Equal qualities
    are ordered by query index.  No gradient.

    Args:
        logits, boxes, gt_labels, gt_boxes, gt_image, score_weight, iou_weight: as :func:`pair_quality`.
        k: queries kept per object, at least 1; k' = min(k, N).
        min_count: smallest number of positives (``l`` in the paper), at least 0.

    Returns:
        values (L, M, k') in descending order, query indices (L, M, k') int64, count (L, M) int64.

    Raises:
        ValueError, TypeError: as :func:`pair_quality`.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    if min_count < 0:
        raise ValueError(f"min_count is {min_count}, expected at least 0")
    logits, boxes, gt_boxes = _checked_predictions(logits, boxes, gt_labels, gt_boxes, gt_image)
    run = _extension.implementation("quality_topk", boxes, quality_topk_torch)
    return run(logits, boxes, gt_labels, gt_boxes, gt_image, score_weight, iou_weight, k, min_count)


def match_cost(
    logits: Tensor,
    boxes: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_image: Tensor,
    *,
    class_weight: float = 2.0,
    l1_weight: float = 5.0,
    giou_weight: float = 2.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Cost of the bipartite matching: focal class cost, L1 distance and GIoU.

    ``class_weight * (positive - negative focal loss at the object's class) + l1_weight * |box - gt|_1 - giou_weight *
    GIoU`` with ``positive = -alpha (1-p)^gamma log p`` and ``negative = -(1-alpha) p^gamma log(1-p)``, p the sigmoid of
    the logit: the cost of Deformable DETR, whose weights 2/5/2, alpha 0.25 and gamma 2 are the defaults.  The
    logarithms are taken from the logit, without the 1e-8 inside the log.  No gradient.

    Args:
        logits, boxes, gt_labels, gt_boxes, gt_image: as :func:`pair_quality`.
        class_weight, l1_weight, giou_weight: factors of the three terms.
        alpha, gamma: the focal loss's parameters.

    Returns:
        (L, M, N) cost; ``NON_FINITE_COST`` where it would not be finite or would exceed it.

    Raises:
        ValueError, TypeError: as :func:`pair_quality`.
    """
    logits, boxes, gt_boxes = _checked_predictions(logits, boxes, gt_labels, gt_boxes, gt_image)
    run = _extension.implementation("match_cost", boxes, match_cost_torch)
    return run(logits, boxes, gt_labels, gt_boxes, gt_image, class_weight, l1_weight, giou_weight, alpha, gamma)


# ----------------------------------------------------------------------------------------------------------------------
# Pure torch: the specification of the native kernels, and what an exported graph holds.


def pair_iou_torch(boxes: Tensor, gt_boxes: Tensor, gt_image: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`pair_iou` on checked inputs, in pure torch."""
    return iou_and_giou(gt_boxes[None, :, None], boxes[:, gt_image])


@torch.no_grad()
def pair_quality_torch(
    logits: Tensor,
    boxes: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_image: Tensor,
    score_weight: float,
    iou_weight: float,
) -> Tensor:
    """:func:`pair_quality` on checked inputs, in pure torch."""
    iou, _ = pair_iou_torch(boxes, gt_boxes, gt_image)
    quality = iou_weight * iou + score_weight * _own_class_logits(logits, gt_labels, gt_image).sigmoid()
    return torch.where(quality.abs() < -NON_FINITE_QUALITY, quality, NON_FINITE_QUALITY)


@torch.no_grad()
def quality_topk_torch(
    logits: Tensor,
    boxes: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_image: Tensor,
    score_weight: float,
    iou_weight: float,
    k: int,
    min_count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`quality_topk` on checked inputs, in pure torch."""
    quality = pair_quality_torch(logits, boxes, gt_labels, gt_boxes, gt_image, score_weight, iou_weight)
    # topk leaves the order of equal values open, a stable sort does not.
    values, indices = quality.sort(dim=-1, descending=True, stable=True)
    values, indices = values[..., :k].contiguous(), indices[..., :k].contiguous()
    count = (values.sum(-1) - COUNT_SLACK).ceil().clamp(min=min_count).clamp(max=boxes.shape[2])
    return values, indices, count.long()


@torch.no_grad()
def match_cost_torch(
    logits: Tensor,
    boxes: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_image: Tensor,
    class_weight: float,
    l1_weight: float,
    giou_weight: float,
    alpha: float,
    gamma: float,
) -> Tensor:
    """:func:`match_cost` on checked inputs, in pure torch."""
    _, giou = pair_iou_torch(boxes, gt_boxes, gt_image)
    logit = _own_class_logits(logits, gt_labels, gt_image)
    positive = alpha * logit.neg().sigmoid().pow(gamma) * F.softplus(-logit)
    negative = (1 - alpha) * logit.sigmoid().pow(gamma) * F.softplus(logit)
    l1 = (boxes[:, gt_image] - gt_boxes[None, :, None]).abs().sum(-1)
    cost = class_weight * (positive - negative) + l1_weight * l1 - giou_weight * giou
    return torch.where(cost.abs() < NON_FINITE_COST, cost, NON_FINITE_COST)


def _own_class_logits(logits: Tensor, gt_labels: Tensor, gt_image: Tensor) -> Tensor:
    """(L, M, N): each query's logit of the object's class."""
    # Two advanced indices with a slice between them move M to the front.
    return logits[:, gt_image, :, gt_labels].transpose(0, 1)


# ----------------------------------------------------------------------------------------------------------------------
# Argument checks.


def _checked_boxes(boxes: Tensor, gt_boxes: Tensor, gt_image: Tensor) -> tuple[Tensor, Tensor]:
    """Both box tensors in the dtype of the arithmetic."""
    check_tensors(boxes=boxes, gt_boxes=gt_boxes, gt_image=gt_image)
    check_shape("boxes", boxes, (None, None, None, 4), "(L, B, N, 4)")
    check_shape("gt_boxes", gt_boxes, (None, 4), "(M, 4)")
    _check_labels("gt_image", gt_image, gt_boxes, boxes.shape[1], "images")
    check_floating("boxes", boxes)
    check_floating("gt_boxes", gt_boxes)
    check_device("gt_boxes", gt_boxes, "boxes", boxes.device)
    dtype = arithmetic_dtype(boxes)
    return boxes.to(dtype), gt_boxes.to(dtype)


def _checked_predictions(
    logits: Tensor, boxes: Tensor, gt_labels: Tensor, gt_boxes: Tensor, gt_image: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and both box tensors, detached, in the dtype of the arithmetic."""
    check_tensors(logits=logits, gt_labels=gt_labels)
    boxes, gt_boxes = (tensor.detach() for tensor in _checked_boxes(boxes, gt_boxes, gt_image))
    check_shape("logits", logits, (*boxes.shape[:3], None), f"(L, B, N, C) with the {tuple(boxes.shape[:3])} of boxes")
    check_floating("logits", logits)
    check_device("logits", logits, "boxes", boxes.device)
    _check_labels("gt_labels", gt_labels, gt_boxes, logits.shape[3], "classes")
    return logits.detach().to(boxes.dtype), boxes, gt_boxes


def _check_labels(name: str, labels: Tensor, gt_boxes: Tensor, size: int, what: str) -> None:
    check_shape(name, labels, (gt_boxes.shape[0],), f"(M,) with the M = {gt_boxes.shape[0]} of gt_boxes")
    check_dtype(name, labels, torch.int64)
    check_device(name, labels, "gt_boxes", gt_boxes.device)
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        check_index(name, labels, size, what)


# ----------------------------------------------------------------------------------------------------------------------
# What the dispatcher must know about the native operators: shapes without data, gradients, and autocast (all of them
# compute in fp32, whatever autocast says).


def _register() -> None:
    fake = torch.library.register_fake

    def pairs(boxes, gt_boxes):
        return boxes.new_empty(boxes.shape[0], gt_boxes.shape[0], boxes.shape[2])

    @fake("paq_detr::pair_iou")
    def _(boxes, gt_boxes, gt_image):
        return pairs(boxes, gt_boxes), pairs(boxes, gt_boxes)

    @fake("paq_detr::pair_iou_backward")
    def _(grad_iou, grad_giou, boxes, gt_boxes, gt_image):
        return boxes.new_empty(boxes.shape), gt_boxes.new_empty(gt_boxes.shape)

    @fake("paq_detr::pair_quality")
    @fake("paq_detr::match_cost")
    def _(logits, boxes, gt_labels, gt_boxes, gt_image, *weights):
        return pairs(boxes, gt_boxes)

    @fake("paq_detr::quality_topk")
    def _(logits, boxes, gt_labels, gt_boxes, gt_image, score_weight, iou_weight, k, min_count):
        shape = (boxes.shape[0], gt_boxes.shape[0], torch.sym_min(k, boxes.shape[2]))
        return boxes.new_empty(shape), gt_image.new_empty(shape), gt_image.new_empty(shape[:2])

    def keep(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    def backward(ctx, grad_iou, grad_giou):
        return *torch.ops.paq_detr.pair_iou_backward(grad_iou, grad_giou, *ctx.saved_tensors), None

    torch.library.register_autograd("paq_detr::pair_iou", backward, setup_context=keep)
    _extension.register_once_differentiable("pair_iou_backward")
    for name in ("pair_iou", "pair_iou_backward", "pair_quality", "quality_topk", "match_cost"):
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(f"paq_detr::{name}", device, torch.float32)


for _name in ("pair_iou", "pair_quality", "quality_topk", "match_cost"):
    _extension.declare_operator(_name)
if _extension.library().loaded:
    _register()
