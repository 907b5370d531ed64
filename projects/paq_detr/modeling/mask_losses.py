# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of masks at sampled points (PointRend, Kirillov et al. 2020, 3.1; Mask2Former, 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .losses import Matches

#: Pairs whose points are chosen at once; three times as many points are looked at as are kept.
_AT_ONCE = 64


class PointMaskLosses:
    """Binary cross-entropy and dice of the pairs' masks at ``num_points`` points each, which both read.

    ``oversample`` times as many points are drawn evenly over the image; the share ``uncertain`` of ``num_points`` are
    those of them whose logits are nearest 0, and the others are drawn evenly. An object of which no pixel is left has
    no losses.
    """

    def __init__(self, num_points: int = 12544, oversample: float = 3.0, uncertain: float = 0.75):
        self.num_points, self.oversample, self.uncertain = num_points, oversample, uncertain

    def bce(self, matches: Matches) -> Tensor:
        """(P,) mean over the points."""
        logits, wanted, present = self.at_points(matches)
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1) * present

    def dice(self, matches: Matches) -> Tensor:
        """(P,) 1 - (2 s t + 1) / (s + t + 1), summed over the points' scores s and values t (MaskFormer)."""
        logits, wanted, present = self.at_points(matches)
        scores = logits.sigmoid()
        shared, both = (scores * wanted).sum(1), scores.sum(1) + wanted.sum(1)
        return (1 - (2 * shared + 1) / (both + 1)) * present

    def at_points(self, matches: Matches) -> tuple[Tensor, Tensor, Tensor]:
        """(P, K) logits, (P, K) what they are to become, 0 or 1, and (P,) whether an object has a pixel."""
        return matches.once(self, self._sample)

    def _sample(self, matches: Matches) -> tuple[Tensor, Tensor, Tensor]:
        masks, truth, pairs = matches.output.masks, matches.targets.masks, matches.pairs
        logits = masks(pairs.image, pairs.query)
        parts = list(zip(logits.detach().split(_AT_ONCE), pairs.image.split(_AT_ONCE)))
        points = torch.cat([self.choose(some, partial(masks.sample, some, image)) for some, image in parts])
        wanted = truth.sample(pairs.target, points)
        return masks.sample(logits, pairs.image, points), wanted, truth.present[pairs.target]

    @torch.no_grad()
    def choose(self, like: Tensor, logits_at: Callable[[Tensor], Tensor]) -> Tensor:
        """(P, K, 2) points in [0, 1].

        Args:
            like: (P, ...) whose number, type and device the points have.
            logits_at: (P, M, 2) points to (P, M) logits.
        """
        count = round(self.uncertain * self.num_points)
        drawn = torch.rand(len(like), int(self.oversample * self.num_points), 2, device=like.device)
        nearest = logits_at(drawn).abs().topk(count, dim=1, largest=False).indices
        evenly = torch.rand(len(like), self.num_points - count, 2, device=like.device)
        return torch.cat([drawn.gather(1, nearest[..., None].expand(-1, -1, 2)), evenly], 1)
