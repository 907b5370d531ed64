# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of DINO (IDEA-Research/DINO), DAB- and DN-Deformable-DETR (IDEA-Research/DAB-DETR, FengLi-ust/DN-DETR).

They grew from the original Deformable-DETR repository and keep the names of its layers. Their queries are boxes: a
position code is made from them by ``ref_point_head``, whose input stands in the order y, x, w, h, as ours does.

DINO's file holds each tensor of the decoder's heads twelve times, once for each of six layers in two places. Where the
layers' copies differ, it was trained with a head per layer (``dec_pred_class_embed_share=False``).
"""

from __future__ import annotations

from collections.abc import Collection

from torch.nn import functional as F

from ..errors import UserError
from .backbones import SWIN, SWIN_IGNORED, TORCHVISION_RESNET
from .deformable import COMMON, HEADS, INPUT_PROJECTIONS, OFFICIAL_LAYERS
from .layout import DECODER, LABELS, NECK, SOURCE, Layout, Rules, Weights, needed, place_heads, prefixed


def mlp(pattern: str, target: str) -> Rules:
    """Of an MLP, whose layer i stands at 2 i of ours."""
    return ((pattern + r"\.layers\.(\d)", lambda m: f"{target}.{2 * int(m[1])}"),)


# The tables' own names are dissolved after the renaming.
BOX_QUERIES: Rules = (
    *mlp(r"transformer\.decoder\.ref_point_head", f"{DECODER}.position.mlp"),
    *mlp(r"transformer\.decoder\.query_scale", f"{DECODER}.position.content_scale"),
    (r"transformer\.decoder\.norm", f"{DECODER}.output_norm"),
    (r"(?:transformer\.)?tgt_embed", f"{SOURCE}.contents"),
    (r"refpoint_embed", f"{SOURCE}.anchor_table"),
    (r"label_enc|denoising_generator\.label_encoder", LABELS),
)

OFFICIAL: Rules = (
    *prefixed(r"backbone\.0\.body\.", TORCHVISION_RESNET),
    *prefixed(r"backbone\.0\.", SWIN),
    *prefixed(r"transformer\.", COMMON),
    *INPUT_PROJECTIONS,
    *prefixed(r"(?:transformer\.decoder\.)?", HEADS),
    (r"transformer\.enc_out_class_embed", f"{SOURCE}.class_head"),
    *mlp(r"transformer\.enc_out_bbox_embed", f"{SOURCE}.box_head"),
    *OFFICIAL_LAYERS,
    *BOX_QUERIES,
)


def finish_dino(weights: Weights, names: Collection[str]) -> str:
    place_tables(weights)
    place_heads(weights, shared=True)
    return f"{scales(weights)}, {'a head per layer' if f'{DECODER}.class_heads.1.weight' in weights else 'one head'}"


def finish_with_anchors(weights: Weights, names: Collection[str]) -> str:
    place_tables(weights)
    place_heads(weights, shared=False)
    return "two-stage" if f"{SOURCE}.project.weight" in weights else ""


def scales(weights: Weights) -> str:
    return f"{len(needed(weights, f'{NECK}.level_code'))}-scale"


def place_tables(weights: Weights) -> None:
    """Tables of contents, anchors and labels under the names of our parameters.

    With DN-DETR's indicator contents and labels are one channel narrower than the queries. The label table ends with
    rows that are no classes: DN-DETR's "no object" and, in DINO, one that was never used.
    """
    width = needed(weights, f"{NECK}.level_code").shape[1]
    if f"{SOURCE}.anchor_table.weight" in weights:
        weights[f"{SOURCE}.anchors"] = weights.pop(f"{SOURCE}.anchor_table.weight")
    contents = weights.pop(f"{SOURCE}.contents.weight", None)
    if contents is not None and contents.shape[1] == width - 1:
        weights[f"{SOURCE}.content.content.table"] = F.pad(contents, (0, 1))
    elif contents is not None:
        weights[f"{SOURCE}.content.table"] = contents
    labels = weights.get(f"{LABELS}.weight")
    if labels is not None:
        classes = len(needed(weights, f"{DECODER}.class_heads.0.weight"))
        if not classes <= len(labels) <= classes + 1:
            raise UserError(f"The weights' label table has {len(labels)} rows for {classes} classes.")
        weights[f"{LABELS}.weight"] = labels[:classes]


_CROSS_ATTENTION = "transformer.decoder.layers.0.cross_attn.sampling_offsets.weight"
_ANCHORED = ("transformer.decoder.query_scale.layers.0.weight", _CROSS_ATTENTION)

LAYOUTS = (
    Layout("the official DINO", ("transformer.enc_out_class_embed.weight",), OFFICIAL, finish_dino, SWIN_IGNORED),
    Layout(
        "the official DN-Deformable-DETR", (*_ANCHORED, "label_enc.weight"), OFFICIAL, finish_with_anchors, SWIN_IGNORED
    ),
    Layout("the official DAB-Deformable-DETR", _ANCHORED, OFFICIAL, finish_with_anchors, SWIN_IGNORED),
)
