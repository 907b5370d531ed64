# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of ASAG (iSEE-Laboratory/ASAG), on AdaMixer's and on Sparse R-CNN's layers.

Its copies of a decoder have the names of these detectors' stages; the layer that proposes stands before them here.
Which copy predicts is ``READ_OUT.LAYER``: copy i of the file, counted from 0, is layer i + 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from ..errors import UserError
from .backbones import TORCHVISION_RESNET
from .box_detectors import ADAMIXER_STAGE, SPARSE_RCNN_STAGE
from .dino import mlp
from .layout import DECODER, NECK, SOURCE, Layout, Rules, Weights, prefixed, put, take_numbered

FIRST = f"{DECODER}.layers.0"
_LEVELS = 3  # P3, P4, P5, which stand the other way round here


def behind_the_first(rules: Rules) -> Rules:
    """Rules of stages as rules of copies: one layer later, and behind the vector that tells copies apart."""

    def moved(target: str | Callable[[re.Match], str]) -> Callable[[re.Match], str]:
        def name(match: re.Match) -> str:
            of_stage = target(match) if callable(target) else match.expand(target)
            later = re.sub(r"s\.(\d)\.", lambda m: f"s.{int(m[1]) + 1}.", of_stage, count=1)
            return later.replace("interactions.0", "interactions.1")

        return name

    return tuple((pattern, moved(target)) for pattern, target in rules)


RULES: Rules = (
    *prefixed(r"backbone\.0\.body\.", TORCHVISION_RESNET),
    (r"neck\.inner_blocks\.(\d)(?:\.0)?", rf"{NECK}.laterals.\1"),  # torchvision's pyramid, of two of its versions
    (r"neck\.layer_blocks\.(\d)(?:\.0)?", rf"{NECK}.outputs.\1"),
    *prefixed(
        r"anchor_generator\.",
        (
            (r"compress\.(\d)\.0", lambda m: f"{SOURCE}.compress.{_LEVELS - 1 - int(m[1])}.reduce"),
            (r"compress\.(\d)\.2", lambda m: f"{SOURCE}.compress.{_LEVELS - 1 - int(m[1])}.squeeze"),
            (r"P6", f"{SOURCE}.halve"),
            (r"layernorm\.(\d)", rf"{SOURCE}.code.\1.norm"),
            (r"pos_embedding\.(\d)", rf"{SOURCE}.positions.\1"),
            *mlp("proj_all", f"{SOURCE}.fixed_head"),
            *mlp("proj_patch", f"{SOURCE}.probe_head"),
        ),
    ),
    *prefixed(
        r"rpn\.",
        (
            (r"roi", f"{SOURCE}.content.project"),
            (r"tokens_norm1", f"{SOURCE}.content.norm"),
            (r"attn\.(in_proj_weight|in_proj_bias|out_proj)", rf"{FIRST}.interactions.0.attention.\1"),
            (r"iof_tau", f"{FIRST}.interactions.0.tau"),
            (r"tokens_norm3", f"{FIRST}.interactions.0.norm"),
            (r"tokens_proj\.layers\.0", f"{FIRST}.ffn.linear1"),
            (r"tokens_proj\.layers\.1", f"{FIRST}.ffn.linear2"),
            (r"tokens_norm2", f"{FIRST}.ffn.norm"),
            (r"cls_fcs\.(\d)", rf"{DECODER}.class_heads.0.tower.\1"),
            (r"fc_cls", f"{DECODER}.class_heads.0.last"),
            (r"reg_fcs\.(\d)", rf"{DECODER}.box_heads.0.tower.\1"),
            (r"fc_reg", f"{DECODER}.box_heads.0.last"),
        ),
    ),
    (r"decoder\.decoder_embedding", f"{DECODER}.vectors"),
    *behind_the_first(prefixed(r"decoder\.bbox_head\.(\d)\.", ADAMIXER_STAGE)),
    *behind_the_first(prefixed(r"decoder\.head_series\.(\d)\.", SPARSE_RCNN_STAGE)),
)


def finish(weights: Weights, names: Collection[str]) -> str:
    for number, position in take_numbered(weights, f"{SOURCE}.positions.").items():
        weights[f"{SOURCE}.code.{number}.position"] = position["weight"]
    vectors = weights.pop(f"{DECODER}.vectors.weight", None)
    if vectors is None:
        raise UserError("The weights are incomplete: decoder.decoder_embedding.weight is missing.")
    for copy, vector in enumerate(vectors):
        put(weights, f"{DECODER}.layers.{copy + 1}.interactions.0", {"vector": vector})
    return "ASAG-S" if any(name.startswith("decoder.head_series.") for name in names) else "ASAG-A"


LAYOUTS = (Layout("the official ASAG", ("anchor_generator.proj_all.layers.0.weight", "rpn.iof_tau"), RULES, finish),)
