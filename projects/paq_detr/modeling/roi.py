# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What boxes hold of a feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layers import boxes_cxcywh_to_xyxy
from ..ops import ms_deform_attn
from ..structures import Memory

NOWHERE = -9.0  # a location outside of every map


class MultiLevelRoIAlign:
    """RoIAlign (He et al. 2017) on the level that fits a box's size (feature pyramids, Lin et al. 2017, Eq. 1).

    Each image is read from its own un-padded map, whose last row and column RoIAlign extends outwards; so a box's
    features do not depend on the batch. No gradient reaches the boxes.

    It is deformable attention whose queries are bins: one call for all images and levels, without a wait for the
    device, and faster than a call of torchvision's ``roi_align`` for each of them (docs/performance.md).
    """

    def __init__(self, size: int = 7, sampling_ratio: int = 2, aligned: bool = True, eps: float = 1e-8):
        """
        Args:
            size: bins per side.
            sampling_ratio: samples per bin and axis.
            aligned: with the shift by half a pixel of Detectron2's "V2" (Sparse R-CNN); False is the older RoIAlign of
                torchvision's pyramids (ASAG).
            eps: added inside the logarithm of the level rule: 1e-8 in Detectron2, 1e-6 in torchvision (outside of it).
        """
        self.size, self.sampling_ratio, self.aligned, self.eps = size, sampling_ratio, aligned, eps

    def __call__(self, memory: Memory, boxes: Tensor) -> Tensor:
        """(B, N, C, size, size) of (B, N, 4) boxes. A box that is not finite is read as an empty one at the origin."""
        pixels = boxes.detach().float() * memory.grid.image_scale
        pixels = torch.where(pixels.isfinite().all(-1, keepdim=True), pixels, 0.0)
        level = self.level_of(pixels, memory.grid.strides)
        points = self.bin_points(memory, pixels, level)
        weights = points.new_full((), 1 / self.sampling_ratio**2).expand(points.shape[:-1])
        pooled = ms_deform_attn(memory.tokens[:, :, None], memory.grid.shapes, points, weights)
        return pooled.unflatten(1, (pixels.shape[1], self.size, self.size)).permute(0, 1, 4, 2, 3)

    def bin_points(self, memory: Memory, pixels: Tensor, level: Tensor) -> Tensor:
        """Where the bins of (B, N, 4) boxes in pixels are sampled: (B, N size^2, 1, L, sampling_ratio^2, 2) for
        deformable attention whose queries are bins. On all levels but a box's own its points lie nowhere."""
        grid, samples = memory.grid, self.size * self.sampling_ratio
        stride = torch.tensor(grid.strides, device=pixels.device)[level][..., None]
        corners = boxes_cxcywh_to_xyxy(pixels) / stride - 0.5 * self.aligned
        sides = corners[..., 2:] - corners[..., :2]
        sides = sides if self.aligned else sides.clamp(min=1)
        fractions = (torch.arange(samples, device=pixels.device) + 0.5) / samples
        axes = corners[..., None, :2] + sides[..., None, :] * fractions[:, None]  # (B, N, samples, 2), x and y
        limit = grid.valid_shapes.flip(-1).gather(1, level[..., None].expand(-1, -1, 2))[..., None, :]
        inside = (axes >= -1) & (axes <= limit)
        axes = axes.clamp(min=0).minimum(limit - 1)  # the last row and column go on outwards
        axes = torch.where(inside, axes + 0.5, NOWHERE).unflatten(2, (self.size, self.sampling_ratio))
        x, y = axes[:, :, None, :, None, :, 0], axes[:, :, :, None, :, None, 1]
        points = torch.stack(torch.broadcast_tensors(x, y), -1).flatten(4, 5).flatten(1, 3)[:, :, None]
        width_height = torch.tensor(grid.shapes, device=pixels.device).flip(-1)[:, None]
        own = level.repeat_interleave(self.size**2, 1)[..., None] == torch.arange(len(grid.shapes), device=level.device)
        return torch.where(own[..., None, None], points / width_height, NOWHERE)[:, :, None]

    def level_of(self, pixels: Tensor, strides: Sequence[int]) -> Tensor:
        """(B, N) index of the level of (B, N, 4) boxes in pixels: stride 16 at a side of 224, another one for each
        factor of two. Each stride is twice the one before."""
        side = pixels[..., 2:].clamp(min=0).prod(-1).sqrt()
        level = torch.floor(4 + torch.log2(side / 224 + self.eps)) - math.log2(strides[0])
        return level.clamp(0, len(strides) - 1).to(torch.int64)
