# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What boxes hold of a feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

from ..layers import boxes_cxcywh_to_xyxy
from ..structures import Memory


class MultiLevelRoIAlign:
    """RoIAlign (He et al. 2017) on the level that fits a box's size (feature pyramids, Lin et al. 2017, Eq. 1).

    Each image is read from its own un-padded map, whose last row and column RoIAlign extends outwards; so a box's
    features do not depend on the batch. No gradient reaches the boxes.
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
        pooled = (self.by_gather if torch.compiler.is_exporting() else self.by_level)(memory, pixels, level)
        return pooled.to(memory.tokens.dtype)

    def by_level(self, memory: Memory, pixels: Tensor, level: Tensor) -> Tensor:
        """By one ``roi_align`` for each image and level, which need the number of boxes there on the host: one wait for
        the device."""
        batch, strides = len(pixels), memory.grid.strides
        first = torch.arange(batch, device=pixels.device)[:, None] * len(strides)
        group = (first + level).flatten()  # image by image, level by level
        order = group.argsort()
        counts = group.bincount(minlength=batch * len(strides)).tolist()
        parts = boxes_cxcywh_to_xyxy(pixels).flatten(0, 1)[order].split(counts)
        maps = [level for image in memory.once(image_maps, image_maps) for level in image]
        pooled = [
            roi_align(level, [part], self.size, 1 / stride, self.sampling_ratio, self.aligned)
            for level, part, stride in zip(maps, parts, strides * batch)
        ]
        return torch.cat(pooled)[order.argsort()].unflatten(0, pixels.shape[:2])

    def by_gather(self, memory: Memory, pixels: Tensor, level: Tensor) -> Tensor:
        """The same where the numbers of boxes must not decide what runs (an exported program): every sample gathers its
        four neighbours among the tokens, which takes ``4 sampling_ratio^2`` times the memory."""
        grid, device, samples = memory.grid, pixels.device, self.size * self.sampling_ratio
        starts = [sum(grid.level_sizes[:i]) for i in range(len(grid.strides))]
        start, width, stride = (
            torch.tensor(numbers, device=device)[level][..., None, None]  # (B, N, 1, 1)
            for numbers in (starts, [width for _, width in grid.shapes], grid.strides)
        )
        corners = boxes_cxcywh_to_xyxy(pixels) / stride[..., 0] - 0.5 * self.aligned
        sides = corners[..., 2:] - corners[..., :2]
        sides = sides if self.aligned else sides.clamp(min=1)
        fractions = (torch.arange(samples, device=device) + 0.5) / samples
        points = corners[..., None, :2] + sides[..., None, :] * fractions[:, None]  # (B, N, samples, 2)
        limit = grid.valid_shapes.flip(-1).gather(1, level[..., None].expand(-1, -1, 2))[..., None, :]
        inside = ((points >= -1) & (points <= limit)).float()
        points = points.clamp(min=0).minimum(limit - 1)  # the last row and column go on outwards
        low = points.floor()
        pooled = 0.0
        for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
            step = torch.tensor([right, below], device=device)
            index = (low + step).minimum(limit - 1).to(torch.int64)
            weight = inside * (1 - (points - low - step).abs())
            index = start + index[..., :, 1, None] * width + index[..., None, :, 0]
            weight = weight[..., :, 1, None] * weight[..., None, :, 0]  # (B, N, samples, samples), row by row
            tokens = memory.tokens.gather(1, index.flatten(1)[..., None].expand(-1, -1, memory.tokens.shape[-1]))
            pooled = pooled + tokens.float() * weight.flatten(1)[..., None]
        bins = (self.size, self.sampling_ratio) * 2
        pooled = pooled.unflatten(1, (pixels.shape[1], *bins)).mean((3, 5))  # (B, N, size, size, C)
        return pooled.permute(0, 1, 4, 2, 3)

    def level_of(self, pixels: Tensor, strides: Sequence[int]) -> Tensor:
        """(B, N) index of the level of (B, N, 4) boxes in pixels: stride 16 at a side of 224, another one for each
        factor of two. Each stride is twice the one before."""
        side = pixels[..., 2:].clamp(min=0).prod(-1).sqrt()
        level = torch.floor(4 + torch.log2(side / 224 + self.eps)) - math.log2(strides[0])
        return level.clamp(0, len(strides) - 1).to(torch.int64)


def image_maps(memory: Memory) -> list[list[Tensor]]:
    """Per image and level its un-padded map (1, C, H, W), in fp32 as box coordinates must be."""
    levels = [level.float().contiguous() for level in memory.levels()]
    return [
        [level[image : image + 1, :, :rows, :columns].contiguous() for level, (rows, columns) in zip(levels, sizes)]
        for image, sizes in enumerate(memory.grid.valid_sizes)
    ]
