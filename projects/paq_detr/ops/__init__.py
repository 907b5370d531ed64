# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Operators of paq_detr: checked Python functions over native kernels, with pure-torch twins (``*_torch``)."""

# Which backend runs, and why not another
from ._extension import explain, force_torch

# In place of other libraries' deformable attention
from .drop_in import MultiScaleDeformableAttnFunction, TransformersPatch, patch_transformers

# Multi-scale deformable attention
from .ms_deform_attn import (
    fused_ms_deform_attn,
    fused_ms_deform_attn_torch,
    ms_deform_attn,
    ms_deform_attn_torch,
)

# Neighbour difference (DH-DETR) and pair quality (assignment)
from .neighbor_difference import (
    neighbor_difference,
    neighbor_difference_torch,
    neighbor_select,
    neighbor_select_torch,
)
from .pair_quality import (
    NON_FINITE_COST,
    NON_FINITE_QUALITY,
    match_cost,
    match_cost_torch,
    pair_iou,
    pair_iou_torch,
    pair_quality,
    pair_quality_torch,
    quality_topk,
    quality_topk_torch,
)

__all__ = [
    "MultiScaleDeformableAttnFunction",
    "NON_FINITE_COST",
    "NON_FINITE_QUALITY",
    "TransformersPatch",
    "explain",
    "force_torch",
    "fused_ms_deform_attn",
    "fused_ms_deform_attn_torch",
    "match_cost",
    "match_cost_torch",
    "ms_deform_attn",
    "ms_deform_attn_torch",
    "neighbor_difference",
    "neighbor_difference_torch",
    "neighbor_select",
    "neighbor_select_torch",
    "pair_iou",
    "pair_iou_torch",
    "pair_quality",
    "pair_quality_torch",
    "patch_transformers",
    "quality_topk",
    "quality_topk_torch",
]
