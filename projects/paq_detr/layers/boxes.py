# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x``, its argument and its complement kept at least ``eps`` (1e-5: Deformable DETR; 1e-3: DINO)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def boxes_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to corners, in the same unit."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], -1)


def paired_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """(P,) IoU of row i of ``boxes_a`` (P, 4) with row i of ``boxes_b`` (P, 4), both cxcywh; 0 where both are empty."""
    a, b = boxes_cxcywh_to_xyxy(boxes_a), boxes_cxcywh_to_xyxy(boxes_b)
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    union = boxes_a[:, 2:].prod(-1) + boxes_b[:, 2:].prod(-1) - overlap
    return overlap / union.clamp(min=1e-7)


def giou_loss(boxes_a, boxes_b):
    from torchvision.ops import generalized_box_iou_loss

    return generalized_box_iou_loss(boxes_cxcywh_to_xyxy(boxes_a), boxes_cxcywh_to_xyxy(boxes_b))


def paired_giou(boxes_a, boxes_b):
    return 1 - giou_loss(boxes_a, boxes_b)


def boxes_xyxy_to_cxcywh(boxes):
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def intersection_over_own_area(boxes, regions):
    a, b = boxes_cxcywh_to_xyxy(boxes), boxes_cxcywh_to_xyxy(regions)[:, None]
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return overlap / boxes[..., 2:].prod(-1).clamp(min=1e-7)
