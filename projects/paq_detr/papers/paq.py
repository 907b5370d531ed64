# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""PaQ-DETR: Learning Pattern and Quality-Aware Dynamic Queries for Object Detection (CVPR 2026, arXiv 2603.06917).

| paper | here | key |
|---|---|---|
| weight generator F_w (Fig. 2, 3.2) | ``WeightGenerator`` | PATTERNS.FUSION, .ATTENTION, .HEAD |
| content queries from shared patterns (Eq. 3-4) | ``PatternContent`` | QUERIES.CONTENT patterns, PATTERNS.NUM |
| quality and positive count (Eq. 6-7) | ``QualityCountAssigner`` | ASSIGNER.* quality_count, QUALITY_ASSIGNMENT.* |
| diversity loss (Eq. 8) | ``diversity_loss`` | PATTERNS.DIVERSITY_WEIGHT, .DIVERSITY_SCALE |
| IoU-aware varifocal loss | ``modeling.losses.VarifocalLoss`` | LOSS.CLASSIFICATION |
| hybrid branch (Table 3) | hybrid.py | ROUTES [hybrid], HYBRID.* |

There is no official code. Where the paper's text, as far as its readers quote it, is silent, we follow the first
author's working fork of Relation-DETR or choose ourselves; papers/README.md lists every such place.

Shape legend: B images, n queries, m patterns, d channels, M objects of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode as CN
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..checks import Choice, check_range
from ..layers import MaskedGroupNorm
from ..layers.gates import ECA, ChannelMLP, CoordinateAttention, SpatialConv
from ..modeling.assignment import FORBIDDEN, MatchCost, Pairs, solve_images
from ..modeling.contents import ContentSource
from ..modeling.diagnostics import log_scalars
from ..registry import ASSIGNERS, CONTENTS, Kit, adds_config
from ..structures import LayerOutput, Memory, Targets


@adds_config
def add_config(cfg: CN) -> None:
    D = cfg.MODEL.DETR
    # The content "patterns": content queries mixed from shared patterns.
    D.PATTERNS = CN()
    D.PATTERNS.NUM = 150
    D.PATTERNS.FUSION = "full"  # "full": multi-scale fusion with attention; "mean": mean of all tokens
    D.PATTERNS.ATTENTION = "cbam"  # for "full": "cbam" (authors' code) or "eca_coord" (paper's text)
    D.PATTERNS.HEAD = "full"  # "full": one weight row per query; "factored": of rank PATTERNS.RANK
    D.PATTERNS.RANK = 256
    D.PATTERNS.MASKED_POOL = True  # pool over valid pixels only
    D.PATTERNS.DIVERSITY_WEIGHT = 0.2  # beta of Eq. 8
    D.PATTERNS.DIVERSITY_SCALE = 1.0  # the authors' working fork multiplies the mean by 600

    # The assigner "quality_count": quality-aware one-to-many.
    D.QUALITY_ASSIGNMENT = CN()
    D.QUALITY_ASSIGNMENT.GAMMA = 0.4  # Eq. 6
    D.QUALITY_ASSIGNMENT.K = 4  # Eq. 7
    D.QUALITY_ASSIGNMENT.MIN_COUNT = 1  # l of Eq. 7
    # Which queries become the k_j positives: "hungarian" (object repeated k_j times) or "score" (the best by Eq. 6).
    D.QUALITY_ASSIGNMENT.SELECT = "hungarian"
    D.QUALITY_ASSIGNMENT.MAX_SHARE = 0.5  # an object's copies never exceed this share of queries / objects


# ----------------------------------------------------------------------------------------------------------------------
# Content queries mixed from shared patterns


class PatternContent(ContentSource):
    """Content queries as convex mixtures of shared patterns: ``q_i = sum_j w_ij p_j`` (Eq. 4), w per image (Eq. 3).

    Patterns start N(0, 1): under a nearly uniform softmax their mean is then about ``1/sqrt(m)`` long per channel.
    """

    query_axes = {"patterns": 0}

    def __init__(
        self,
        *,
        num_patterns: int,
        embed_dim: int,
        generator: WeightGenerator,
        diversity_weight: float = 0.2,
        diversity_scale: float = 1.0,
    ):
        super().__init__()
        self.patterns = nn.Parameter(torch.randn(num_patterns, embed_dim))
        self.generator = generator
        self.query_blocks = {f"generator.head.{name}": "patterns" for name in generator.head.per_query}
        self.diversity_weight, self.diversity_scale = diversity_weight, diversity_scale

    def forward(self, memory: Memory, chosen: LayerOutput | None = None) -> Tensor:
        """(B, n, d) content queries, mixed once a step for all sources that ask."""
        return memory.once(self, self._mixed)

    def _mixed(self, memory: Memory) -> Tensor:
        weights = self.generator(memory)
        if self.training:
            log_scalars(lambda: self._diagnostics(weights.detach()))
        return weights.to(self.patterns.dtype) @ self.patterns

    def losses(self) -> dict[str, Tensor]:
        return {"loss_diversity": self.diversity_weight * self.diversity_scale * diversity_loss(self.patterns)}

    @torch.no_grad()
    def _diagnostics(self, weights: Tensor) -> dict[str, Tensor]:
        entropy = -(weights * weights.clamp(min=1e-12).log()).sum(-1).mean()
        return {"paq/pattern_mean_abs_cos": diversity_loss(self.patterns), "paq/weight_entropy": entropy}


