# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR (ICLR 2022, arXiv 2201.12329).

Its dense form: one level, plain attention over all of its pixels. DN-DETR (CVPR 2022, arXiv 2203.01305) is the same
model with denoising queries (``QUERIES.AUGMENT``). The deformable forms of both need nothing of this file.

| official code | here | key |
|---|---|---|
| last map of the backbone, 1x1 convolution | ``SingleLevel`` | NECK.NAME single_level |
| encoder, position codes scaled by the content | ``DenseEncoder`` | ENCODER.NAME dense |
| anchor boxes as queries | ``modeling.queries.LearnedAnchors`` | QUERIES.NAME LearnedAnchors |
| "3 patterns" | ``PatternedAnchors`` | QUERIES.NAME PatternedAnchors, DAB.PATTERNS |
| position code, modulated code of the centre | ``AnchorPosition`` | DECODER.QUERY_POSITION dab |
| self-attention, projected apart | ``ConditionalSelfAttention`` | DECODER.INTERACTION conditional_self_attention |
| cross-attention, position beside content | ``ConditionalCrossAttention`` | DECODER.CROSS_ATTENTION conditional |

The padding mask reaches the decoder's cross-attention, as in the official code; detrex's retraining leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from detectron2.config import CfgNode as CN
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_range
from ..errors import UserError
from ..layers import ACTIVATION, MLP, FeedForward, xavier
from ..modeling.encoder import Encoder
from ..modeling.interactions import blocked_pairs
from ..modeling.neck import in_features, measure_grid, position_code
from ..modeling.positions import sine_yxwh_code
from ..modeling.queries import ANCHOR_INIT, LearnedAnchors, content_for, queries_at_inference
from ..registry import (
    CONTENTS,
    CROSS_ATTENTIONS,
    ENCODERS,
    INTERACTIONS,
    NECKS,
    POSITIONS,
    SOURCES,
    Kit,
    adds_config,
    check_map_positions,
    per_layer,
)
from ..structures import DecoderState, Memory, QuerySet


@adds_config
def add_config(cfg: CN) -> None:
    cfg.MODEL.DETR.DAB = CN()
    cfg.MODEL.DETR.DAB.PATTERNS = 3  # PatternedAnchors only: queries at each of QUERIES.NUM / PATTERNS anchors


# ----------------------------------------------------------------------------------------------------------------------
# Neck and encoder


class SingleLevel(nn.Module):
    """The backbone's last map through a 1x1 convolution, without a norm; sine position code without a level vector."""

    def __init__(
        self,
        *,
        in_feature: str,
        in_channels: int,
        stride: int,
        embed_dim: int = 256,
        temperature: float = 20.0,
        offset: float = 0.0,
        mask_padding: bool = True,
    ):
        """
        Args:
            in_feature, in_channels, stride: the map to read, its width and stride.
            temperature, offset: of the sine position code.
            mask_padding: count the un-padded pixels by the stride, so that an image does not depend on its batch. False
                is the published way: by nearest-neighbour scaling of the mask.
        """
        super().__init__()
        self.in_feature, self.stride, self.mask_padding = in_feature, stride, mask_padding
        self.temperature, self.offset = temperature, offset
        self.conv = nn.Conv2d(in_channels, embed_dim, 1)

    def forward(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], padded_size: tuple[int, int]
    ) -> Memory:
        """
        Args:
            features: the backbone's maps, (B, C_i, H_i, W_i).
            image_sizes: un-padded (height, width) of each image, in pixels.
            padded_size: (height, width) of the batch.
        """
        x = self.conv(features[self.in_feature])
        tokens = x.flatten(2).transpose(1, 2)
        grid = measure_grid([x.shape[-2:]], [self.stride], image_sizes, padded_size, x.device, self.mask_padding)
        position = position_code(grid, tokens.shape[-1], self.temperature, self.offset)
        return Memory(tokens, position.to(tokens.dtype), grid, features)


