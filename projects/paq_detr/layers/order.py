# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor


def places(scores: Tensor) -> Tensor:
    """(B, N) place of each score in its row from the best, 0, on; of equals the first stands first.

    By counting, which exporters can write, in contrast to a stable sort; N x N comparisons.
    """
    ones = torch.ones(scores.shape[-1:] * 2, dtype=torch.bool, device=scores.device)
    this, other = scores[..., None], scores[:, None]
    return ((other > this) | ((other == this) & ones.tril(-1))).sum(-1)  # (N, N) the other stands before this one
