# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from detectron2.config import configurable
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import DeformableAttention, FeedForward
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

    def forward(self, tokens: Tensor, centers: Tensor, memory: Memory) -> Tensor:
        update = self.attention(tokens + memory.position, centers, memory.with_tokens(tokens))
        return self.ffn(self.norm(tokens + self.dropout(update)))


class Encoder(nn.Module):
    """Deformable DETR's encoder. With no layers it hands the neck's maps through (ASAG, Sparse R-CNN, AdaMixer)."""

    @configurable
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

    @classmethod
    def from_config(cls, cfg) -> dict:
        D = cfg.MODEL.DETR
        return {
            "num_layers": D.ENCODER.NUM_LAYERS,
            "embed_dim": D.HIDDEN_DIM,
            "ffn_dim": D.ENCODER.FFN_DIM,
            "num_heads": D.NUM_HEADS,
            "num_levels": D.NECK.NUM_LEVELS,
            "num_points": D.ENCODER.NUM_POINTS,
            "dropout": D.DROPOUT,
            "checkpoint_layers": D.ENCODER.CHECKPOINT,
        }

    def forward(self, memory: Memory) -> Memory:
        centers = memory.token_centers()
        tokens = memory.tokens
        for layer in self.layers:
            if self.checkpoint_layers and self.training:
                tokens = checkpoint(layer, tokens, centers, memory, use_reentrant=False)
            else:
                tokens = layer(tokens, centers, memory)
        return memory.with_tokens(tokens)
