# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""How many of the encoder's proposals become queries, image by image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checks import Choice, check_range
from ..structures import LayerOutput

#: What ``QUERIES.KEEP.WHEN`` may be: whether images keep fewer queries (in training, at inference).
WHEN = {"never": (False, False), "inference": (False, True), "always": (True, True)}
_WHEN = Choice("MODEL.DETR.QUERIES.KEEP.WHEN", WHEN)


@dataclass(frozen=True)
class KeptQueries:
    """An image keeps ``factor`` queries for each of its proposals that score ``min_score`` or more: with factor 1
    these proposals themselves, with a larger one as many others behind them.

    Rounded up; at least ``minimum``, and at most as many as there are. The scores decide, and get no gradient of it.
    """

    min_score: float
    factor: float = 1.0
    minimum: int = 1

    @torch.no_grad()
    def counts(self, scores: Tensor, valid: Tensor) -> Tensor:
        """(B,) int64 queries of each image, of (B, N) scores in [0, 1] and which of them are proposals' at all."""
        good = (scores >= self.min_score) & valid
        return (self.factor * good.sum(1)).ceil().long().clamp(self.minimum, scores.shape[1])

    def __call__(self, chosen: LayerOutput, scores: Tensor) -> LayerOutput:
        """The proposals kept, as many slots as the image that keeps most; the others' are filled up, not valid.

        Waits for the device once, for the number of slots.

        Args:
            chosen: the N best proposals of each image, best first; those that are not valid come last.
            scores: (B, N) in [0, 1].
        """
        counts = self.counts(scores, chosen.valid)
        kept = chosen.slice(0, int(counts.amax()))
        place = torch.arange(kept.logits.shape[1], device=counts.device)
        return replace(kept, valid=kept.valid & (place < counts[:, None]))


def build_kept_queries(cfg) -> dict[str, KeptQueries | None]:
    """``keep`` and ``keep_test`` of a source: what it keeps in training and at inference; None: all."""
    Q, key = cfg.MODEL.DETR.QUERIES, "MODEL.DETR.QUERIES.KEEP"
    in_training, at_inference = WHEN[_WHEN(Q.KEEP.WHEN)]
    kept = KeptQueries(
        min_score=check_range(f"{key}.MIN_SCORE", Q.KEEP.MIN_SCORE, "[0, 1]"),
        factor=check_range(f"{key}.FACTOR", Q.KEEP.FACTOR, "[1, inf)"),
        minimum=check_range(f"{key}.MIN", Q.KEEP.MIN, "[1, inf)"),
    )
    return {"keep": kept if in_training else None, "keep_test": kept if at_inference else None}
