# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Overlap of boxes in pure torch, as the native kernels compute it (csrc/common/boxes.h)."""

import torch
from torch import Tensor


def iou_and_giou(boxes_a: Tensor, boxes_b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of two broadcastable sets of cxcywh boxes.

    Lengths come from the distance of the centres, not from corners, which far from 0 round off what is small. No
    intersection is above either area and the union is a + (b - intersection), so that rounding can bring neither the
    IoU of a box with itself below 1 nor any IoU above 1. A negative side counts as 0.
    """
    size_a, size_b = boxes_a[..., 2:].clamp(min=0), boxes_b[..., 2:].clamp(min=0)
    reach, apart = (size_a + size_b) * 0.5, (boxes_a[..., :2] - boxes_b[..., :2]).abs()
    inter = torch.minimum(torch.minimum(size_a, size_b), reach - apart).clamp(min=0).prod(-1)
    hull = torch.maximum(torch.maximum(size_a, size_b), reach + apart).prod(-1)
    union = _area(boxes_a) + (_area(boxes_b) - inter)
    iou = inter / _or_one(union)
    return iou, iou - (hull - union).clamp(min=0) / _or_one(hull)


def _area(boxes: Tensor) -> Tensor:
    """NaN if the centre is not finite."""
    return boxes[..., 2:].clamp(min=0).prod(-1) + (boxes[..., :2] - boxes[..., :2]).sum(-1)


def _or_one(area: Tensor) -> Tensor:
    """An area fit to divide by: one in place of an empty area (at or below the smallest normal number)."""
    return torch.where(area <= torch.finfo(area.dtype).tiny, 1.0, area)
