# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Sparse R-CNN (Sun et al., CVPR 2021): learned boxes, and features of each that its own query filters.

| paper and official code | here | key below MODEL.DETR |
|---|---|---|
| feature pyramid P2 to P5, no encoder | ``modeling.fpn.FPN`` | NECK.NAME fpn, ENCODER.NAME none |
| learned proposal boxes and features | ``modeling.queries.LearnedBoxes`` | QUERIES.NAME LearnedBoxes |
| self-attention without positions | ``modeling.interactions.SelfAttention`` | DECODER.QUERY_POSITION none |
| RoIAlign, dynamic instance interactive head | ``DynamicConv``, ``RoIInteraction`` | DECODER.CROSS_ATTENTION [dynamic_conv], SPARSE_RCNN.* |
| class and box towers | ``modeling.heads.TowerHead`` | DECODER.HEADS towers, DECODER.TOWERS.* |
| box deltas of Faster R-CNN | ``modeling.codec.DeltaCodec`` | CODEC rcnn_delta |
| matching cost and losses, L1 of corners | ``modeling.losses`` | LOSS.L1_FORMAT corners |
"""  # noqa: E501

from __future__ import annotations

from detectron2.config import CfgNode as CN
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_range
from ..modeling.roi import MultiLevelRoIAlign
from ..registry import CROSS_ATTENTIONS, Kit, adds_config
from ..structures import DecoderState, Memory


@adds_config
def add_config(cfg: CN) -> None:
    cfg.MODEL.DETR.SPARSE_RCNN = S = CN()
    S.POOL_SIZE = 7  # bins per side of a box
    S.INNER_DIM = 64  # width between the two dynamic layers
    # RoIAlign with the shift by half a pixel (Detectron2's "V2"); False: as in ASAG.
    S.ALIGNED = True


class DynamicConv(nn.Module):
    """Two 1x1 convolutions over a box's features, whose kernels its query makes; then one vector of what they give."""

    def __init__(self, embed_dim: int, inner_dim: int, num_positions: int):
        """
        Args:
            inner_dim: width between the two.
            num_positions: P, bins of a box.
        """
        super().__init__()
        self.kernels = nn.Linear(embed_dim, 2 * embed_dim * inner_dim)
        self.norm1, self.norm2 = nn.LayerNorm(inner_dim), nn.LayerNorm(embed_dim)
        self.output, self.norm3 = nn.Linear(num_positions * embed_dim, embed_dim), nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.kernels.weight)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, query: Tensor, features: Tensor) -> Tensor:
        """(B, N, C) queries and (B, N, P, C) features of their boxes to (B, N, C)."""
        into, back = self.kernels(query).chunk(2, -1)
        hidden = F.relu(self.norm1(features @ into.unflatten(-1, (query.shape[-1], -1))))
        hidden = F.relu(self.norm2(hidden @ back.unflatten(-1, (-1, query.shape[-1]))))
        return F.relu(self.norm3(self.output(hidden.flatten(2))))


class RoIInteraction(nn.Module):
    """A query and the features of its box through a dynamic convolution; residual and post-norm."""

    needs = frozenset({"boxes"})

    def __init__(self, embed_dim: int, inner_dim: int, pool: MultiLevelRoIAlign, dropout: float = 0.0):
        super().__init__()
        self.pool = pool
        self.dynamic_conv = DynamicConv(embed_dim, inner_dim, pool.size**2)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, state: DecoderState, memory: Memory) -> DecoderState:
        features = self.pool(memory, state.reference).flatten(3).transpose(2, 3)  # (B, N, size * size, C), row by row
        update = self.dynamic_conv(state.query, features)
        return state.with_content(self.norm(state.content + self.dropout(update)))


@CROSS_ATTENTIONS.register("dynamic_conv")
def build_dynamic_conv(cfg: CN, kit: Kit) -> RoIInteraction:
    D, key = cfg.MODEL.DETR, "MODEL.DETR.SPARSE_RCNN"
    size = check_range(f"{key}.POOL_SIZE", D.SPARSE_RCNN.POOL_SIZE, "[1, inf)")
    inner_dim = check_range(f"{key}.INNER_DIM", D.SPARSE_RCNN.INNER_DIM, "[1, inf)")
    pool = MultiLevelRoIAlign(size, aligned=D.SPARSE_RCNN.ALIGNED)
    return RoIInteraction(D.HIDDEN_DIM, inner_dim, pool, D.DROPOUT)
