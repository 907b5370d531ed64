# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The one box geometry of losses and targets; ``ops`` has the same for all pairs of an image at once.

Overlaps are taken from centres and sizes in fp64, so that equal boxes have IoU 1 and GIoU 1 however small they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.float32).max


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x``, its argument and its complement kept at least ``eps`` (1e-5: Deformable DETR; 1e-3: DINO)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def boxes_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to corners, in the same unit."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], -1)


def boxes_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners to centre and size, in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def corner_distance(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """(...) L1 distance of the corners of (..., 4) boxes cxcywh; they broadcast."""
    return (boxes_cxcywh_to_xyxy(boxes_a) - boxes_cxcywh_to_xyxy(boxes_b)).abs().sum(-1)


def _exact(boxes: Tensor) -> Tensor:
    """``boxes`` in fp64; a gradient beyond fp32 (of a denormal side) is cut off at its largest number."""
    exact = boxes.double()
    if exact.requires_grad:
        exact.register_hook(lambda gradient: gradient.clamp(-_LARGEST, _LARGEST))
    return exact


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``; 0 where the whole is nothing, without a NaN in the gradient."""
    there = whole > 0
    return torch.where(there, part / torch.where(there, whole, 1.0), 0.0)


def _overlap_and_hull(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 2) sides of the intersection and of the smallest box around both; they broadcast."""
    size_a, size_b = a[..., 2:], b[..., 2:]
    reach, apart = (size_a + size_b) / 2, (a[..., :2] - b[..., :2]).abs()
    overlap = torch.minimum(torch.minimum(size_a, size_b), reach - apart).clamp(min=0)
    hull = torch.maximum(torch.maximum(size_a, size_b), reach + apart)
    return overlap, hull


def _iou_parts(boxes_a: Tensor, boxes_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b = _exact(boxes_a), _exact(boxes_b)
    overlap, hull = _overlap_and_hull(a, b)
    intersection = overlap.prod(-1)
    return intersection, a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - intersection, hull.prod(-1)


def paired_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """(P,) IoU of row i of ``boxes_a`` (P, 4) with row i of ``boxes_b`` (P, 4), both cxcywh; 0 where both are empty."""
    intersection, union, _ = _iou_parts(boxes_a, boxes_b)
    return _ratio(intersection, union).to(boxes_a.dtype)


def paired_giou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """(P,) generalised IoU (Rezatofighi et al. 2019) of row i with row i, both (P, 4) cxcywh, in [-1, 1]."""
    intersection, union, hull = _iou_parts(boxes_a, boxes_b)
    return (_ratio(intersection, union) - _ratio(hull - union, hull)).to(boxes_a.dtype)


def intersection_over_own_area(boxes: Tensor, regions: Tensor) -> Tensor:
    """(R, N) share of each of (R, N, 4) boxes that lies in its region of (R, 4); both cxcywh. 0 for an empty box."""
    a, b = _exact(boxes), _exact(regions)[:, None]
    overlap, _ = _overlap_and_hull(a, b)
    return _ratio(overlap.prod(-1), a[..., 2:].prod(-1)).to(boxes.dtype)