def diversity_loss(patterns: Tensor) -> Tensor:
    """Mean of |cos(p_i, p_j)| over i != j (Eq. 8): 1 for identical patterns, 0 for orthogonal ones."""
    unit = F.normalize(patterns.float(), dim=-1)
    cos = (unit @ unit.T).abs()
    count = len(patterns)
    return (cos.sum() - cos.diagonal().sum()) / max(count * (count - 1), 1)


class WeightGenerator(nn.Module):
    """Pattern weights of every query from the encoder's memory: (B, n, m), rows sum to 1 (Eq. 3)."""

    def __init__(
        self,
        *,
        num_queries: int,
        num_patterns: int,
        embed_dim: int,
        num_levels: int,
        fusion: str = "full",
        attention: str = "cbam",
        head: str = "full",
        rank: int = 256,
        masked_pool: bool = True,
    ):
        """
        Args:
            fusion: "full", the paper's multi-scale fusion; "mean", the mean token, as in the authors' plain variant.
            attention: inside "full": "cbam" (authors' fork) or "eca_coord" (the paper credits ECA and coordinate
                attention).
            head: "full", one linear row per weight (34.7M parameters at n=900, m=150); "factored", logits of the form
                ``sum_r a_ir u_r b_jr`` of rank ``rank``, ours.
            masked_pool: pool over valid pixels only, ours; False pools over the padding as well.
        """
        super().__init__()
        self.masked_pool = masked_pool
        self.fusion: nn.Module = FUSIONS[fusion](embed_dim=embed_dim, num_levels=num_levels, attention=attention)
        self.head: nn.Module = HEADS[head](
            embed_dim=embed_dim, num_queries=num_queries, num_patterns=num_patterns, rank=rank
        )

    def forward(self, memory: Memory) -> Tensor:
        grid = memory.grid
        padding = grid.masks if self.masked_pool and grid.has_padding else [None] * len(grid.shapes)
        return self.head(self.fusion(memory, padding)).float().softmax(-1)


class MeanToken(nn.Module):
    """Mean of all valid tokens, then Linear-ReLU-Linear: the plain variant of the authors' fork."""

    def __init__(self, *, embed_dim: int, **_unused):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))

    def forward(self, memory: Memory, padding: Sequence[Tensor | None]) -> Tensor:
        if padding[0] is None:
            return self.mlp(memory.tokens.mean(1))
        keep = ~torch.cat([p.flatten(1) for p in padding], 1)[..., None]
        return self.mlp((memory.tokens * keep).sum(1) / keep.sum(1))


class MultiScaleFusion(nn.Module):
    """Per level a 1x1 and a dilated 3x3 convolution; then top-down: upsample, add, channel and spatial attention; pool.

    Dilations 1, 2, 4, 8 from fine to coarse as in the authors' fork; group norm where the fork has batch norm, because
    two images per GPU make batch statistics noisy.
    """

    def __init__(self, *, embed_dim: int, num_levels: int, attention: str):
        super().__init__()
        channel, spatial = GATES[attention]
        self.reduce = nn.ModuleList(nn.Conv2d(embed_dim, embed_dim, 1) for _ in range(num_levels))
        self.dilated = nn.ModuleList(
            nn.Conv2d(embed_dim, embed_dim, 3, padding=2**level, dilation=2**level, bias=False)
            for level in range(num_levels)
        )
        self.norms = nn.ModuleList(MaskedGroupNorm(32, embed_dim) for _ in range(num_levels))
        self.channel = nn.ModuleList(channel(embed_dim) for _ in range(num_levels - 1))
        self.spatial = nn.ModuleList(spatial(embed_dim) for _ in range(num_levels - 1))

    def forward(self, memory: Memory, padding: Sequence[Tensor | None]) -> Tensor:
        """(B, d) image descriptor."""
        fused: Tensor | None = None
        maps = memory.levels()
        for level in reversed(range(len(maps))):
            x = self._level(level, maps[level], padding[level])
            if fused is not None:
                x = x + _double(fused, padding[level + 1])[..., : x.shape[-2], : x.shape[-1]]
                keep = _keep(x, padding[level])
                x = self.spatial[level](self.channel[level](x * keep, keep), keep)
            fused = x
        keep = _keep(fused, padding[0])
        return (fused * keep).sum((2, 3)) / keep.sum((2, 3))

    def _level(self, level: int, x: Tensor, padding: Tensor | None) -> Tensor:
        x = self.reduce[level](x)
        x = self.dilated[level](x * _keep(x, padding))
        return F.relu(self.norms[level](x, padding))


