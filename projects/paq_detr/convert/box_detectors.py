# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of Sparse R-CNN (PeizeSun/SparseR-CNN) and AdaMixer (MCG-NJU/AdaMixer, which is made with mmdet).

Kernels that queries make, sampling offsets and towers are laid out as theirs, so that names alone differ. AdaMixer's
file holds a table of boxes that are all the whole image, and is not trained.
"""

from __future__ import annotations

from collections.abc import Collection

from .backbones import DETECTRON2_RESNET, TORCHVISION_RESNET
from .layout import DECODER, NECK, SOURCE, Layout, Rules, Weights, needed, prefixed

LAYER = rf"{DECODER}.layers.\1"
CLASS_HEAD, BOX_HEAD = rf"{DECODER}.class_heads.\1", rf"{DECODER}.box_heads.\1"

# Of a stage, whose number is the first group; ASAG's copies have the same names, but for two.
SPARSE_RCNN_STAGE: Rules = (
    (r"self_attn\.(in_proj_weight|in_proj_bias|out_proj)", rf"{LAYER}.interactions.0.attention.\2"),
    (r"norm1", f"{LAYER}.interactions.0.norm"),
    (r"inst_interact\.dynamic_layer", f"{LAYER}.cross_attention.dynamic_conv.kernels"),
    (r"inst_interact\.out_layer", f"{LAYER}.cross_attention.dynamic_conv.output"),
    (r"inst_interact\.(norm\d)", rf"{LAYER}.cross_attention.dynamic_conv.\2"),
    (r"norm2", f"{LAYER}.cross_attention.norm"),
    (r"(linear\d)", rf"{LAYER}.ffn.\2"),
    (r"norm3", f"{LAYER}.ffn.norm"),
    (r"cls_module\.(\d)", rf"{CLASS_HEAD}.tower.\2"),
    (r"class_logits", f"{CLASS_HEAD}.last"),
    (r"reg_module\.(\d)", rf"{BOX_HEAD}.tower.\2"),
    (r"bboxes_delta", f"{BOX_HEAD}.last"),
)

ADAMIXER_STAGE: Rules = (
    (r"attention\.(?:attn\.)?(in_proj_weight|in_proj_bias|out_proj)", rf"{LAYER}.interactions.0.attention.\2"),
    (r"attention_norm", f"{LAYER}.interactions.0.norm"),
    (r"iof_tau", f"{LAYER}.interactions.0.tau"),
    (
        r"sampling_n_mixing\.sampling_offset_generator\.0",
        f"{LAYER}.cross_attention.sampling.sampling_offsets",
    ),
    (r"sampling_n_mixing\.adaptive_mixing\.parameter_generator\.0", f"{LAYER}.cross_attention.mixing.kernels"),
    (r"sampling_n_mixing\.adaptive_mixing\.out_proj", f"{LAYER}.cross_attention.mixing.output"),
    (r"sampling_n_mixing\.norm", f"{LAYER}.cross_attention.norm"),
    (r"ffn\.layers\.0(?:\.0)?", f"{LAYER}.ffn.linear1"),
    (r"ffn\.layers\.1", f"{LAYER}.ffn.linear2"),
    (r"ffn_norm", f"{LAYER}.ffn.norm"),
    (r"cls_fcs\.(\d)", rf"{CLASS_HEAD}.tower.\2"),
    (r"fc_cls", f"{CLASS_HEAD}.last"),
    (r"reg_fcs\.(\d)", rf"{BOX_HEAD}.tower.\2"),
    (r"fc_reg", f"{BOX_HEAD}.last"),
)

SPARSE_RCNN: Rules = (
    *prefixed(r"backbone\.bottom_up\.", DETECTRON2_RESNET),
    (r"backbone\.fpn_lateral(\d)", lambda m: f"{NECK}.laterals.{int(m[1]) - 2}"),
    (r"backbone\.fpn_output(\d)", lambda m: f"{NECK}.outputs.{int(m[1]) - 2}"),
    (r"init_proposal_boxes", f"{SOURCE}.box_table"),
    (r"init_proposal_features", f"{SOURCE}.contents"),
    *prefixed(r"head\.head_series\.(\d)\.", SPARSE_RCNN_STAGE),
)

ADAMIXER: Rules = (
    *prefixed(r"backbone\.", TORCHVISION_RESNET),
    (r"neck\.lateral_convs\.(\d)\.conv", rf"{NECK}.convs.\1"),
    (r"neck\.gn_out", f"{NECK}.norm"),
    (r"rpn_head\.init_content_features", f"{SOURCE}.contents"),
    *prefixed(r"roi_head\.bbox_head\.(\d)\.", ADAMIXER_STAGE),
)


def finish_sparse_rcnn(weights: Weights, names: Collection[str]) -> str:
    weights[f"{SOURCE}.boxes"] = needed(weights, f"{SOURCE}.box_table.weight")
    weights[f"{SOURCE}.content.table"] = needed(weights, f"{SOURCE}.contents.weight")
    del weights[f"{SOURCE}.box_table.weight"], weights[f"{SOURCE}.contents.weight"]
    return ""


def finish_adamixer(weights: Weights, names: Collection[str]) -> str:
    weights[f"{SOURCE}.content.content.table"] = needed(weights, f"{SOURCE}.contents.weight")
    del weights[f"{SOURCE}.contents.weight"]
    return ""


LAYOUTS = (
    Layout(
        "the official Sparse R-CNN",
        ("head.head_series.0.inst_interact.dynamic_layer.weight", "init_proposal_boxes.weight"),
        SPARSE_RCNN,
        finish_sparse_rcnn,
    ),
    Layout(
        "the official AdaMixer",
        ("roi_head.bbox_head.0.iof_tau", "rpn_head.init_content_features.weight"),
        ADAMIXER,
        finish_adamixer,
        ignored=r"rpn_head\.init_proposal_bboxes\.weight",
    ),
)
