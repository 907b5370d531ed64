# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Overlap of boxes in pure torch, as the native kernels compute it (csrc/common/boxes.h)."""

import torch
from torch import Tensor


def iou_and_giou(boxes_a: Tensor, boxes_b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of two broadcastable sets of cxcywh boxes.

    Areas come from the corners and the union is a + (b - intersection), so that rounding can bring neither the IoU of
    a box with itself below 1 nor any IoU above 1.
    """
    (low_a, high_a), (low_b, high_b) = _corners(boxes_a), _corners(boxes_b)
    area_a, area_b = (high_a - low_a).prod(-1), (high_b - low_b).prod(-1)
    inter = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(-1)
    union = area_a + (area_b - inter)
    hull = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).prod(-1)
    iou = inter / _or_one(union)
    return iou, iou - (hull - union).clamp(min=0) / _or_one(hull)


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    center, half = boxes[..., :2], boxes[..., 2:].clamp(min=0) * 0.5
    return center - half, center + half


def _or_one(area: Tensor) -> Tensor:
    """An area fit to divide by: one in place of an empty area (at or below the smallest normal number)."""
    return torch.where(area <= torch.finfo(area.dtype).tiny, 1.0, area)
