# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Operators of paq_detr: checked Python functions over native kernels, with pure-torch twins (``*_torch``)."""

# Multi-scale deformable attention
from .ms_deform_attn import (
    fused_ms_deform_attn,
    fused_ms_deform_attn_torch,
    ms_deform_attn,
    ms_deform_attn_torch,
)

__all__ = [
    # Multi-scale deformable attention
    "fused_ms_deform_attn",
    "fused_ms_deform_attn_torch",
    "ms_deform_attn",
    "ms_deform_attn_torch",
]
