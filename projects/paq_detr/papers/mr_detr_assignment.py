# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Who learns what in Mr. DETR's one-to-many routes: DAC-DETR's assignment, and the losses of the Align variant.

The assignment is that of the official code (``one2manyMatcherDAC``). Its keys stand in mr_detr.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from detectron2.config import CfgNode as CN
from torch import Tensor

from .. import ops
from ..checks import check_range
from ..modeling.assignment import MatchCost, Pairs
from ..modeling.losses import ClassificationLoss, Matches
from ..registry import ASSIGNERS, CLASS_LOSSES, Kit
from ..structures import LayerOutput, Targets
from .align_detr import AlignLoss


class MixedQualityAssigner:
    """Every object gets up to ``k`` queries, as many as it is the best object of.

    Quality of a query for an object: ``M = alpha score + (1 - alpha) IoU``. Per image:

    1. a query belongs to its best object, and is positive where their M is at least ``tau``;
    2. so is each object's best query, which still belongs to its own best object;
    3. at most ``cap`` of the positives stay, drawn at random;
    4. an object with c > 0 positives takes the ``min(c, k)`` best of *all* queries.

    So an object has none where its best query belongs to another; and a query can be taken by two objects: both its
    pairs have box losses, and its class is that of the object which stands last (``OneClassPerQuery``).
    ``one_object_per_query`` mends both: such a query goes to the object of larger M, and every object has at least one,
    if need be the best that nobody else takes.
    """

    def __init__(
        self, *, alpha: float = 0.3, tau: float = 0.4, k: int = 6, cap: int = 225, one_object_per_query: bool = False
    ):
        self.alpha, self.tau, self.k, self.cap = alpha, tau, k, cap
        self.one_object_per_query = one_object_per_query

    def measure(self, output: LayerOutput, targets: Targets) -> tuple[Tensor, ...]:
        inputs = (output.logits, output.boxes, targets.labels, targets.boxes, targets.image)
        quality = ops.pair_quality(*inputs, score_weight=self.alpha, iou_weight=1 - self.alpha)
        if output.valid is not None:
            quality = quality.masked_fill(~output.valid[:, targets.image], -torch.inf)
        return (quality,)

    def solve(self, measured: Sequence[np.ndarray], targets: Targets, previous: Pairs | None = None) -> Pairs:
        (quality,) = measured
        quality = np.where(quality < 0, -np.inf, quality)  # filling slots, and what is not finite
        found = [
            (start, self._solve_image(quality[start:stop]))
            for start, stop in zip(targets.offsets, targets.offsets[1:])
            if stop > start
        ]
        empty = [np.zeros(0, dtype=np.int64)]
        return Pairs(
            query=np.concatenate([pairs.query for _, pairs in found] or empty),
            target=np.concatenate([pairs.target + start for start, pairs in found] or empty),
            rank=np.concatenate([pairs.rank for _, pairs in found] or empty),
        )

    def _solve_image(self, quality: np.ndarray) -> Pairs:
        """Pairs of one image from (m, N) qualities, objects ascending and the best of each first."""
        count = self._positives(quality)
        best = _top(quality, self.k)  # (m, k)
        taken = np.arange(best.shape[1]) < count[:, None]
        taken &= np.take_along_axis(quality, best, axis=1) > -np.inf
        if self.one_object_per_query:
            query, target = _one_object_each(quality, best, taken)
            order = np.lexsort((-quality[target, query], target))
            query, target = query[order], target[order]
        else:
            query, target = best[taken], np.nonzero(taken)[0]
        return Pairs(query, target, rank=np.arange(len(target)) - np.searchsorted(target, target))

    def _positives(self, quality: np.ndarray) -> np.ndarray:
        """(m,) how many positive queries belong to each object (steps 1 to 3)."""
        owner, largest = quality.argmax(0), quality.max(0)
        positive = largest >= self.tau
        positive[quality.argmax(1)] = True  # quality 0 is enough
        chosen = np.flatnonzero(positive & (largest > -np.inf))
        if len(chosen) > self.cap:
            # numpy's own generator: a checkpoint keeps its state
            chosen = np.random.permutation(chosen)[: self.cap]
        return np.bincount(owner[chosen], minlength=len(quality))


