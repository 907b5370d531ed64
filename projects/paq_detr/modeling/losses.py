# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of one output, once its pairs are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F

from ..layers import corner_distance, paired_giou, paired_iou
from ..registry import CLASS_LOSSES
from ..structures import Assignment, LayerOutput, Targets


@dataclass
class Matches:
    """An output beside the objects that its queries were assigned; P pairs. What losses of any kind read."""

    output: LayerOutput
    pairs: Assignment
    targets: Targets
    _once: dict[int, tuple[Any, Any]] = field(default_factory=dict, init=False, repr=False)

    def once(self, owner: object, compute: Callable[[Matches], Any]) -> Any:
        """``compute(self)``, computed at the first call for ``owner``: what several losses read."""
        if id(owner) not in self._once:
            self._once[id(owner)] = owner, compute(self)
        return self._once[id(owner)][1]

    @cached_property
    def logits(self) -> Tensor:
        """(B, N, K) of all queries, fp32."""
        return self.output.logits.float()

    @cached_property
    def labels(self) -> Tensor:
        """(P,) class of each pair's object."""
        return self.targets.labels[self.pairs.target]

    @property
    def entry(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where in (B, N, K) a pair's query has the class of its object."""
        return self.pairs.image, self.pairs.query, self.labels

    @cached_property
    def boxes(self) -> Tensor:
        """(P, 4) predicted."""
        return self.output.boxes[self.pairs.image, self.pairs.query]

    @cached_property
    def wanted(self) -> Tensor:
        """(P, 4) of the objects."""
        return self.targets.boxes[self.pairs.target]

    @cached_property
    def iou(self) -> Tensor:
        """(P,) of predicted and wanted box, detached."""
        return paired_iou(self.boxes.detach(), self.wanted)

    @cached_property
    def scores(self) -> Tensor:
        """(P,) predicted for the object's class, detached."""
        return self.logits.detach()[self.entry].sigmoid()

    def spread(self, values: Tensor | float) -> Tensor:
        """(B, N, K) with (P,) ``values`` at the pairs' entries and 0 elsewhere."""
        out = torch.zeros_like(self.logits)
        out[self.entry] = values
        return out


class ClassificationLoss:
    """Element-wise loss of all queries and classes, not yet summed; and what it says of the pairs' other losses."""

    def __call__(self, matches: Matches) -> Tensor:
        """(B, N, K)."""
        raise NotImplementedError

    def pair_factors(self, matches: Matches) -> Mapping[str, Tensor]:
        """(P,) factors on the pairs' other losses, by their name ("l1", "giou", ...); those not named have none.

        For losses whose weight of a pair follows from its score or rank (Align-DETR, query weighting).
        """
        return {}

    def of_group(self) -> ClassificationLoss:
        """The loss of a group of queries with known partners (denoising), where an object has many pairs by design."""
        return self


class FocalLoss(ClassificationLoss):
    """Sigmoid focal loss with hard targets; alpha 0.25 and gamma 2 in every system here."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0):
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, matches: Matches) -> Tensor:
        return sigmoid_focal_loss(matches.logits, matches.spread(1.0), self.alpha, self.gamma)


class VarifocalLoss(ClassificationLoss):
    """IoU-aware varifocal loss (PaQ-DETR; VarifocalNet Eq. 2 with alpha 0.75, gamma 2).

    A matched entry learns its box's IoU t with weight t; every other entry is weighted ``alpha * p^gamma``, p detached.
    """

    def __init__(self, alpha: float = 0.75, gamma: float = 2.0):
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, matches: Matches) -> Tensor:
        logits, positive, quality = matches.logits, matches.spread(1.0), matches.spread(matches.iou)
        weight = torch.where(positive > 0, quality, self.alpha * logits.detach().sigmoid() ** self.gamma)
        return weight * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def l1_loss(matches: Matches) -> Tensor:
    """(P,) sum of the four distances, cxcywh."""
    return (matches.boxes - matches.wanted).abs().sum(-1)


def corner_l1_loss(matches: Matches) -> Tensor:
    """(P,) sum of the four distances of the corners (Sparse R-CNN, AdaMixer)."""
    return corner_distance(matches.boxes, matches.wanted)


def giou_loss(matches: Matches) -> Tensor:
    """(P,) 1 - GIoU."""
    return 1 - paired_giou(matches.boxes, matches.wanted)


@CLASS_LOSSES.register("focal")
def build_focal(cfg, kit) -> FocalLoss:
    return FocalLoss()


@CLASS_LOSSES.register("varifocal")
def build_varifocal(cfg, kit) -> VarifocalLoss:
    return VarifocalLoss()
