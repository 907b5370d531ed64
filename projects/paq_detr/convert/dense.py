# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of the dense DAB-DETR and DN-DETR: IDEA-Research/DAB-DETR and FengLi-ust/DN-DETR, detrex, ``transformers``.

All three build the same model and differ in names alone, which stand side by side here. In contrast to the deformable
models of these repositories, a decoder layer's norms are numbered in the order in which they run. The only head of each
kind is stored in two places.

Models with several patterns ("3 patterns": each anchor once with each of three contents) become ones with as many
queries, a content and an anchor each.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from torch.nn import functional as F

from ..errors import UserError
from .backbones import DETECTRON2_RESNET, TORCHVISION_RESNET, TRANSFORMERS_RESNET
from .deformable import stack_projections
from .dino import mlp
from .layout import DECODER, LABELS, NECK, SOURCE, Layout, Rules, Weights, needed, prefixed

# Per part of a decoder layer: our name; the authors'; detrex's; transformers'.
DECODER_LAYER = (
    ("interactions.0.content_query", "sa_qcontent_proj", "attentions.0.query_content_proj", "{sa}_query_content_proj"),
    ("interactions.0.content_key", "sa_kcontent_proj", "attentions.0.key_content_proj", "{sa}_key_content_proj"),
    ("interactions.0.position_query", "sa_qpos_proj", "attentions.0.query_pos_proj", "{sa}_query_pos_proj"),
    ("interactions.0.position_key", "sa_kpos_proj", "attentions.0.key_pos_proj", "{sa}_key_pos_proj"),
    ("interactions.0.value", "sa_v_proj", "attentions.0.value_proj", "{sa}_value_proj"),
    ("interactions.0.output", "self_attn.out_proj", "attentions.0.out_proj", "{sa}.output_proj"),
    ("interactions.0.norm", "norm1", "norms.0", "{sa}_layer_norm"),
    ("cross_attention.content_query", "ca_qcontent_proj", "attentions.1.query_content_proj", "{ca}_query_content_proj"),
    ("cross_attention.content_key", "ca_kcontent_proj", "attentions.1.key_content_proj", "{ca}_key_content_proj"),
    ("cross_attention.position_query", "ca_qpos_proj", "attentions.1.query_pos_proj", "{ca}_query_pos_proj"),
    ("cross_attention.position_key", "ca_kpos_proj", "attentions.1.key_pos_proj", "{ca}_key_pos_proj"),
    (
        "cross_attention.spatial_query",
        "ca_qpos_sine_proj",
        "attentions.1.query_pos_sine_proj",
        "{ca}_query_pos_sine_proj",
    ),
    ("cross_attention.value", "ca_v_proj", "attentions.1.value_proj", "{ca}_value_proj"),
    ("cross_attention.output", "cross_attn.out_proj", "attentions.1.out_proj", "{ca}.output_proj"),
    ("cross_attention.norm", "norm2", "norms.1", "{ca}_layer_norm"),
    ("ffn.linear1", "linear1", "ffns.0.layers.0.0", "mlp.fc1"),
    ("ffn.activation", "activation", "ffns.0.activation", "mlp.activation_fn"),
    ("ffn.activation", "activation", "ffns.0.layers.0.1", "mlp.activation_fn"),
    ("ffn.linear2", "linear2", "ffns.0.layers.1", "mlp.fc2"),
    ("ffn.norm", "norm3", "norms.2", "mlp.final_layer_norm"),
)
ENCODER_LAYER = (
    ("attention.in_proj_weight", "self_attn.in_proj_weight", "attentions.0.attn.in_proj_weight", ""),
    ("attention.in_proj_bias", "self_attn.in_proj_bias", "attentions.0.attn.in_proj_bias", ""),
    ("attention.q_proj", "", "", "self_attn.q_proj"),
    ("attention.k_proj", "", "", "self_attn.k_proj"),
    ("attention.v_proj", "", "", "self_attn.v_proj"),
    ("attention.out_proj", "self_attn.out_proj", "attentions.0.attn.out_proj", "self_attn.out_proj"),
    ("norm", "norm1", "norms.0", "self_attn_layer_norm"),
    ("ffn.linear1", "linear1", "ffns.0.layers.0.0", "fc1"),
    ("ffn.activation", "activation", "ffns.0.activation", "activation_fn"),
    ("ffn.activation", "activation", "ffns.0.layers.0.1", "activation_fn"),
    ("ffn.linear2", "linear2", "ffns.0.layers.1", "fc2"),
    ("ffn.norm", "norm2", "norms.1", "final_layer_norm"),
)
# The tables' own names are dissolved after the renaming.
SINGLE = (
    (f"{NECK}.conv", "input_proj", "input_proj", "model.input_projection"),
    (f"{SOURCE}.anchor_table", "refpoint_embed", "anchor_box_embed", "model.query_refpoint_embeddings"),
    (f"{SOURCE}.patterns", "transformer.patterns", "transformer.patterns", "model.patterns"),
    (f"{DECODER}.output_norm", "transformer.decoder.norm", "transformer.decoder.post_norm_layer", "{dec}.layernorm"),
    (f"{DECODER}.class_heads.0", "class_embed", "class_embed", "class_embed"),
    (LABELS, "label_enc", "denoising_generator.label_encoder", ""),
)


