# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops import fused_ms_deform_attn
from ..structures import Memory


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, Eq. 3), without residual and norm.

    Initialisation as published: the offsets' weights are zero and their biases point in one direction per head, 1 to
    ``num_points`` pixels far; attention starts uniform; value and output are Xavier-uniform.
    """

    def __init__(self, embed_dim: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for linear in (self.sampling_offsets, self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        bias = direction[:, None, None] * distance[:, None]  # (heads, 1, points, 2)
        self.sampling_offsets.bias.copy_(bias.expand(-1, self.num_levels, -1, -1).reshape(-1))

    def forward(self, query: Tensor, reference: Tensor, memory: Memory, value: Tensor | None = None) -> Tensor:
        """
        Args:
            query: (B, N, C) content plus position.
            reference: (B, N, 2) points or (B, N, 4) boxes.
            value: (B, S, C) the projection of the memory's tokens, where it is at hand.

        Returns:
            (B, N, C).
        """
        batch, num_queries, channels = query.shape
        points = (batch, num_queries, self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(memory.tokens) if value is None else value
        sampled = fused_ms_deform_attn(
            value.view(batch, -1, self.num_heads, channels // self.num_heads),
            memory.grid.shapes,
            reference,
            self.sampling_offsets(query).view(*points, 2),
            self.attention_weights(query).view(*points),
            valid_ratios=memory.grid.valid_ratios,
            padding_mask=memory.grid.padding,
        )
        return self.output_proj(sampled)