class DenseEncoderLayer(nn.Module):
    """Self-attention over all tokens, then the feed-forward block; post-norm. Values have no position."""

    def __init__(self, embed_dim: int, ffn_dim: int, num_heads: int, dropout: float = 0.0, activation: str = "prelu"):
        super().__init__()
        self.attention = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, ffn_dim, dropout, activation)
        nn.init.xavier_uniform_(self.attention.out_proj.weight)

    def forward(self, memory: Memory) -> Memory:
        tokens, padding = memory.tokens, memory.grid.padding
        query = tokens + memory.position
        update, _ = self.attention(query, query, tokens, key_padding_mask=padding, need_weights=False)
        return memory.with_tokens(self.ffn(self.norm(tokens + self.dropout(update))))


class DenseEncoder(Encoder):
    """Before each layer an MLP of the tokens, the same for all layers, scales their position codes."""

    def __init__(self, layers: Sequence[nn.Module], embed_dim: int, checkpoint_layers: bool = False):
        super().__init__(layers, checkpoint_layers)
        self.position_scale = xavier(MLP(embed_dim, embed_dim, embed_dim, 2))

    def step(self, layer: nn.Module, memory: Memory) -> Memory:
        scaled = replace(memory, position=memory.position * self.position_scale(memory.tokens))
        return replace(memory, tokens=layer(scaled).tokens)


# ----------------------------------------------------------------------------------------------------------------------
# Decoder


class PatternedAnchors(LearnedAnchors):
    """At every anchor as many queries as there are contents ("patterns"): content by content, each with all anchors."""

    def queries(self, memory: Memory) -> QuerySet:
        queries = super().queries(memory)
        patterns, anchors = queries.content.shape[1], queries.reference.shape[1]
        return replace(
            queries,
            content=queries.content.repeat_interleave(anchors, 1),
            reference=queries.reference.repeat(1, patterns, 1),
        )


class AnchorPosition(nn.Module):
    """What the current anchors say to a layer: their position code, and the spatial query of the cross-attention.

    The code is an MLP of the anchor's sine code. The spatial query is the centre's sine code, (y, x) as the position
    code of the image; an MLP of the content scales it from the second layer on, and the half of x (y) is multiplied by
    a width (height) that another MLP expects of the content, divided by the anchor's.

    Made for a cascade, whose first layer has no content yet that could scale anything.
    """

    needs = frozenset({"boxes"})

    def __init__(self, embed_dim: int):
        super().__init__()
        self.mlp = xavier(MLP(2 * embed_dim, embed_dim, embed_dim, 2))
        self.content_scale = xavier(MLP(embed_dim, embed_dim, embed_dim, 2))
        self.size_scale = xavier(MLP(embed_dim, embed_dim, 2, 2))

    def forward(self, state: DecoderState, memory: Memory) -> tuple[Tensor, Tensor]:
        """(B, N, C) position code and (B, N, C) spatial query."""
        code = sine_yxwh_code(state.reference, self.mlp[0].in_features // 4).to(state.content.dtype)
        center = code.chunk(2, -1)[0]
        if state.history:
            center = center * self.content_scale(state.content)
        size = (self.size_scale(state.content).sigmoid() / state.reference[..., 2:]).flip(-1)  # (B, N, 2) of y, of x
        return self.mlp(code), (center.unflatten(-1, (2, -1)) * size[..., None]).flatten(-2).to(code.dtype)


class ConditionalSelfAttention(nn.Module):
    """Attention among the queries that are alive; queries and keys are sums of a projected content and position."""

    needs: frozenset[str] = frozenset()

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.content_query, self.content_key = projection(embed_dim), projection(embed_dim)
        self.position_query, self.position_key = projection(embed_dim), projection(embed_dim)
        self.value, self.output = projection(embed_dim), projection(embed_dim, bias=0.0)
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, state: DecoderState, memory: Memory) -> DecoderState:
        content, position = state.content, state.position
        query = self.content_query(content) + self.position_query(position)
        key = self.content_key(content) + self.position_key(position)
        blocked = blocked_pairs(state, 1)  # (N, N), (B, N, N) or None
        visible = None if blocked is None else ~blocked.view(-1, 1, *blocked.shape[-2:])
        query, key, value = (split(x, self.num_heads) for x in (query, key, self.value(content)))
        update = self.output(attend(query, key, value, visible, self.dropout))
        return state.with_content(self.norm(content + self.dropout(update)))