def rules(column: int, backbone: Rules, transformer: str, box_head: str) -> Rules:
    """Those of one of the three spellings.

    Args:
        column: of the tables.
        transformer: what stands before "encoder" and "decoder".
        box_head: where the box head is also stored, beside the decoder.
    """
    long = {"sa": "self_attn.self_attn", "ca": "cross_attn.cross_attn", "dec": "model.decoder"}

    def named(table: tuple[tuple[str, ...], ...], target: str) -> Rules:
        return tuple((re.escape(row[column].format(**long)), target + row[0]) for row in table if row[column])

    decoder, encoder = rf"{transformer}\.decoder", rf"{transformer}\.encoder"
    return (
        *backbone,
        *prefixed(rf"{decoder}\.layers\.(\d+)\.", named(DECODER_LAYER, rf"{DECODER}.layers.\1.")),
        *prefixed(rf"{encoder}\.layers\.(\d+)\.", named(ENCODER_LAYER, r"encoder.layers.\1.")),
        *named(SINGLE, ""),
        *mlp(rf"{encoder}\.query_scale", "encoder.position_scale"),
        *mlp(rf"{decoder}\.query_scale", f"{DECODER}.position.content_scale"),
        *mlp(rf"{decoder}\.ref_point_head", f"{DECODER}.position.mlp"),
        *mlp(rf"{decoder}\.ref_anchor_head", f"{DECODER}.position.size_scale"),
        *mlp(rf"(?:{decoder}\.bbox_embed|{box_head})", f"{DECODER}.box_heads.0"),
    )


OFFICIAL = rules(1, prefixed(r"backbone\.0\.body\.", TORCHVISION_RESNET), "transformer", "bbox_embed")
DETREX = rules(2, prefixed(r"backbone\.", DETECTRON2_RESNET), "transformer", "bbox_embed")
TRANSFORMERS = rules(
    3,
    prefixed(r"model\.backbone\.conv_encoder\.model\.(?:_backbone\.)?", TORCHVISION_RESNET + TRANSFORMERS_RESNET),
    "model",
    "bbox_predictor",
)


def finish(weights: Weights, names: Collection[str]) -> str:
    stack_projections(weights)
    weights[f"{SOURCE}.anchors"] = needed(weights, f"{SOURCE}.anchor_table.weight")
    del weights[f"{SOURCE}.anchor_table.weight"]
    place_labels(weights)
    patterns = weights.pop(f"{SOURCE}.patterns.weight", None)
    if patterns is None:
        return ""
    if f"{LABELS}.weight" in weights:
        raise UserError("DN-DETR with several patterns cannot be loaded: its patterns are added to marked contents.")
    weights[f"{SOURCE}.content.table"] = patterns
    return f"{len(patterns)} patterns"


def place_labels(weights: Weights) -> None:
    """The label table's last row, "no object", is the content of all matching queries; their mark, a last channel that
    is 0, is no part of the table."""
    labels = weights.get(f"{LABELS}.weight")
    if labels is None:
        return
    classes = len(needed(weights, f"{DECODER}.class_heads.0.weight"))
    if len(labels) != classes + 1:
        raise UserError(f"The weights' label table has {len(labels)} rows for {classes} classes, must have one more.")
    weights[f"{LABELS}.weight"] = labels[:classes]
    weights[f"{SOURCE}.content.content.table"] = F.pad(labels[classes:], (0, 1))


_OFFICIAL = "transformer.decoder.layers.0.sa_qcontent_proj.weight"
_DETREX = "transformer.decoder.layers.0.attentions.1.query_pos_sine_proj.weight"

LAYOUTS = (
    Layout(
        "DN-DETR with a deformable encoder",
        (_OFFICIAL, "transformer.encoder.layers.0.self_attn.sampling_offsets.weight"),
        refusal="no decoder here attends to several levels through a softmax over the levels",
    ),
    Layout("the official DN-DETR", (_OFFICIAL, "label_enc.weight"), OFFICIAL, finish),
    Layout("the official DAB-DETR", (_OFFICIAL,), OFFICIAL, finish),
    Layout("detrex's DN-DETR", (_DETREX, "denoising_generator.label_encoder.weight"), DETREX, finish),
    Layout("detrex's DAB-DETR", (_DETREX,), DETREX, finish),
    Layout("transformers' DAB-DETR", ("model.decoder.ref_anchor_head.layers.0.weight",), TRANSFORMERS, finish),
)
