# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F

from ..checks import check_choice
from ..layers import paired_iou


class ClassificationLoss:
    """Element-wise loss (B, N, K), not yet summed."""

    def quality(self, boxes: Tensor, wanted: Tensor) -> Tensor:
        """(P,) how good each of (P, 4) matched boxes is for its object: the detached IoU, unless a loss says else."""
        return paired_iou(boxes.detach(), wanted)

    def __call__(self, logits: Tensor, positive: Tensor, quality: Tensor) -> Tensor:
        """
        Args:
            logits: (B, N, K).
            positive: (B, N, K), 1 at the class of each matched object, else 0.
            quality: (B, N, K), the quality of the matched box at those places, else 0.
        """
        raise NotImplementedError


class FocalLoss(ClassificationLoss):
    """Sigmoid focal loss with hard targets; alpha 0.25 and gamma 2 in every system here."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0):
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, logits: Tensor, positive: Tensor, quality: Tensor) -> Tensor:
        return sigmoid_focal_loss(logits, positive, self.alpha, self.gamma)


class VarifocalLoss(ClassificationLoss):
    """IoU-aware varifocal loss (PaQ-DETR; VarifocalNet Eq. 2 with alpha 0.75, gamma 2).

    A matched entry learns its box's IoU t with weight t; every other entry is weighted ``alpha * p^gamma``, p detached.
    """

    def __init__(self, alpha: float = 0.75, gamma: float = 2.0):
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, logits: Tensor, positive: Tensor, quality: Tensor) -> Tensor:
        weight = torch.where(positive > 0, quality, self.alpha * logits.detach().sigmoid() ** self.gamma)
        return weight * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def build_classification_loss(name: str) -> ClassificationLoss:
    """The loss that ``LOSS.CLASSIFICATION`` names."""
    losses = {"focal": FocalLoss, "varifocal": VarifocalLoss}
    return losses[check_choice("LOSS.CLASSIFICATION", name, losses)]()
