# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The two halves of DH-DETR's De-Homo Coding Generator that look at pairs of queries.

Shape legend: B images, N queries, K neighbour slots, C hidden width, D output width.

A query's neighbours are the queries that overlap it and are more confident than it.  :func:`neighbor_select` finds
them, :func:`neighbor_difference` compares each query with its neighbours.  With the symbols of the paper's code,

    H_ij = [s_i < s_j] [s_j > low_score]        O_ij = IoU(b_i, b_j) H_ij        m_ij = [O_ij >= iou_threshold]
    f_ij = W4 relu(W3 (e_i - e_j) + c3) + c4    a_i  = max over the K slots of m_ij f_ij

W3 is linear, so it is applied once per query before the subtraction: the functions here take p = W3 e, and nothing
of size N x N x C or N x K x N exists.
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

#: The slot of a winning neighbour is kept in 16 bits.
MOST_NEIGHBORS = 32767


def neighbor_select(
    boxes: Tensor,
    scores: Tensor,
    k: int = 10,
    iou_threshold: float = 0.4,
    low_score: float = 0.1,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The overlapping queries that are more confident than each query.

    Query j is a neighbour of i when ``scores[j] > scores[i]``, ``scores[j] > low_score`` and ``IoU(i, j) >=
    iou_threshold``.  At most k are kept, by descending IoU, equal IoU by ascending index.  Equal scores exchange
    nothing; a NaN score or box has no neighbours and is nobody's neighbour.  No gradient.  The defaults are those of
    DH-DETR's released configuration.

    Args:
        boxes: (B, N, 4) cxcywh; 16-bit boxes and scores are widened to fp32.
        scores: (B, N) confidences; with several classes, their maximum.
        k: neighbours kept per query, at least 1, at most 32767.
        iou_threshold: smallest overlap of a neighbour, in (0, 1].
        low_score: a neighbour's score must exceed it.
        valid: optional (B, N) bool; a query that is not valid neither has nor is a neighbour.

    Returns:
        index (B, N, k) int32 within the image, free slots -1, and count (B, N) int32, the number of real slots.

    Raises:
        ValueError: a rank, size, limit or device does not fit.
        TypeError: a dtype does not fit.
    """
    boxes, scores = _checked_candidates(boxes, scores, valid)
    if not 1 <= k <= MOST_NEIGHBORS:
        raise ValueError(f"k is {k}, expected 1 to {MOST_NEIGHBORS}")
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}, expected above 0 and at most 1")
    if valid is not None:
        scores = scores.masked_fill(~valid, torch.nan)
    run = _extension.implementation("neighbor_select", boxes, neighbor_select_torch)
    return run(boxes, scores, k, iou_threshold, low_score)


def neighbor_difference(
    p: Tensor,
    index: Tensor,
    count: Tensor,
    hidden_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    zero_fill: bool = True,
) -> Tensor:
    """Elementwise maximum over a query's neighbours of ``weight @ relu(p_i - p_j + hidden_bias) + bias``.

    Differentiable once with respect to p, hidden_bias, weight and bias.  Among equal values the earliest slot receives
    the gradient, and a real slot before the zero of a free one.

    Args:
        p: (B, N, C) the queries' codes after the first linear layer without its bias (W3 e).
        index: (B, N, K) int32 neighbours, as :func:`neighbor_select` returns them; K at most 32767.
        count: (B, N) int32 real slots per query, in [0, K]; they come first.
        hidden_bias: (C,) c3.
        weight: (D, C) W4.
        bias: (D,) c4.
        zero_fill: True is the released code's rule: a free slot takes part as zero, so the maximum is at least 0
            unless all K slots are real.  False takes the maximum over the real neighbours, and 0 where there are none.

    Returns:
        (B, N, D) in the dtype of p; 16-bit inputs are computed in fp32.

    Raises:
        ValueError: a rank, size or device does not fit, or (on CPU) a count or a neighbour is out of range.
        TypeError: a dtype does not fit.
    """
    _check_aggregation(p, index, count, hidden_bias, weight, bias)
    wide, *parameters = (tensor.to(arithmetic_dtype(p)) for tensor in (p, hidden_bias, weight, bias))
    if _extension.use_native("neighbor_difference", p):
        out, _ = torch.ops.paq_detr.neighbor_difference(wide, index, count, *parameters, zero_fill)
    else:
        run = _extension.torch_form("neighbor_difference", neighbor_difference_torch)
        out = run(wide, index, count, *parameters, zero_fill)
    return out.to(p.dtype)


# ----------------------------------------------------------------------------------------------------------------------
# Pure torch: the specification of the native kernels, and what an exported graph holds.


@torch.no_grad()
def neighbor_select_torch(
    boxes: Tensor, scores: Tensor, k: int, iou_threshold: float, low_score: float
) -> tuple[Tensor, Tensor]:
    """:func:`neighbor_select` on checked inputs, in pure torch; a NaN score marks a query that is not valid."""
    iou, _ = iou_and_giou(boxes[:, :, None], boxes[:, None])
    more_confident = (scores[:, :, None] < scores[:, None]) & (scores[:, None] > low_score)
    overlap = torch.where(more_confident & (iou >= iou_threshold), iou, -1.0)
    overlap, index = overlap.sort(dim=-1, descending=True, stable=True)
    overlap, index = overlap[..., :k], index[..., :k]
    index = F.pad(torch.where(overlap > 0, index, -1), (0, k - index.shape[-1]), value=-1)
    return index.int(), (overlap > 0).sum(-1, dtype=torch.int32)


def neighbor_difference_torch(
    p: Tensor, index: Tensor, count: Tensor, hidden_bias: Tensor, weight: Tensor, bias: Tensor, zero_fill: bool
) -> Tensor:
    """:func:`neighbor_difference` on checked inputs, in pure torch: every slot, free ones too, goes through weight."""
    batch, num_queries, k = index.shape
    neighbor = index.clamp(min=0).long().reshape(batch, num_queries * k, 1).expand(-1, -1, p.shape[-1])
    p_neighbor = p.gather(1, neighbor).reshape(batch, num_queries, k, -1)
    with torch.autocast("cuda" if p.is_cuda else "cpu", enabled=False):
        code = F.linear(F.relu(p[:, :, None] - p_neighbor + hidden_bias), weight, bias)  # (B, N, K, D)
    real = torch.arange(k, device=p.device) < count[..., None]  # (B, N, K)
    if zero_fill:
        return torch.where(real[..., None], code, 0.0).max(dim=2).values
    largest = torch.where(real[..., None], code, -torch.inf).max(dim=2).values
    return torch.where(count[..., None] > 0, largest, 0.0)


# ----------------------------------------------------------------------------------------------------------------------
# Argument checks.


def _checked_candidates(boxes: Tensor, scores: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Boxes and scores, detached, in the dtype of the arithmetic."""
    check_tensors(boxes=boxes, scores=scores, **({} if valid is None else {"valid": valid}))
    check_shape("boxes", boxes, (None, None, 4), "(B, N, 4)")
    of_boxes = f"the (B, N) = {tuple(boxes.shape[:2])} of boxes"
    check_shape("scores", scores, tuple(boxes.shape[:2]), of_boxes)
    for name, tensor in (("boxes", boxes), ("scores", scores)):
        check_floating(name, tensor)
        check_device(name, tensor, "boxes", boxes.device)
    if valid is not None:
        check_shape("valid", valid, tuple(boxes.shape[:2]), of_boxes)
        check_dtype("valid", valid, torch.bool)
        check_device("valid", valid, "boxes", boxes.device)
    dtype = arithmetic_dtype(boxes)
    return boxes.detach().to(dtype), scores.detach().to(dtype)


def _check_aggregation(
    p: Tensor, index: Tensor, count: Tensor, hidden_bias: Tensor, weight: Tensor, bias: Tensor
) -> None:
    check_tensors(p=p, index=index, count=count, hidden_bias=hidden_bias, weight=weight, bias=bias)
    check_shape("p", p, (None, None, None), "(B, N, C)")
    batch, queries, width = p.shape
    check_shape("index", index, (batch, queries, None), f"(B, N, K) with the (B, N) = {batch, queries} of p")
    slots = index.shape[2]
    if not 1 <= slots <= MOST_NEIGHBORS:
        raise ValueError(f"index has {slots} slots, expected 1 to {MOST_NEIGHBORS}")
    check_shape("count", count, (batch, queries), f"the (B, N) = {batch, queries} of p")
    check_shape("hidden_bias", hidden_bias, (width,), f"the C = {width} of p")
    check_shape("weight", weight, (None, width), f"(D, C) with the C = {width} of p")
    check_shape("bias", bias, (weight.shape[0],), f"the D = {weight.shape[0]} of weight")
    for name, tensor in (("index", index), ("count", count)):
        check_dtype(name, tensor, torch.int32)
        check_device(name, tensor, "p", p.device)
    for name, tensor in (("p", p), ("hidden_bias", hidden_bias), ("weight", weight), ("bias", bias)):
        check_floating(name, tensor)
        check_device(name, tensor, "p", p.device)
    if p.device.type == "cpu" and not torch.compiler.is_compiling():
        check_index("count", count, slots, "slots", most=slots)
        free = torch.arange(slots) >= count[..., None]
        check_index("index", index.masked_fill(free, 0), queries, "queries")


# ----------------------------------------------------------------------------------------------------------------------
# What the dispatcher must know about the native operators: shapes without data, gradients, and autocast (all of them
# compute in fp32, whatever autocast says).


def _register() -> None:
    fake = torch.library.register_fake

    @fake("paq_detr::neighbor_select")
    def _(boxes, scores, k, iou_threshold, low_score):
        count = scores.new_empty(scores.shape, dtype=torch.int32)
        return count.new_empty(*scores.shape, k), count

    @fake("paq_detr::neighbor_difference")
    def _(p, index, count, hidden_bias, weight, bias, zero_fill):
        out = p.new_empty(*p.shape[:2], weight.shape[0])
        return out, out.new_empty(out.shape, dtype=torch.int16)

    @fake("paq_detr::neighbor_difference_backward")
    def _(grad_out, slot, p, index, count, hidden_bias, weight):
        return tuple(tensor.new_empty(tensor.shape) for tensor in (p, hidden_bias, weight))

    def keep(ctx, inputs, output):
        p, index, count, hidden_bias, weight, _, _ = inputs
        ctx.save_for_backward(output[1], p, index, count, hidden_bias, weight)

    def backward(ctx, grad_out, _):
        slot, *inputs = ctx.saved_tensors
        grad_p, grad_hidden_bias, grad_weight = torch.ops.paq_detr.neighbor_difference_backward(grad_out, slot, *inputs)
        grad_bias = grad_out.masked_fill(slot < 0, 0).sum((0, 1))
        return grad_p, None, None, grad_hidden_bias, grad_weight, grad_bias, None

    torch.library.register_autograd("paq_detr::neighbor_difference", backward, setup_context=keep)
    _extension.register_once_differentiable("neighbor_difference_backward")
    for name in ("neighbor_select", "neighbor_difference", "neighbor_difference_backward"):
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(f"paq_detr::{name}", device, torch.float32)


for _name in ("neighbor_select", "neighbor_difference"):
    _extension.declare_operator(_name)
if _extension.library().loaded:
    _register()
