# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Building blocks without knowledge of detection systems: attention, feed-forward blocks, position codes, boxes."""

from .attention import DeformableAttention
from .blocks import ACTIVATION, ACTIVATIONS, MLP, FeedForward, MaskedGroupNorm, xavier
from .boxes import (
    boxes_cxcywh_to_xyxy,
    boxes_xyxy_to_cxcywh,
    corner_distance,
    intersection_over_own_area,
    inverse_sigmoid,
    paired_giou,
    paired_iou,
)
from .order import places
from .position_encoding import sine_box_code, sine_map_code

__all__ = [
    "ACTIVATION",
    "ACTIVATIONS",
    "MLP",
    "DeformableAttention",
    "FeedForward",
    "MaskedGroupNorm",
    "boxes_cxcywh_to_xyxy",
    "boxes_xyxy_to_cxcywh",
    "corner_distance",
    "intersection_over_own_area",
    "inverse_sigmoid",
    "paired_giou",
    "paired_iou",
    "places",
    "sine_box_code",
    "sine_map_code",
    "xavier",
]