def _top(quality: np.ndarray, k: int) -> np.ndarray:
    """(m, min(k, N)) queries of the largest (m, N) qualities, best first, of equal ones the first."""
    if k < quality.shape[1]:
        candidates = np.sort(np.argpartition(-quality, k - 1, axis=1)[:, :k], axis=1)
    else:
        candidates = np.broadcast_to(np.arange(quality.shape[1]), quality.shape)
    order = np.argsort(-np.take_along_axis(quality, candidates, axis=1), axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1)


def _one_object_each(quality: np.ndarray, best: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries and objects: contested queries to the object of larger quality, then one to each that has none."""
    bids = np.full_like(quality, -np.inf)
    target, query = np.nonzero(taken)[0], best[taken]
    bids[target, query] = quality[target, query]
    owner = np.where(bids.max(0) > -np.inf, bids.argmax(0), -1)  # (N,)
    free = np.where(owner < 0, quality, -np.inf)
    without = np.setdiff1d(np.arange(len(quality)), owner)
    for target in without[np.argsort(-free[without].max(1), kind="stable")]:
        query = free[target].argmax()
        if free[target, query] > -np.inf:
            owner[query] = target
            free[:, query] = -np.inf
    query = np.flatnonzero(owner >= 0)
    return query, owner[query]


@ASSIGNERS.register("mr_quality")
def build_mixed_quality(cfg: CN, kit: Kit, cost: MatchCost) -> MixedQualityAssigner:
    D = cfg.MODEL.DETR
    M, key = D.MR, "MODEL.DETR.MR"
    check_range(f"{key}.CAP_SHARE", M.CAP_SHARE, "(0, 1]")
    check_range(f"{key}.CAP_QUERIES", M.CAP_QUERIES, "[0, inf)")
    return MixedQualityAssigner(
        alpha=check_range(f"{key}.ALPHA", M.ALPHA, "[0, 1]"),
        tau=check_range(f"{key}.TAU", M.TAU, "[0, 1]"),
        k=check_range(f"{key}.K", M.K, "[1, inf)"),
        cap=int(M.CAP_SHARE * (M.CAP_QUERIES or D.QUERIES.NUM)),
        one_object_per_query=M.ONE_OBJECT_PER_QUERY,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Losses


class _LastObject(Matches):
    """Matches as a class loss sees them: a query of several objects has the class of the last one."""

    @cached_property
    def last(self) -> Tensor:
        """(P,) the last pair of each pair's query."""
        batch, num_queries = self.logits.shape[:2]
        slot = self.pairs.image * num_queries + self.pairs.query
        number = torch.arange(len(slot), device=slot.device)
        last = number.new_zeros(batch * num_queries).scatter_reduce_(0, slot, number, "amax")
        return last[slot]

    @property
    def entry(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.pairs.image, self.pairs.query, self.labels[self.last]

    def spread(self, values: Tensor | float) -> Tensor:
        return super().spread(values[self.last] if isinstance(values, Tensor) else values)


class OneClassPerQuery(ClassificationLoss):
    """``loss`` where a query may have several objects: it learns the class of the last one, as in the official code."""

    def __init__(self, loss: ClassificationLoss):
        self.loss = loss

    def __call__(self, matches: Matches) -> Tensor:
        return self.loss(_LastObject(matches.output, matches.pairs, matches.targets))

    def pair_factors(self, matches: Matches) -> Mapping[str, Tensor]:
        return self.loss.pair_factors(matches)

    def of_group(self) -> ClassificationLoss:
        return self.loss.of_group()


class RankedAlignLoss(AlignLoss):
    """Align-DETR's loss in the Align variant: only pairs that their assigner ranked weigh by rank, so not those of the
    main route, of denoising and of the encoder; and the L1 loss is not weighed."""

    def target_and_weight(self, matches: Matches) -> tuple[Tensor, Tensor]:
        target, weight = super().target_and_weight(matches)
        return target, weight if matches.pairs.rank is not None else torch.ones_like(weight)

    def pair_factors(self, matches: Matches) -> Mapping[str, Tensor]:
        return {"giou": super().pair_factors(matches)["giou"]}


@CLASS_LOSSES.register("mr_align")
def build_ranked_align_loss(cfg: CN, kit: Kit) -> RankedAlignLoss:
    return RankedAlignLoss(check_range("MODEL.DETR.ALIGN.TAU", cfg.MODEL.DETR.ALIGN.TAU, "(0, inf)"))
