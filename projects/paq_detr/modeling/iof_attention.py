# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Self-attention of queries that are boxes, by their place and overlap (AdaMixer, ASAG)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..layers import boxes_cxcywh_to_xyxy, sine_box_code
from ..registry import INTERACTIONS
from ..structures import DecoderState, Memory
from .codec import XYZRCodec, build_xyzr_codec
from .interactions import SelfAttention


class IoFSelfAttention(SelfAttention):
    """``LN(u + MHA(u, u, u))`` with u = content + code of (x, y, z, r); head h adds tau_h log(IoF) to its logits.

    In contrast to other self-attention the code is part of the values and of the residual (AdaMixer's code).
    """

    needs = frozenset({"boxes"})

    def __init__(self, embed_dim: int, num_heads: int, geometry: XYZRCodec, dropout: float = 0.0):
        """
        Args:
            geometry: of the coded (x, y, z, r): their unit, and the scale of r.
        """
        super().__init__(embed_dim, num_heads, dropout)
        self.geometry = geometry
        self.tau = nn.Parameter(torch.empty(num_heads).uniform_(0, 4))
        nn.init.uniform_(self.attention.out_proj.bias, -(embed_dim**-0.5), embed_dim**-0.5)

    def forward(self, state: DecoderState, memory: Memory) -> DecoderState:
        boxes = state.reference.detach()
        code = xyzr_code(self.geometry.to_xyzr(boxes, memory.grid), state.content.shape[-1])
        query = state.content + code.to(state.content.dtype)
        overlap = (intersection_over_foreground(boxes.float() * memory.grid.image_scale) + 1e-7).log()
        bias = (self.tau[:, None, None] * overlap[:, None]).flatten(0, 1)  # (B * heads, N, N)
        blocked = self.blocked(state)
        if blocked is not None:
            bias = bias.masked_fill(blocked, -torch.inf)
        update, _ = self.attention(query, query, query, attn_mask=bias, need_weights=False)
        return state.with_content(self.norm(query + self.dropout(update)))


def intersection_over_foreground(pixels: Tensor) -> Tensor:
    """(B, N, N) share of box i (row) that box j (column) covers, of (B, N, 4) boxes cxcywh in pixels."""
    xyxy = boxes_cxcywh_to_xyxy(pixels)
    low = torch.maximum(xyxy[:, :, None, :2], xyxy[:, None, :, :2])
    high = torch.minimum(xyxy[:, :, None, 2:], xyxy[:, None, :, 2:])
    own = pixels[..., 2:].prod(-1).clamp(min=1e-6)
    return (high - low).clamp(min=0).prod(-1) / own[:, :, None]


def xyzr_code(xyzr: Tensor, dim: int) -> Tensor:
    """(B, N, dim) sine code of (B, N, 4): dim / 4 channels each for x / 1000, y / 1000, z and r, without 2 pi."""
    x, y, z, r = xyzr.unbind(-1)
    return sine_box_code(torch.stack([x / 1000, y / 1000, z, r], -1) / (2 * math.pi), dim // 4)


@INTERACTIONS.register("iof_self_attention")
def build_iof_self_attention(cfg, kit) -> IoFSelfAttention:
    D = cfg.MODEL.DETR
    return IoFSelfAttention(D.HIDDEN_DIM, D.NUM_HEADS, build_xyzr_codec(cfg, kit), D.DROPOUT)