def _keep(x: Tensor, padding: Tensor | None) -> Tensor:
    """(B, 1, H, W) 1 at valid pixels of (B, C, H, W) ``x``, 0 in the padding."""
    if padding is None:
        return x.new_ones(x.shape[0], 1, *x.shape[-2:])
    return (~padding)[:, None].to(x.dtype)


def _double(x: Tensor, padding: Tensor | None) -> Tensor:
    """Bilinear upsampling of a (B, C, H, W) map by two; towards padding the valid pixels repeat, as at a border."""

    def up(y: Tensor) -> Tensor:
        return F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)

    if padding is None:
        return up(x)
    keep = _keep(x, padding)
    return up(x * keep) / up(keep).clamp(min=1e-6)


def _head_mlp(embed_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(embed_dim, embed_dim), nn.LayerNorm(embed_dim), nn.ReLU(), nn.Linear(embed_dim, out_dim)
    )


class FullHead(nn.Module):
    """One linear row for each of the n * m weights."""

    per_query = ("mlp.3.weight", "mlp.3.bias")  # of m rows per query

    def __init__(self, *, embed_dim: int, num_queries: int, num_patterns: int, **_unused):
        super().__init__()
        self.mlp = _head_mlp(embed_dim, num_queries * num_patterns)
        self.num_patterns = num_patterns

    def forward(self, descriptor: Tensor) -> Tensor:
        return self.mlp(descriptor).unflatten(-1, (-1, self.num_patterns))


class FactoredHead(nn.Module):
    """Weight logits of rank r: ``sum_r a_ir u_r(z) b_jr`` with learned a (n, r), b (m, r) and u an MLP of the image."""

    query_axes = {"query_factor": 0, "pattern_factor": 0}
    per_query = ()

    def __init__(self, *, embed_dim: int, num_queries: int, num_patterns: int, rank: int):
        super().__init__()
        self.mlp = _head_mlp(embed_dim, rank)
        self.query_factor = nn.Parameter(torch.randn(num_queries, rank))
        self.pattern_factor = nn.Parameter(torch.randn(num_patterns, rank) / rank**0.5)

    def forward(self, descriptor: Tensor) -> Tensor:
        mixed = self.query_factor * self.mlp(descriptor)[:, None]
        return mixed @ self.pattern_factor.T


FUSIONS = {"full": MultiScaleFusion, "mean": MeanToken}
GATES = {"cbam": (ChannelMLP, SpatialConv), "eca_coord": (ECA, CoordinateAttention)}
HEADS = {"full": FullHead, "factored": FactoredHead}
_FUSION = Choice("MODEL.DETR.PATTERNS.FUSION", FUSIONS)
_ATTENTION = Choice("MODEL.DETR.PATTERNS.ATTENTION", GATES)
_HEAD = Choice("MODEL.DETR.PATTERNS.HEAD", HEADS)


