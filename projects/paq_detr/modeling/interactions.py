# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What happens between the queries of a decoder layer, and between queries and memory.

An interaction is called with (state, memory) and returns the next state; it may change who is alive. ``needs`` names
what must be there: "previous" (a layer before), "boxes" (as references). Without it, nothing is needed. All of
them keep groups of denoising queries apart as ``DecoderState.attention_mask`` says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers import DeformableAttention
from ..registry import CROSS_ATTENTIONS, INTERACTIONS, per_layer
from ..structures import DecoderState, Memory


class SelfAttention(nn.Module):
    """Multi-head attention among the queries that are alive; residual and post-norm. Values have no position."""

    needs: frozenset[str] = frozenset()

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.attention = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.attention.out_proj.weight)

    def forward(self, state: DecoderState, memory: Memory) -> DecoderState:
        mask, query = self.blocked(state), state.query
        update, _ = self.attention(query, query, state.content, attn_mask=mask, need_weights=False)
        return state.with_content(self.norm(state.content + self.dropout(update)))

    def blocked(self, state: DecoderState) -> Tensor | None:
        """Who must not see whom, as ``nn.MultiheadAttention`` wants it; a subclass may have another rule."""
        return blocked_pairs(state, self.attention.num_heads)


def blocked_pairs(state: DecoderState, num_heads: int) -> Tensor | None:
    """The mask that ``nn.MultiheadAttention`` wants: True where a query (row) must not see another (column).

    A query always sees itself, so that no row is empty and a batch's filling slots cannot produce NaN.
    """
    if state.alive is None:
        return state.attention_mask
    batch, num_queries = state.alive.shape
    blocked = (~state.alive)[:, None, :].expand(batch, num_queries, num_queries)
    if state.attention_mask is not None:
        blocked = blocked | state.attention_mask
    itself = torch.eye(num_queries, dtype=torch.bool, device=blocked.device)
    return (blocked & ~itself).repeat_interleave(num_heads, 0)


def separate_sets(mask: Tensor) -> Tensor:
    """(N,) number of the set of queries that see each other, of an attention mask (N, N) that keeps groups apart; 0 for
    the matching queries, which come last."""
    mutual = ~(mask | mask.T)
    first = mutual.to(torch.int64).argmax(1)  # of each query's set
    opens = first == torch.arange(len(mask), device=mask.device)
    number = opens.cumsum(0)[first]
    return number[-1] - number


class CrossAttention(nn.Module):
    """Queries read the memory through deformable attention; residual and post-norm."""

    def __init__(self, embed_dim: int, num_heads: int, num_levels: int, num_points: int, dropout: float = 0.0):
        super().__init__()
        self.attention = DeformableAttention(embed_dim, num_heads, num_levels, num_points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, state: DecoderState, memory: Memory) -> DecoderState:
        update = self.attention(state.query, state.reference, memory, self._value(memory))
        return state.with_content(self.norm(state.content + self.dropout(update)))

    def _value(self, memory: Memory) -> Tensor:
        """(B, S, C); in training kept for the other routes that run this layer, at inference not, to save memory."""
        project = self.attention.value_proj
        return memory.once(self, lambda memory: project(memory.tokens)) if self.training else project(memory.tokens)


class NoCrossAttention(nn.Module):
    """Queries that do not read the memory in this layer."""

    def forward(self, state: DecoderState, memory: Memory) -> DecoderState:
        return state


def cross_attention_name(cfg, kit) -> str:
    """What ``DECODER.CROSS_ATTENTION`` says of the layer that is being built."""
    D = cfg.MODEL.DETR.DECODER
    return per_layer(CROSS_ATTENTIONS.key, D.CROSS_ATTENTION, D.NUM_LAYERS)[kit.layer]


def build_cross_attention(cfg, kit) -> nn.Module:
    """The cross-attention of the layer that is being built."""
    return CROSS_ATTENTIONS.build(cross_attention_name(cfg, kit), cfg, kit)


@INTERACTIONS.register("none")
def build_no_interaction(cfg, kit) -> None:
    return None


@INTERACTIONS.register("self_attention")
def build_self_attention(cfg, kit) -> SelfAttention:
    D = cfg.MODEL.DETR
    return SelfAttention(D.HIDDEN_DIM, D.NUM_HEADS, D.DROPOUT)


@CROSS_ATTENTIONS.register("none")
def build_no_cross_attention(cfg, kit) -> NoCrossAttention:
    return NoCrossAttention()


@CROSS_ATTENTIONS.register("deformable")
def build_deformable_attention(cfg, kit) -> CrossAttention:
    D = cfg.MODEL.DETR
    return CrossAttention(D.HIDDEN_DIM, D.NUM_HEADS, D.NECK.NUM_LEVELS, D.DECODER.NUM_POINTS, D.DROPOUT)
