# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..registry import NECKS, Kit
from ..structures import Memory
from .neck import as_tokens, in_features, measure_grid


class FPN(nn.Module):
    """Feature pyramid (Lin et al. 2017): 1x1 convolutions, coarse levels added to finer ones, 3x3 convolutions; without
    norms, and without position codes.

    It computes what Detectron2's does, with the same weights, for an image of any size: an upsampled map is cut to
    the size of the finer one.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        embed_dim: int = 256,
        mask_padding: bool = True,
    ):
        """
        Args:
            in_features, in_channels, in_strides: the backbone's maps to read, finest first, their widths and strides,
                each twice the one before.
            mask_padding: padding counts as zeros in every convolution, so that an image does not depend on its batch.
                False is the published behaviour.
        """
        super().__init__()
        self.in_features, self.strides, self.mask_padding = tuple(in_features), tuple(in_strides), mask_padding
        self.laterals = nn.ModuleList(nn.Conv2d(width, embed_dim, 1) for width in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(embed_dim, embed_dim, 3, padding=1) for _ in in_channels)
        for conv in (*self.laterals, *self.outputs):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(
        self, features: Mapping[str, Tensor], image_sizes: Sequence[tuple[int, int]], padded_size: tuple[int, int]
    ) -> Memory:
        """
        Args:
            features: the backbone's maps, (B, C_i, H_i, W_i).
            image_sizes: un-padded (height, width) of each image, in pixels.
            padded_size: (height, width) of the batch.
        """
        inputs = [features[name] for name in self.in_features]
        shapes = [tuple(x.shape[-2:]) for x in inputs]
        grid = measure_grid(shapes, self.strides, image_sizes, padded_size, inputs[0].device, self.mask_padding)
        keep = [~mask[:, None] for mask in grid.masks] if grid.has_padding and self.mask_padding else [1] * len(inputs)
        merged: list[Tensor] = []  # coarsest first
        for level in reversed(range(len(inputs))):
            x = self.laterals[level](inputs[level])
            if merged:
                above = F.interpolate(merged[-1], scale_factor=2, mode="nearest")
                x = x + above[..., : x.shape[-2], : x.shape[-1]]
            merged.append(x * keep[level])
        maps = [conv(x) * k for conv, x, k in zip(self.outputs, reversed(merged), keep)]
        return Memory(as_tokens(maps), None, grid, dict(features))


def one_level_per_map(cfg, kit: Kit) -> dict:
    """Arguments of a neck that makes one level of each of the backbone's maps, without position codes, which the kit is
    told.

    Raises:
        UserError: ``NECK.NUM_LEVELS`` is another number; strides that do not double.
    """
    D = cfg.MODEL.DETR
    features = in_features(D.NECK.IN_FEATURES, kit.feature_shapes)
    shapes: list[ShapeSpec] = [kit.feature_shapes[name] for name in features]
    strides = [shape.stride for shape in shapes]
    if D.NECK.NUM_LEVELS != len(features):
        raise UserError(
            f"MODEL.DETR.NECK.NUM_LEVELS is {D.NECK.NUM_LEVELS}, but {NECKS.key} {D.NECK.NAME} makes one level of each "
            f"of the backbone's maps {features}"
        )
    if any(coarse != 2 * fine for fine, coarse in zip(strides, strides[1:])):
        raise UserError(f"{NECKS.key} {D.NECK.NAME} needs maps whose strides double, those of {features} are {strides}")
    kit.map_positions = False
    return {
        "in_features": features,
        "in_channels": [shape.channels for shape in shapes],
        "in_strides": strides,
        "embed_dim": D.HIDDEN_DIM,
        "mask_padding": D.NECK.MASK_PADDING,
    }


@NECKS.register("fpn")
def build_fpn(cfg, kit: Kit) -> FPN:
    return FPN(**one_level_per_map(cfg, kit))