class ConditionalCrossAttention(nn.Module):
    """Queries read all tokens by content and by place: each head compares the content with the content, and beside it
    the spatial query with the position code, so that its queries and keys are twice as wide as its values.

    In the first layer, whose content says nothing yet, content queries and keys have the positions added.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, first: bool = False):
        super().__init__()
        self.content_query, self.content_key = projection(embed_dim), projection(embed_dim)
        self.spatial_query, self.position_key = projection(embed_dim), projection(embed_dim)
        self.position_query = projection(embed_dim) if first else None
        self.value, self.output = projection(embed_dim), projection(embed_dim, bias=0.0)
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, state: DecoderState, memory: Memory) -> DecoderState:
        query = self.content_query(state.content)
        if self.position_query is not None:
            query = query + self.position_query(state.position)
        query = torch.cat([split(query, self.num_heads), split(self.spatial_query(state.spatial), self.num_heads)], -1)
        key, value = memory.once(self, self._read) if self.training else self._read(memory)
        padding = memory.grid.padding
        visible = None if padding is None else ~padding[:, None, None]
        update = self.output(attend(query, key, value, visible, self.dropout))
        return state.with_content(self.norm(state.content + self.dropout(update)))

    def _read(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """(B, heads, S, 2 C / heads) keys and (B, heads, S, C / heads) values."""
        key, position = self.content_key(memory.tokens), self.position_key(memory.position)
        if self.position_query is not None:
            key = key + position
        key = torch.cat([split(key, self.num_heads), split(position, self.num_heads)], -1)
        return key, split(self.value(memory.tokens), self.num_heads)


def projection(embed_dim: int, bias: float | None = None) -> nn.Linear:
    """A Xavier-uniform linear map; ``bias`` fills its bias, which else starts as torch's."""
    linear = xavier(nn.Linear(embed_dim, embed_dim))
    if bias is not None:
        nn.init.constant_(linear.bias, bias)
    return linear


def split(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, C) to (B, heads, N, C / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, dropout: nn.Dropout) -> Tensor:
    """(B, N, C) softmax attention of the heads' queries, scaled by the root of the query's width, heads side by side.

    Args:
        query, key, value: (B, heads, N or S, width of each).
        visible: (B or 1, 1, N or 1, S), True where a query may look; None: everywhere.
        dropout: of the attention weights.
    """
    rate = dropout.p if dropout.training else 0.0
    update = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=rate)
    return update.transpose(1, 2).flatten(2)


# ----------------------------------------------------------------------------------------------------------------------
# From names to parts


@NECKS.register("single_level")
def build_single_level(cfg, kit: Kit) -> SingleLevel:
    D = cfg.MODEL.DETR
    if D.NECK.NUM_LEVELS != 1:
        raise UserError(f"MODEL.DETR.NECK.NUM_LEVELS is {D.NECK.NUM_LEVELS}, but {NECKS.key} single_level makes 1")
    if len(D.NECK.IN_FEATURES) > 1:
        raise UserError(
            f"MODEL.DETR.NECK.IN_FEATURES is {list(D.NECK.IN_FEATURES)}, but {NECKS.key} single_level reads one map"
        )
    name = in_features(D.NECK.IN_FEATURES, kit.feature_shapes)[-1]
    return SingleLevel(
        in_feature=name,
        in_channels=kit.feature_shapes[name].channels,
        stride=kit.feature_shapes[name].stride,
        embed_dim=D.HIDDEN_DIM,
        temperature=D.POSITION.TEMPERATURE,
        offset=D.POSITION.OFFSET,
        mask_padding=D.NECK.MASK_PADDING,
    )