@CONTENTS.register("patterns")
def build_patterns(cfg: CN, kit: Kit) -> PatternContent:
    D = cfg.MODEL.DETR
    P, key = D.PATTERNS, "MODEL.DETR.PATTERNS"
    generator = WeightGenerator(
        num_queries=D.QUERIES.NUM,
        num_patterns=check_range(f"{key}.NUM", P.NUM, "[1, inf)"),
        embed_dim=D.HIDDEN_DIM,
        num_levels=D.NECK.NUM_LEVELS,
        fusion=_FUSION(P.FUSION),
        attention=_ATTENTION(P.ATTENTION),
        head=_HEAD(P.HEAD),
        rank=check_range(f"{key}.RANK", P.RANK, "[1, inf)"),
        masked_pool=P.MASKED_POOL,
    )
    return PatternContent(
        num_patterns=P.NUM,
        embed_dim=D.HIDDEN_DIM,
        generator=generator,
        diversity_weight=P.DIVERSITY_WEIGHT,
        diversity_scale=P.DIVERSITY_SCALE,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Quality-aware one-to-many assignment


class QualityCountAssigner:
    """An object gets as many queries as its best ones deserve (Eq. 6-7).

    ``s_ij = IoU_ij - gamma c_ij``, c the score of the object's class;
    ``k_j = max(ceil(sum of the k largest s_.j), l)``.

    Which k_j queries: the paper's text was not at hand, and its readers differ.
      "hungarian"  object j stands k_j times in the ordinary matching cost; s only sets the count (every one-to-many
                   path of the first author's fork works so; the default).
      "score"      the k_j queries of highest s. Each object's one-to-one Hungarian query comes first and is nobody
                   else's; a query that several objects want goes to the one of larger s, and losers get no other.
    Copies never exceed ``max_share * n / G`` of G objects in the image (Align-DETR, Relation-DETR), and at least 1.
    """

    def __init__(
        self,
        cost: MatchCost,
        *,
        gamma: float = 0.4,
        k: int = 4,
        min_count: int = 1,
        select: str = "hungarian",
        max_share: float = 0.5,
    ):
        self.cost, self.gamma, self.k, self.min_count = cost, gamma, k, min_count
        self.select, self.max_share = select, max_share

    def measure(self, output: LayerOutput, targets: Targets) -> tuple[Tensor, ...]:
        logits, boxes = output.logits, output.boxes
        if output.valid is not None:  # filling slots overlap nothing and score nothing
            logits = logits.masked_fill(~output.valid[..., None], -30.0)
            boxes = boxes.masked_fill(~output.valid[..., None], 0.0)
        inputs = (logits, boxes, targets.labels, targets.boxes, targets.image)
        weights = {"score_weight": -self.gamma, "iou_weight": 1.0}
        _, _, count = ops.quality_topk(*inputs, **weights, k=self.k, min_count=self.min_count)
        if self.select == "hungarian":
            return self.cost(output, targets), count
        return self.cost(output, targets), count, ops.pair_quality(*inputs, **weights)

    def solve(self, measured: Sequence[np.ndarray], targets: Targets, previous: Pairs | None = None) -> Pairs:
        cost = measured[0]
        copies = self._capped(measured[1].astype(np.int64), cost.shape[1], targets)
        if self.select == "hungarian":
            return solve_images(cost, copies, targets)
        return self._best_by_quality(cost, copies, measured[2], targets)

    def _capped(self, count: np.ndarray, num_queries: int, targets: Targets) -> np.ndarray:
        per_image = np.maximum(self.max_share * num_queries / np.maximum(targets.counts, 1), 1).astype(np.int64)
        return np.minimum(count, np.repeat(per_image, targets.counts))

    @staticmethod
    def _best_by_quality(cost: np.ndarray, copies: np.ndarray, quality: np.ndarray, targets: Targets) -> Pairs:
        reserved_query, reserved_object, *_ = solve_images(cost, np.ones_like(copies), targets)
        offsets = targets.offsets
        image_of = np.repeat(np.arange(len(targets.counts)), targets.counts)
        quality = np.where(cost < FORBIDDEN, quality, -np.inf)
        # A reserved query is out of everybody's reach, and first in its own object's order.
        for query, owner in zip(reserved_query, reserved_object):
            quality[offsets[image_of[owner]] : offsets[image_of[owner] + 1], query] = -np.inf
        quality[reserved_object, reserved_query] = np.inf
        order = np.argsort(-quality, axis=1, kind="stable")
        wanted = np.zeros_like(quality, dtype=bool)
        np.put_along_axis(wanted, order, np.arange(quality.shape[1]) < copies[:, None], axis=1)
        wanted &= quality > -np.inf
        bids = np.where(wanted, quality, -np.inf)
        queries, objects = [], []
        for start, stop in zip(offsets, offsets[1:]):
            if start == stop:
                continue
            winner = bids[start:stop].argmax(0)
            query = np.flatnonzero(wanted[start:stop].any(0))
            queries.append(query)
            objects.append(winner[query] + start)
        empty = np.zeros(0, dtype=np.int64)
        return Pairs(np.concatenate(queries or [empty]), np.concatenate(objects or [empty]))


_SELECT = Choice("MODEL.DETR.QUALITY_ASSIGNMENT.SELECT", ("hungarian", "score"))


@ASSIGNERS.register("quality_count")
def build_quality_count(cfg: CN, kit: Kit, cost: MatchCost) -> QualityCountAssigner:
    Q, key = cfg.MODEL.DETR.QUALITY_ASSIGNMENT, "MODEL.DETR.QUALITY_ASSIGNMENT"
    return QualityCountAssigner(
        cost,
        gamma=Q.GAMMA,
        k=check_range(f"{key}.K", Q.K, "[1, inf)"),
        min_count=check_range(f"{key}.MIN_COUNT", Q.MIN_COUNT, "[1, inf)"),
        select=_SELECT(Q.SELECT),
        max_share=Q.MAX_SHARE,
    )
