# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Deformable DETR's weights under the names of ``transformers`` and of fundamentalvision/Deformable-DETR.

Both exist as single stage, single stage with box refinement, and two-stage; ``transformers`` with either of its
backbones, under the names of its releases 4 and 5. The published ones have 91 classes (COCO's category numbers, unused
ones included). With ``transformers`` installed, a file that carries class names is written by::

    model = DeformableDetrForObjectDetection.from_pretrained(...)
    torch.save({"model": model.state_dict(), "class_names": class_names_of(model.config.to_dict())}, "weights.pth")
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from ..errors import UserError
from .backbones import TORCHVISION_RESNET, TRANSFORMERS_RESNET
from .layout import DECODER, NECK, SOURCE, Layout, Rules, Weights, needed, place_heads, prefixed

# What the whole family calls the same, apart from a prefix.
COMMON: Rules = (
    (r"level_embeds?", rf"{NECK}.level_code"),
    (r"reference_points", rf"{SOURCE}.reference_points"),
    (r"enc_output", rf"{SOURCE}.project"),
    (r"enc_output_norm", rf"{SOURCE}.project_norm"),
    (r"pos_trans", rf"{SOURCE}.position"),
    (r"pos_trans_norm", rf"{SOURCE}.position_norm"),
)
INPUT_PROJECTIONS: Rules = (
    (r"input_proj\.(\d+)\.0", rf"{NECK}.convs.\1"),
    (r"input_proj\.(\d+)\.1", rf"{NECK}.norms.\1"),
)
# The decoder's copies, there where boxes are refined, are the same heads. Layer i of an MLP stands at 2 i of ours.
HEADS: Rules = (
    (r"class_embed\.(\d+)", rf"{DECODER}.class_heads.\1"),
    (r"bbox_embed\.(\d+)\.layers\.(\d)", lambda m: f"{DECODER}.box_heads.{m[1]}.{2 * int(m[2])}"),
)
SAMPLING = r"(sampling_offsets|attention_weights|value_proj|output_proj)"

# The names that do not exist in our model (queries, q_proj, k_proj, v_proj, and the heads' numbers) are dissolved after
# the renaming.
TRANSFORMERS: Rules = (
    *prefixed(r"model\.backbone\.(?:conv_encoder\.)?model\.", TORCHVISION_RESNET + TRANSFORMERS_RESNET),
    *prefixed(r"model\.", COMMON + INPUT_PROJECTIONS),
    *prefixed(r"(?:model\.decoder\.)?", HEADS),
    (r"model\.query_position_embeddings", rf"{SOURCE}.queries"),
    *prefixed(
        r"model\.encoder\.layers\.(\d+)\.",
        (
            (r"self_attn\." + SAMPLING, r"encoder.layers.\1.attention.\2"),
            (r"self_attn_layer_norm", r"encoder.layers.\1.norm"),
            (r"(?:mlp\.)?fc([12])", r"encoder.layers.\1.ffn.linear\2"),
            (r"final_layer_norm", r"encoder.layers.\1.ffn.norm"),
        ),
    ),
    *prefixed(
        r"model\.decoder\.layers\.(\d+)\.",
        (
            (r"self_attn\.([qkv])_proj", rf"{DECODER}.layers.\1.interactions.0.attention.\2_proj"),
            (r"self_attn\.(?:o|out)_proj", rf"{DECODER}.layers.\1.interactions.0.attention.out_proj"),
            (r"self_attn_layer_norm", rf"{DECODER}.layers.\1.interactions.0.norm"),
            (r"encoder_attn\." + SAMPLING, rf"{DECODER}.layers.\1.cross_attention.attention.\2"),
            (r"encoder_attn_layer_norm", rf"{DECODER}.layers.\1.cross_attention.norm"),
            (r"(?:mlp\.)?fc([12])", rf"{DECODER}.layers.\1.ffn.linear\2"),
            (r"final_layer_norm", rf"{DECODER}.layers.\1.ffn.norm"),
        ),
    ),
)

# The layers of the original repository and of those that grew from it (DAB-, DN-Deformable-DETR, DINO).
OFFICIAL_LAYERS: Rules = (
    *prefixed(
        r"transformer\.encoder\.layers\.(\d+)\.",
        (
            (r"self_attn\." + SAMPLING, r"encoder.layers.\1.attention.\2"),
            (r"norm1", r"encoder.layers.\1.norm"),
            (r"linear([12])", r"encoder.layers.\1.ffn.linear\2"),
            (r"norm2", r"encoder.layers.\1.ffn.norm"),
        ),
    ),
    *prefixed(
        r"transformer\.decoder\.layers\.(\d+)\.",
        (
            (r"self_attn\.(in_proj_weight|in_proj_bias|out_proj)", rf"{DECODER}.layers.\1.interactions.0.attention.\2"),
            (r"norm2", rf"{DECODER}.layers.\1.interactions.0.norm"),  # the self-attention's, though it comes first
            (r"cross_attn\." + SAMPLING, rf"{DECODER}.layers.\1.cross_attention.attention.\2"),
            (r"norm1", rf"{DECODER}.layers.\1.cross_attention.norm"),
            (r"linear([12])", rf"{DECODER}.layers.\1.ffn.linear\2"),
            (r"norm3", rf"{DECODER}.layers.\1.ffn.norm"),
        ),
    ),
)

ORIGINAL: Rules = (
    *prefixed(r"backbone\.0\.body\.", TORCHVISION_RESNET),
    *prefixed(r"transformer\.", COMMON),
    *INPUT_PROJECTIONS,
    *prefixed(r"(?:transformer\.decoder\.)?", HEADS),
    (r"query_embed", rf"{SOURCE}.queries"),
    *OFFICIAL_LAYERS,
)


def finish(weights: Weights, names: Collection[str]) -> str:
    split_queries(weights)
    stack_projections(weights)
    two_stage = f"{SOURCE}.project.weight" in weights
    return place_heads(weights, shared=not two_stage and not any("decoder.bbox_embed" in name for name in names))


def split_queries(weights: Weights) -> None:
    """One table of queries, (N, 2 C), becomes the positions and the contents."""
    table = weights.pop(f"{SOURCE}.queries.weight", None)
    if table is None:
        return
    width = needed(weights, f"{NECK}.level_code").shape[1]
    if table.shape[1] != 2 * width:
        raise UserError(
            f"The weights' query table has {table.shape[1]} columns, must have {2 * width} (2 per channel)."
        )
    weights[f"{SOURCE}.position"], weights[f"{SOURCE}.content.table"] = table.split(width, dim=1)


def stack_projections(weights: Weights) -> None:
    """Separate projections of query, key and value become the one of ``nn.MultiheadAttention``."""
    for name in [name for name in weights if ".attention.q_proj." in name]:
        names = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        weights[name.replace(".q_proj.", ".in_proj_")] = torch.cat([needed(weights, part) for part in names])
        for part in names:
            del weights[part]


LAYOUTS = (
    Layout(
        "transformers' Deformable DETR",
        ("model.decoder.layers.0.encoder_attn.sampling_offsets.weight",),
        TRANSFORMERS,
        finish,
    ),
    Layout(
        "the original Deformable-DETR repository",
        ("transformer.decoder.layers.0.cross_attn.sampling_offsets.weight",),
        ORIGINAL,
        finish,
    ),
)
