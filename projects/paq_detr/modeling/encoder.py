# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..layers import DeformableAttention, FeedForward
from ..registry import ENCODERS
from ..structures import Memory


class EncoderLayer(nn.Module):
    """Deformable self-attention over the tokens of all levels, then the feed-forward block; post-norm."""

    def __init__(
        self, embed_dim: int, ffn_dim: int, num_heads: int, num_levels: int, num_points: int, dropout: float = 0.0
    ):
        super().__init__()
        self.attention = DeformableAttention(embed_dim, num_heads, num_levels, num_points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, ffn_dim, dropout)

    def forward(self, memory: Memory) -> Memory:
        tokens = memory.tokens
        update = self.attention(tokens + memory.position, memory.grid.centers, memory)
        return memory.with_tokens(self.ffn(self.norm(tokens + self.dropout(update))))


class Encoder(nn.Module):
    """Deformable DETR's encoder. With no layers it hands the neck's maps through (ASAG, Sparse R-CNN, AdaMixer)."""

    def __init__(
        self,
        *,
        num_layers: int,
        embed_dim: int = 256,
        ffn_dim: int = 1024,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        dropout: float = 0.0,
        checkpoint_layers: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(embed_dim, ffn_dim, num_heads, num_levels, num_points, dropout) for _ in range(num_layers)
        )
        self.checkpoint_layers = checkpoint_layers

    def forward(self, memory: Memory) -> Memory:
        for layer in self.layers:
            if self.checkpoint_layers and self.training:
                memory = checkpoint(layer, memory, use_reentrant=False)
            else:
                memory = layer(memory)
        return memory


@ENCODERS.register("deformable")
def build_encoder(cfg, kit) -> Encoder:
    D = cfg.MODEL.DETR
    return Encoder(
        num_layers=D.ENCODER.NUM_LAYERS,
        embed_dim=D.HIDDEN_DIM,
        ffn_dim=D.ENCODER.FFN_DIM,
        num_heads=D.NUM_HEADS,
        num_levels=D.NECK.NUM_LEVELS,
        num_points=D.ENCODER.NUM_POINTS,
        dropout=D.DROPOUT,
        checkpoint_layers=D.ENCODER.CHECKPOINT,
    )
