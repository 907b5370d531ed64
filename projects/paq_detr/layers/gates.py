# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Gates that reweight a feature map by channel or by place.

Each is called with ``x`` (B, C, H, W) and ``keep`` (B, 1, H, W), 1 at valid pixels and 0 in the padding, which takes no
part in the pooled statistics.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelMLP(nn.Module):
    """Channel attention of CBAM (Woo et al. 2018): a shared two-layer perceptron on mean and maximum."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)
        )

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        mean = (x * keep).sum((2, 3)) / keep.sum((2, 3))
        largest = x.masked_fill(keep == 0, -torch.inf).amax((2, 3))
        return x * (self.mlp(mean) + self.mlp(largest)).sigmoid()[:, :, None, None]


class SpatialConv(nn.Module):
    """Spatial attention of CBAM: a 7x7 convolution on the channels' mean and maximum."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        x = x * keep
        return x * self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


class ECA(nn.Module):
    """Efficient channel attention (Wang et al. 2020): a convolution (5 wide at 256 channels) over channel means."""

    def __init__(self, channels: int):
        super().__init__()
        width = int(abs(math.log2(channels) + 1) / 2)
        width += 1 - width % 2
        self.conv = nn.Conv1d(1, 1, width, padding=width // 2, bias=False)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        mean = (x * keep).sum((2, 3)) / keep.sum((2, 3))
        return x * self.conv(mean[:, None])[:, 0].sigmoid()[:, :, None, None]


class CoordinateAttention(nn.Module):
    """Coordinate attention (Hou et al. 2021): gates per row and per column from means along the other axis."""

    def __init__(self, channels: int, reduction: int = 32):
        super().__init__()
        hidden = max(channels // reduction, 8)
        self.squeeze = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.rows, self.columns = nn.Linear(hidden, channels), nn.Linear(hidden, channels)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        gates = []
        for axis, expand in ((3, self.rows), (2, self.columns)):
            mean = (x * keep).sum(axis) / keep.sum(axis).clamp(min=1)  # (B, d, H) or (B, d, W)
            hidden = F.hardswish(self.norm(self.squeeze(mean.transpose(1, 2))))
            gates.append(expand(hidden).sigmoid().transpose(1, 2).unsqueeze(axis))
        return x * gates[0] * gates[1]