@ENCODERS.register("dense")
def build_dense_encoder(cfg, kit: Kit) -> DenseEncoder:
    check_map_positions(kit, ENCODERS.key, "dense")
    D = cfg.MODEL.DETR
    num_layers = check_range("MODEL.DETR.ENCODER.NUM_LAYERS", D.ENCODER.NUM_LAYERS, "[1, inf)")
    activation = ACTIVATION(D.ACTIVATION)
    layers = [
        DenseEncoderLayer(D.HIDDEN_DIM, D.ENCODER.FFN_DIM, D.NUM_HEADS, D.DROPOUT, activation)
        for _ in range(num_layers)
    ]
    return DenseEncoder(layers, D.HIDDEN_DIM, D.ENCODER.CHECKPOINT)


@SOURCES.register("PatternedAnchors")
def build_patterned_anchors(cfg, kit: Kit) -> PatternedAnchors:
    Q = cfg.MODEL.DETR.QUERIES
    patterns = check_range("MODEL.DETR.DAB.PATTERNS", cfg.MODEL.DETR.DAB.PATTERNS, "[1, inf)")
    if Q.NUM % patterns:
        raise UserError(f"MODEL.DETR.QUERIES.NUM is {Q.NUM}, must be a multiple of MODEL.DETR.DAB.PATTERNS {patterns}")
    if Q.CONTENT != "learned":  # the others give no row of their own to each pattern
        raise UserError(f"{SOURCES.key} PatternedAnchors needs {CONTENTS.key} learned in place of {Q.CONTENT}")
    init = ANCHOR_INIT(Q.ANCHOR_INIT)
    of_patterns = cfg.clone()
    of_patterns.defrost()
    of_patterns.MODEL.DETR.QUERIES.NUM = patterns
    content = content_for(of_patterns, kit)
    at_inference = queries_at_inference(cfg, learned=True)
    return PatternedAnchors(num_queries=Q.NUM // patterns, content=content, init=init, num_queries_test=at_inference)


@POSITIONS.register("dab")
def build_anchor_position(cfg, kit: Kit) -> AnchorPosition:
    _check_pair(cfg)
    return AnchorPosition(cfg.MODEL.DETR.HIDDEN_DIM)


@INTERACTIONS.register("conditional_self_attention")
def build_conditional_self_attention(cfg, kit: Kit) -> ConditionalSelfAttention:
    D = cfg.MODEL.DETR
    if D.DECODER.QUERY_POSITION == "none":
        raise UserError(f"{INTERACTIONS.key} conditional_self_attention needs a position, {POSITIONS.key} is none")
    return ConditionalSelfAttention(D.HIDDEN_DIM, D.NUM_HEADS, D.DROPOUT)


@CROSS_ATTENTIONS.register("conditional")
def build_conditional_cross_attention(cfg, kit: Kit) -> ConditionalCrossAttention:
    _check_pair(cfg)
    check_map_positions(kit, CROSS_ATTENTIONS.key, "conditional")
    D = cfg.MODEL.DETR
    return ConditionalCrossAttention(D.HIDDEN_DIM, D.NUM_HEADS, D.DROPOUT, first=kit.layer == 0)


def _check_pair(cfg) -> None:
    """The spatial query has one maker and one reader."""
    D = cfg.MODEL.DETR.DECODER
    names = per_layer(CROSS_ATTENTIONS.key, D.CROSS_ATTENTION, D.NUM_LAYERS)
    if (D.QUERY_POSITION == "dab") != ("conditional" in names):
        raise UserError(
            f"{CROSS_ATTENTIONS.key} {D.CROSS_ATTENTION} and {POSITIONS.key} {D.QUERY_POSITION} do not fit each other: "
            "conditional reads what dab makes, and needs it"
        )
