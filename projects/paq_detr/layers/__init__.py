# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Building blocks without knowledge of detection systems: attention, feed-forward blocks, position codes, boxes."""

from .attention import DeformableAttention, SelfAttention
from .blocks import MLP, FeedForward, MaskedGroupNorm
from .boxes import LogitCodec, boxes_cxcywh_to_xyxy, inverse_sigmoid, paired_iou
from .position_encoding import sine_box_code, sine_map_code

__all__ = [
    "MLP",
    "DeformableAttention",
    "FeedForward",
    "LogitCodec",
    "MaskedGroupNorm",
    "SelfAttention",
    "boxes_cxcywh_to_xyxy",
    "inverse_sigmoid",
    "paired_iou",
    "sine_box_code",
    "sine_map_code",
]
