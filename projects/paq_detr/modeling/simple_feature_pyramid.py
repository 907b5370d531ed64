# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import UserError


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W), position by position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """Maps of several strides from the one map of a plain ViT, each from that map alone (ViTDet, section 3).

    Larger maps come from transposed convolutions of stride 2, smaller ones from max pooling; each then passes a 1x1
    and a 3x3 convolution with layer norm.
    """

    def __init__(self, in_channels: int, out_channels: int, scales: Sequence[float] = (2.0, 1.0, 0.5)):
        """
        Args:
            scales: of the maps relative to the ViT's, out of 4, 2, 1 and 0.5, largest first.
        """
        super().__init__()
        if not scales or list(scales) != sorted(set(scales), reverse=True) or not set(scales) <= {4, 2, 1, 0.5}:
            raise UserError(
                f"MODEL.TIMM.PYRAMID_SCALES is {list(scales)}, must be some of 4, 2, 1 and 0.5, the largest first"
            )
        self.branches = nn.ModuleList(_branch(scale, in_channels, out_channels) for scale in scales)

    def forward(self, x: Tensor) -> list[Tensor]:
        """From (B, C, H, W) to (B, out_channels, scale * H, scale * W) for each scale."""
        return [branch(x) for branch in self.branches]


def _branch(scale: float, width: int, out: int) -> nn.Sequential:
    if scale == 4:
        resize = [_double(width, width // 2), LayerNorm2d(width // 2), nn.GELU(), _double(width // 2, width // 4)]
        width //= 4
    elif scale == 2:
        resize = [_double(width, width // 2)]
        width //= 2
    else:
        resize = [nn.MaxPool2d(2)] if scale == 0.5 else []
    project = [nn.Conv2d(width, out, 1, bias=False), LayerNorm2d(out)]
    smooth = [nn.Conv2d(out, out, 3, padding=1, bias=False), LayerNorm2d(out)]
    return nn.Sequential(*resize, *project, *smooth)


def _double(width: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, out, 2, stride=2)
