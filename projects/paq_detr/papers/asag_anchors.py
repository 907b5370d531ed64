# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""ASAG's anchors: how a patch becomes some, and what is kept of those of an image.

Shape legend beside structures.py's: P patches, A anchors of a patch, T candidates of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..structures import Grid, LayerOutput
from .asag_patches import to_image


class Compress(nn.Module):
    """1x1 and 3x3 convolution to a few channels. The latter is not padded: one cell on each side is lost."""

    def __init__(self, embed_dim: int, dim: int):
        super().__init__()
        self.reduce, self.squeeze = nn.Conv2d(embed_dim, embed_dim // 2, 1), nn.Conv2d(embed_dim // 2, dim, 3)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """(P, C, H + 2, W + 2) to (P, dim, H, W). ``inside`` (P, 1, H + 2, W + 2) is 0 beyond the image, which counts
        as the zeros that a convolution pads with, and comes out as zeros."""
        hidden = F.gelu(self.reduce(x)) * inside
        return self.squeeze(hidden) * inside[..., 1:-1, 1:-1]


class PatchCode(nn.Module):
    """A patch as one normed vector; every cell has a learned position."""

    def __init__(self, cells: int, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm((cells, dim))
        self.position = nn.Parameter(torch.zeros(cells, dim))

    def forward(self, patches: Tensor) -> Tensor:
        """(P, dim, s, s) to (P, s * s * dim)."""
        return (self.norm(patches.flatten(2).transpose(1, 2)) + self.position).flatten(1)


def anchors_of(head: nn.Module, code: Tensor) -> LayerOutput:
    """The (P, A) anchors that a perceptron finds in patches: a logit, and a box in shares of the patch."""
    found = head(code).float().unflatten(1, (-1, 5))
    return LayerOutput(found[..., 4:], found[..., :4].sigmoid())


@dataclass
class Anchors:
    """Candidates of one stage, detached."""

    boxes: Tensor  # (B, T, 4)
    scores: Tensor  # (B, T), -1 where there is none

    @classmethod
    def measured(cls, boxes: Tensor, scores: Tensor, grid: Grid, there: Tensor | None = None) -> Anchors:
        """Those with a side below 3 pixels, or whose centre lies beyond the image, score 0. Where (B, T) ``there`` is
        False there is no anchor, and one that is not finite is none."""
        small = ((boxes * grid.image_scale)[..., 2:] < 3).any(-1)
        finite = boxes.isfinite().all(-1) & scores.isfinite()
        there = finite if there is None else there & finite
        scores = scores.masked_fill(small | (boxes[..., :2] >= 1).any(-1), 0.0).masked_fill(~there, -1.0)
        return cls(boxes.masked_fill(~there[..., None], 0.0), scores)

    def best(self, most: int) -> tuple[Tensor, Tensor | None]:
        """(B, N, 4) boxes by falling score, and (B, N) which of them are anchors, None where all are; the rest covers
        the image. N is that of the image with the most; they are no more than ``most``, and one at least. In an
        exported program N is ``most``, or as many as there are candidates."""
        if torch.compiler.is_exporting():
            scores, index = self.scores.topk(min(most, self.scores.shape[1]))
            return self.filled_up(index, scores >= 0), scores >= 0
        counts = (self.scores >= 0).sum(1).clamp(max=most).tolist()  # one copy to the host
        number = max(1, *counts)
        scores, index = self.scores.sort(dim=1, descending=True, stable=True)
        scores, index = scores[:, :number], index[:, :number]
        valid = scores >= 0
        return self.filled_up(index, valid), None if min(counts) == number else valid

    def filled_up(self, index: Tensor, valid: Tensor) -> Tensor:
        """(B, N, 4) the boxes at (B, N) ``index``, and the whole image where not (B, N) ``valid``."""
        boxes = self.boxes.gather(1, index[..., None].expand(-1, -1, 4))
        whole = torch.cat([torch.full_like(boxes[..., :2], 0.5), torch.ones_like(boxes[..., 2:])], -1)
        return torch.where(valid[..., None], boxes, whole)


def leading_anchors(output: LayerOutput, windows: Tensor, rows: Tensor, grid: Grid) -> Anchors:
    """The anchors of the patches (B, K) ``rows``, as of ``Patches.leading_rows``."""
    boxes, scores = to_image(output.boxes.detach(), windows[:, None]), output.logits.detach()[..., 0].sigmoid()
    there = (rows >= 0)[..., None].expand(-1, -1, scores.shape[1]).flatten(1)
    rows = rows.clamp(min=0)
    return Anchors.measured(boxes[rows].flatten(1, 2), scores[rows].flatten(1), grid, there)
