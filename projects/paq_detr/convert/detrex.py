# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of detrex (IDEA-Research/detrex): DINO, DAB- and DN-Deformable-DETR, Deformable DETR; and Relation-DETR's.

detrex numbers the attentions, norms and linear layers of a layer in the order in which they run, and keeps Detectron2's
names of the backbone. Models whose queries come from the encoder have one more pair of heads, the encoder's, as the
last. Align-DETR's and other projects' files that were made with detrex have the same names.
"""

from __future__ import annotations

from collections.abc import Collection

from . import deformable, dino
from .backbones import DETECTRON2_RESNET, SWIN, SWIN_IGNORED
from .deformable import COMMON, HEADS, SAMPLING
from .dino import BOX_QUERIES
from .layout import DECODER, NECK, SOURCE, Layout, Rules, Weights, needed, prefixed, put, take_numbered

NECK_AND_BACKBONE: Rules = (
    *prefixed(r"backbone\.", DETECTRON2_RESNET + SWIN),
    (r"neck\.convs\.(\d+)\.conv", rf"{NECK}.convs.\1"),
    (r"neck\.convs\.(\d+)\.norm", rf"{NECK}.norms.\1"),
    (r"neck\.extra_convs\.(\d+)\.conv", rf"{NECK}.extra_convs.\1"),
    (r"neck\.extra_convs\.(\d+)\.norm", rf"{NECK}.extra_norms.\1"),
)
ENCODER: Rules = prefixed(
    r"transformer\.encoder\.layers\.(\d+)\.",
    (
        (r"attentions\.0\." + SAMPLING, r"encoder.layers.\1.attention.\2"),
        (r"norms\.0", r"encoder.layers.\1.norm"),
        (r"ffns\.0\.layers\.0\.0", r"encoder.layers.\1.ffn.linear1"),
        (r"ffns\.0\.layers\.1", r"encoder.layers.\1.ffn.linear2"),
        (r"norms\.1", r"encoder.layers.\1.ffn.norm"),
    ),
)
_LAYER = rf"{DECODER}.layers.\1"
DECODER_ATTENTIONS: Rules = prefixed(
    r"transformer\.decoder\.layers\.(\d+)\.",
    (
        (r"attentions\.0\.attn\.(in_proj_weight|in_proj_bias|out_proj)", rf"{_LAYER}.interactions.0.attention.\2"),
        (r"attentions\.1\." + SAMPLING, rf"{_LAYER}.cross_attention.attention.\2"),
    ),
)
DECODER_LAYERS: Rules = prefixed(
    r"transformer\.decoder\.layers\.(\d+)\.",
    (
        (r"norms\.0", rf"{_LAYER}.interactions.0.norm"),
        (r"norms\.1", rf"{_LAYER}.cross_attention.norm"),
        (r"ffns\.0\.layers\.0\.0", rf"{_LAYER}.ffn.linear1"),
        (r"ffns\.0\.layers\.1", rf"{_LAYER}.ffn.linear2"),
        (r"norms\.2", rf"{_LAYER}.ffn.norm"),
    ),
)
# Without what is special to the layers of a decoder.
MODEL: Rules = (
    *NECK_AND_BACKBONE,
    *prefixed(r"transformer\.", COMMON),
    *prefixed(r"(?:transformer\.decoder\.)?", HEADS),
    *ENCODER,
    *DECODER_ATTENTIONS,
    *BOX_QUERIES,
    (r"query_embedding", rf"{SOURCE}.queries"),
)
DETREX: Rules = (*MODEL, *DECODER_LAYERS)


def place_extra_levels(weights: Weights) -> None:
    """The neck's further levels are numbered on behind those that read the backbone."""
    for kind in ("convs", "norms"):
        extra = take_numbered(weights, f"{NECK}.extra_{kind}.")
        first = len({name.split(".")[2] for name in weights if name.startswith(f"{NECK}.{kind}.")})
        for level, module in extra.items():
            put(weights, f"{NECK}.{kind}.{first + level}", module)


def finish_dino(weights: Weights, names: Collection[str]) -> str:
    finish_with_anchors(weights, names)
    return dino.scales(weights)


def finish_with_anchors(weights: Weights, names: Collection[str]) -> str:
    place_extra_levels(weights)
    return dino.finish_with_anchors(weights, names)


def finish_deformable(weights: Weights, names: Collection[str]) -> str:
    """``query_embedding`` is contents alone where positions come from the encoder's proposals (H-DETR, Mr. DETR)."""
    place_extra_levels(weights)
    table = weights.get(f"{SOURCE}.queries.weight")
    if table is not None and table.shape[1] == needed(weights, f"{NECK}.level_code").shape[1]:
        weights[f"{SOURCE}.content.table"] = weights.pop(f"{SOURCE}.queries.weight")
    return deformable.finish(weights, names)


_CROSS_ATTENTION = "transformer.decoder.layers.0.attentions.1.sampling_offsets.weight"
_SCALE = "transformer.decoder.query_scale.layers.0.weight"
_DENOISING = "denoising_generator.label_encoder.weight"

LAYOUTS = (
    Layout(
        "detrex's DINO",
        (_CROSS_ATTENTION, "transformer.tgt_embed.weight", "transformer.decoder.norm.weight"),
        DETREX,
        finish_dino,
        SWIN_IGNORED,
    ),
    Layout(
        "detrex's DN-Deformable-DETR", (_CROSS_ATTENTION, _SCALE, _DENOISING), DETREX, finish_with_anchors, SWIN_IGNORED
    ),
    Layout("detrex's DAB-Deformable-DETR", (_CROSS_ATTENTION, _SCALE), DETREX, finish_with_anchors, SWIN_IGNORED),
    Layout("detrex's Deformable DETR", (_CROSS_ATTENTION,), DETREX, finish_deformable, SWIN_IGNORED),
    Layout(
        "Relation-DETR's baselines",
        (
            "transformer.decoder.class_head.0.weight",
            "transformer.decoder.position_relation_embedding.pos_proj.0.weight",
        ),
        refusal="their decoder adds a relation bias to its self-attention, which no model here has",
    ),
)
