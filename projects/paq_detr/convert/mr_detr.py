# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of Mr. DETR (Visual-AI/Mr.DETR), of which the route that runs at test time is a Deformable-DETR++.

The names are detrex's, but for the decoder's layers: the self-attention's norm and the feed-forward block exist once
for each of two routes. What belongs to the routes of training, and the labels of its denoising, is left out. The
variants called DINO and Align differ from the Deformable one in training alone.
"""

from __future__ import annotations

from .backbones import SWIN_IGNORED
from .detrex import MODEL, finish_deformable
from .layout import DECODER, Layout, Rules, prefixed

_LAYER = rf"{DECODER}.layers.\1"
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
        ),
    ),
)
TRAINING_ONLY = (
    r"transformer\.decoder\.(?:layers\.\d+\."
    r"(?:attentions\.0\.(?:instruction_o2m|instruction_o2m_pos|norm_o2m)|ffns\.0\.layers\..*\.linear_sep)"
    r"|bbox_embed_enc_o2m|class_embed_o2m_encoder)\..*|label_enc\.weight"
)

LAYOUTS = (
    Layout(
        "Mr. DETR",
        ("transformer.decoder.layers.0.attentions.0.norm_o2o.weight",),
        MR_DETR,
        finish_deformable,
        rf"{TRAINING_ONLY}|{SWIN_IGNORED}",
    ),
)
