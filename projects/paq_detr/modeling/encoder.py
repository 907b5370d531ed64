# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..layers import ACTIVATION, DeformableAttention, FeedForward
from ..registry import ENCODERS, check_map_positions
from ..structures import Memory


class EncoderLayer(nn.Module):
    """Deformable self-attention over the tokens of all levels, then the feed-forward block; post-norm."""

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dropout: float = 0.0,
        activation: str = "relu",
    ):
        super().__init__()
        self.attention = DeformableAttention(embed_dim, num_heads, num_levels, num_points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, ffn_dim, dropout, activation)

    def forward(self, memory: Memory) -> Memory:
        tokens = memory.tokens
        update = self.attention(tokens + memory.position, memory.grid.centers, memory)
        return memory.with_tokens(self.ffn(self.norm(tokens + self.dropout(update))))


class Encoder(nn.Module):
    """Layers one after the other. With none it hands the neck's maps through (ASAG, Sparse R-CNN, AdaMixer)."""

    def __init__(self, layers: Sequence[nn.Module], checkpoint_layers: bool = False):
        """
        Args:
            layers: each from ``Memory`` to ``Memory``.
            checkpoint_layers: recompute their activations in the backward pass.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.checkpoint_layers = checkpoint_layers

    def forward(self, memory: Memory) -> Memory:
        for layer in self.layers:
            if self.checkpoint_layers and self.training:
                memory = checkpoint(self.step, layer, memory, use_reentrant=False)
            else:
                memory = self.step(layer, memory)
        return memory

    def step(self, layer: nn.Module, memory: Memory) -> Memory:
        """The memory behind a layer."""
        return layer(memory)


@ENCODERS.register("none")
def build_no_encoder(cfg, kit) -> Encoder:
    return Encoder([])


@ENCODERS.register("deformable")
def build_encoder(cfg, kit) -> Encoder:
    D = cfg.MODEL.DETR
    if D.ENCODER.NUM_LAYERS:
        check_map_positions(kit, ENCODERS.key, "deformable")
    layer = partial(
        EncoderLayer,
        embed_dim=D.HIDDEN_DIM,
        ffn_dim=D.ENCODER.FFN_DIM,
        num_heads=D.NUM_HEADS,
        num_levels=D.NECK.NUM_LEVELS,
        num_points=D.ENCODER.NUM_POINTS,
        dropout=D.DROPOUT,
        activation=ACTIVATION(D.ACTIVATION),
    )
    return Encoder([layer() for _ in range(D.ENCODER.NUM_LAYERS)], D.ENCODER.CHECKPOINT)
