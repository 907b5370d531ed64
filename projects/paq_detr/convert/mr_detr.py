# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of Mr. DETR (Visual-AI/Mr.DETR): a Deformable-DETR++, and what its two training-only routes own.

The names are detrex's, but for the decoder's layers, where two routes have a norm of the self-attention and a pair of
linear layers each. The variants called DINO and Align differ from the Deformable one in training alone, where they also
have labels of denoising queries.
"""

from __future__ import annotations

from collections.abc import Collection

from .backbones import SWIN_IGNORED
from .detrex import MODEL, finish_deformable
from .dino import mlp
from .layout import DECODER, LABELS, Layout, Rules, Weights, prefixed

_LAYER = rf"{DECODER}.layers.\1"
FFN_ROUTE, TOKEN_ROUTE, PROPOSALS = "routes.mr_ffn", "routes.mr_tokens", "sources.mr_tokens"
_FFN, _INSTRUCTED = rf"{FFN_ROUTE}.decoder.layers.\1.ffn", rf"{TOKEN_ROUTE}.decoder.layers.\1.interactions.0"
MR_DETR: Rules = (
    *MODEL,
    *prefixed(
        r"transformer\.decoder\.layers\.(\d+)\.",
        (
            (r"attentions\.0\.norm_o2o", rf"{_LAYER}.interactions.0.norm"),
            (r"norms\.0", rf"{_LAYER}.cross_attention.norm"),
            (r"ffns\.0\.layers\.0\.linear(?:\.linear)?", rf"{_LAYER}.ffn.linear1"),
            (r"ffns\.0\.layers\.1\.linear", rf"{_LAYER}.ffn.linear2"),
            (r"norms\.1", rf"{_LAYER}.ffn.norm"),
            (r"ffns\.0\.layers\.0\.linear\.linear_sep", rf"{_FFN}.linear1"),
            (r"ffns\.0\.layers\.1\.linear_sep", rf"{_FFN}.linear2"),
            # Two tables, dissolved after the renaming.
            (r"attentions\.0\.instruction_o2m", rf"{_INSTRUCTED}.content"),
            (r"attentions\.0\.instruction_o2m_pos", rf"{_INSTRUCTED}.position"),
            (r"attentions\.0\.norm_o2m", rf"{_INSTRUCTED}.norm"),
        ),
    ),
    (r"transformer\.decoder\.class_embed_o2m_encoder", f"{PROPOSALS}.class_head"),
    *mlp(r"transformer\.decoder\.bbox_embed_enc_o2m", f"{PROPOSALS}.box_head"),
)


def finish(weights: Weights, names: Collection[str]) -> str:
    for name in [name for name in weights if name.startswith(TOKEN_ROUTE)]:
        table = name.removesuffix(".weight")
        if table.endswith((".content", ".position")):
            weights[table] = weights.pop(name)
    return finish_deformable(weights, names) + (", denoising" if f"{LABELS}.weight" in weights else "")


LAYOUTS = (
    Layout(
        "Mr. DETR",
        ("transformer.decoder.layers.0.attentions.0.norm_o2o.weight",),
        MR_DETR,
        finish,
        SWIN_IGNORED,
    ),
)
