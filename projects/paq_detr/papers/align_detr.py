# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Align-DETR: Improving DETR with Simple IoU-aware BCE Loss (Cai et al., arXiv 2304.07527).

| release | here | key |
|---|---|---|
| IoU-aware BCE loss with prime-sample weights | ``AlignLoss`` | LOSS.CLASSIFICATION align, ALIGN.TAU |
| hybrid matching: objects repeated, but in the last layer | ``RepeatedAssigner`` | ASSIGNER.*, ALIGN.COPIES |
| losses of the selected proposals alone | ``modeling.proposals.EncoderTopN`` | QUERIES.SUPERVISE selected |

The release stands on DINO (``configs/coco/align_detr_*``); matching and losses go with any detector. Class, L1 and
GIoU weigh 1 / 5 / 2. Denoising queries are not ranked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode as CN
from torch import Tensor
from torch.nn import functional as F

from ..checks import check_range
from ..modeling.assignment import HungarianAssigner, MatchCost, Pairs, solve_images
from ..modeling.losses import ClassificationLoss, Matches
from ..registry import ASSIGNERS, CLASS_LOSSES, Kit, adds_config
from ..structures import Targets


@adds_config
def add_config(cfg: CN) -> None:
    D = cfg.MODEL.DETR
    D.ALIGN = CN()
    D.ALIGN.COPIES = 2  # queries per object where matching repeats them
    D.ALIGN.TAU = 1.5  # a pair of rank r weighs exp(-r / TAU)
    # True, as released: the cap on copies may reach 0, and an image's cap stays for all later images of its batch.
    D.ALIGN.RELEASED_CAP = False


class RepeatedAssigner(HungarianAssigner):
    """The Hungarian matching with every object standing in it ``copies`` times.

    Copies of an image's n objects take at most half of the N queries: ``min(copies, N // 2n)``, and at least 1. In the
    release that may be 0, and lowers the number for all later images of the batch, which then may have no positive at
    all (``released_cap``).
    """

    def __init__(self, cost: MatchCost, copies: int = 2, released_cap: bool = False):
        super().__init__(cost, copies)
        self.released_cap = released_cap

    def copies_of_images(self, counts: Sequence[int], num_queries: int) -> list[int]:
        """How often the objects of each image are repeated."""
        copies, now = [], self.copies
        for count in counts:
            cap = num_queries // (2 * count) if count else now
            if self.released_cap:
                now = min(now, cap)
                copies.append(now)
            else:
                copies.append(max(1, min(self.copies, cap)))
        return copies

    def solve(self, measured: Sequence[np.ndarray], targets: Targets, previous: Pairs | None = None) -> Pairs:
        (cost,) = measured
        return solve_images(
            cost, np.repeat(self.copies_of_images(targets.counts, cost.shape[1]), targets.counts), targets
        )


class AlignLoss(ClassificationLoss):
    """IoU-aware BCE: a matched entry learns ``t w``, with t = max(0.01, s^0.25 u^0.75) of its score s and IoU u,
    detached, and w = exp(-r / tau) of its rank r among the pairs of its object by falling t. Every other entry has
    weight s^2, not detached. L1 and GIoU of a pair are multiplied by w. Logarithms are taken of logits; the
    release takes them of scores, which gives NaN beyond a logit of 17 in fp32.
    """

    def __init__(self, tau: float = 1.5):
        self.tau = tau

    def target_and_weight(self, matches: Matches) -> tuple[Tensor, Tensor]:
        """(P,) t and (P,) w."""
        target = (matches.scores**0.25 * matches.iou**0.75).clamp(min=0.01)
        return target, torch.exp(-ranks(matches.pairs.target, target) / self.tau)

    def __call__(self, matches: Matches) -> Tensor:
        target, weight = self.target_and_weight(matches)
        logits, matched = matches.logits, matches.spread(1.0)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, matches.spread(target * weight), reduction="none")
        return torch.where(matched > 0, cross_entropy, logits.sigmoid() ** 2 * cross_entropy)

    def pair_factors(self, matches: Matches) -> Mapping[str, Tensor]:
        _, weight = self.target_and_weight(matches)
        return {"l1": weight, "giou": weight}

    def of_group(self) -> AlignLoss:
        """All pairs weigh 1: groups of denoising queries repeat an object, and none of its pairs comes second."""
        return AlignLoss(tau=math.inf)


def ranks(target: Tensor, quality: Tensor) -> Tensor:
    """(P,) place of each pair among those of the same (P,) ``target`` by falling (P,) ``quality``, from 0."""
    order = quality.argsort(descending=True, stable=True)
    order = order[target[order].argsort(stable=True)]
    grouped = target[order]
    place = torch.arange(len(order), device=order.device) - torch.searchsorted(grouped, grouped)
    return torch.empty_like(place).scatter_(0, order, place)


@ASSIGNERS.register("align_repeated")
def build_repeated(cfg: CN, kit: Kit, cost: MatchCost) -> RepeatedAssigner:
    A = cfg.MODEL.DETR.ALIGN
    return RepeatedAssigner(cost, check_range("MODEL.DETR.ALIGN.COPIES", A.COPIES, "[1, inf)"), A.RELEASED_CAP)


@CLASS_LOSSES.register("align")
def build_align_loss(cfg: CN, kit: Kit) -> AlignLoss:
    return AlignLoss(check_range("MODEL.DETR.ALIGN.TAU", cfg.MODEL.DETR.ALIGN.TAU, "(0, inf)"))
