# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ..layers import MaskedGroupNorm, sine_map_code
from ..structures import Memory


class ChannelMapper(nn.Module):
    """1x1 convolutions with group norm to one width, and further levels by 3x3 convolutions of stride 2.

    The first further level reads the backbone's last map, the next ones the level before (Deformable DETR, appendix).
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        embed_dim: int = 256,
        num_levels: int = 4,
        temperature: float = 10000.0,
        offset: float = -0.5,
        mask_padding: bool = True,
    ):
        """
        Args:
            in_features, in_channels, in_strides: the backbone's maps to read, finest first, their widths and strides.
            num_levels: levels in all.
            temperature, offset: of the sine position code.
            mask_padding: leave padding out of norms and convolutions, and count a level's un-padded pixels by its
                stride, so that an image does not depend on its batch. False is the published behaviour: norms over
                the padding too, pixels counted by nearest-neighbour scaling of the mask.
        """
        super().__init__()
        if num_levels < len(in_features):
            raise ValueError(f"NECK.NUM_LEVELS is {num_levels}, fewer than the backbone's maps {list(in_features)}")
        self.in_features, self.mask_padding = tuple(in_features), mask_padding
        extra = num_levels - len(in_features)
        self.strides = [*in_strides, *(in_strides[-1] * 2**i for i in range(1, extra + 1))]
        self.temperature, self.offset = temperature, offset
        convs = [nn.Conv2d(width, embed_dim, 1) for width in in_channels]
        for level in range(extra):
            convs.append(nn.Conv2d(embed_dim if level else in_channels[-1], embed_dim, 3, stride=2, padding=1))
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(MaskedGroupNorm(32, embed_dim) for _ in convs)
        self.level_code = nn.Parameter(torch.empty(num_levels, embed_dim))
        for conv in convs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        nn.init.normal_(self.level_code)

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        D = cfg.MODEL.DETR
        features = cfg.MODEL.RESNETS.OUT_FEATURES
        return {
            "in_features": features,
            "in_channels": [input_shape[f].channels for f in features],
            "in_strides": [input_shape[f].stride for f in features],
            "embed_dim": D.HIDDEN_DIM,
            "num_levels": D.NECK.NUM_LEVELS,
            "temperature": D.POSITION.TEMPERATURE,
            "offset": D.POSITION.OFFSET,
            "mask_padding": D.NECK.MASK_PADDING,
        }

    def forward(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
    ) -> Memory:
        """
        Args:
            features: the backbone's maps, (B, C_i, H_i, W_i).
            image_sizes: un-padded (height, width) of each image, in pixels.
            padded: (height, width) of the batch.
        """
        maps: list[Tensor] = []
        valid: list[Tensor] = []
        any_padding = any(tuple(size) != tuple(padded) for size in image_sizes)
        masked = any_padding and self.mask_padding
        inputs = [features[f] for f in self.in_features]
        if masked:
            inputs = [self._blank(x, level, image_sizes, padded) for level, x in enumerate(inputs)]
        for level, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            if level < len(inputs):
                x = inputs[level]
            else:
                x = inputs[-1] if level == len(inputs) else maps[-1]
            x = conv(x)
            valid.append(self._valid_shapes(level, image_sizes, padded, x))
            maps.append(norm(x, padding_map(valid[-1], x.shape[-2:]) if masked else None))
        return self._flatten(maps, torch.stack(valid, 1), any_padding)

    def _blank(self, x: Tensor, level: int, image_sizes, padded: tuple[int, int]) -> Tensor:
        """``x`` of a level with zeros in its padding, as the convolutions' own padding has."""
        return x * ~padding_map(self._valid_shapes(level, image_sizes, padded, x), x.shape[-2:])[:, None]

    def _valid_shapes(self, level: int, image_sizes, padded: tuple[int, int], x: Tensor) -> Tensor:
        """(B, 2) how many rows and columns of a level's map lie in the image."""
        stride = self.strides[level]

        def count(image: int, full: int, size: int) -> int:
            if self.mask_padding:
                return min(-(-image // stride), size)
            return sum(i * full // size < image for i in range(size))  # those whose nearest input pixel does

        rows = [[count(*axis) for axis in zip(size, padded, x.shape[-2:])] for size in image_sizes]
        return torch.tensor(rows, dtype=torch.int64, device=x.device)

    def _flatten(self, maps: list[Tensor], valid: Tensor, any_padding: bool) -> Memory:
        shapes = tuple((int(x.shape[-2]), int(x.shape[-1])) for x in maps)
        dim = self.level_code.shape[-1]
        codes = [
            sine_map_code(shape, valid[:, level], dim, self.temperature, self.offset) + self.level_code[level]
            for level, shape in enumerate(shapes)
        ]
        padding: Tensor | None = None
        if any_padding:
            padding = torch.cat([padding_map(valid[:, i], shape).flatten(1) for i, shape in enumerate(shapes)], 1)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        return Memory(tokens, torch.cat(codes, 1).to(tokens.dtype), shapes, valid, padding)


def padding_map(valid: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, 2) valid rows and columns to a (B, H, W) map that is True in the padding."""
    height, width = shape
    y = torch.arange(height, device=valid.device)[None, :, None] >= valid[:, :1, None]
    x = torch.arange(width, device=valid.device)[None, None, :] >= valid[:, 1:, None]
    return y | x
