# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Overlap of two boxes as plain arithmetic, what faster code is tested against.

Boxes are x0, y0, x1, y1; those of the functions with ``centred`` in their names are cx, cy, w, h.
"""


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def iou(a, b, eps=0.0):
    """``eps`` is added to the union."""
    return intersection(a, b) / (area(a) + area(b) - intersection(a, b) + eps)


def giou(a, b):
    """Generalised IoU, of boxes that have an area."""
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    union = area(a) + area(b) - intersection(a, b)
    return intersection(a, b) / union - (hull - union) / hull


def corners(box):
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def centred_iou(a, b):
    return iou(corners(a), corners(b))


def centred_giou(a, b):
    return giou(corners(a), corners(b))
