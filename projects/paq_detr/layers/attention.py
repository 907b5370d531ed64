# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops import fused_ms_deform_attn
from ..structures import LayerOutput, Memory, QuerySet


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

    def forward(self, query: Tensor, reference: Tensor, memory: Memory) -> Tensor:
        """
        Args:
            query: (B, N, C) content plus position.
            reference: (B, N, 2) points or (B, N, 4) boxes.

        Returns:
            (B, N, C).
        """
        batch, num_queries, channels = query.shape
        points = (batch, num_queries, self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(memory.tokens).view(batch, -1, self.num_heads, channels // self.num_heads)
        sampled = fused_ms_deform_attn(
            value,
            memory.shapes,
            reference,
            self.sampling_offsets(query).view(*points, 2),
            self.attention_weights(query).view(*points),
            valid_ratios=memory.valid_ratios,
            padding_mask=memory.padding,
        )
        return self.output_proj(sampled)


class SelfAttention(nn.Module):
    """The plain query-to-query interaction: multi-head attention with residual and post-norm.

    Any interaction has this signature; one that looks at boxes and scores finds them in ``previous``.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.attention = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.attention.out_proj.weight)

    def forward(
        self, content: Tensor, position: Tensor, queries: QuerySet, previous: LayerOutput | None = None
    ) -> Tensor:
        """
        Args:
            content, position: (B, N, C); the position takes no part in the values.
            queries: for its attention mask and validity.
            previous: what the layer before predicted; None in front of the first layer.

        Returns:
            (B, N, C).
        """
        key = content + position
        mask = blocked_pairs(queries, self.attention.num_heads)
        update, _ = self.attention(key, key, content, attn_mask=mask, need_weights=False)
        return self.norm(content + self.dropout(update))


def blocked_pairs(queries: QuerySet, num_heads: int) -> Tensor | None:
    """The mask that ``nn.MultiheadAttention`` wants: True where a query (row) must not see another (column).

    A query always sees itself, so that no row is empty and a batch's filling slots cannot produce NaN.
    """
    if queries.valid is None:
        return queries.attention_mask
    batch, num_queries = queries.valid.shape
    blocked = (~queries.valid)[:, None, :].expand(batch, num_queries, num_queries)
    if queries.attention_mask is not None:
        blocked = blocked | queries.attention_mask
    itself = torch.eye(num_queries, dtype=torch.bool, device=blocked.device)
    return (blocked & ~itself).repeat_interleave(num_heads, 0)
