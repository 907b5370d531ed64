# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..errors import UserError
from ..layers import MaskedGroupNorm, sine_map_code
from ..registry import NECKS
from ..structures import Grid, Memory, plain_sides


class ChannelMapper(nn.Module):
    """1x1 convolutions with group norm to one width, and further levels by 3x3 convolutions of stride 2.

    The first further level reads the backbone's last map, the next ones the level before (Deformable DETR, appendix).
    """

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
            raise ValueError(f"num_levels is {num_levels}, fewer than the {len(in_features)} in_features")
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

    def forward(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], padded_size: tuple[int, int]
    ) -> Memory:
        """
        Args:
            features: the backbone's maps, (B, C_i, H_i, W_i).
            image_sizes: un-padded (height, width) of each image, in pixels.
            padded_size: (height, width) of the batch.
        """
        inputs = [features[f] for f in self.in_features]
        shapes = [tuple(x.shape[-2:]) for x in inputs]
        for _ in self.convs[len(inputs) :]:
            shapes.append(tuple((side + 1) // 2 for side in shapes[-1]))  # kernel 3, stride 2, padding 1
        grid = measure_grid(shapes, self.strides, image_sizes, padded_size, inputs[0].device, self.mask_padding)
        masks = grid.masks if grid.has_padding and self.mask_padding else [None] * len(self.convs)
        inputs = [x if mask is None else x * ~mask[:, None] for x, mask in zip(inputs, masks)]  # as the convs pad
        maps: list[Tensor] = []
        for level, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            if level < len(inputs):
                x = inputs[level]
            else:
                x = inputs[-1] if level == len(inputs) else maps[-1]
            maps.append(norm(conv(x), masks[level]))
        tokens = as_tokens(maps)
        position = position_code(grid, self.level_code.shape[-1], self.temperature, self.offset, self.level_code)
        return Memory(tokens, position.to(tokens.dtype), grid, features)


def as_tokens(maps: Sequence[Tensor]) -> Tensor:
    """(B, S, C) of (B, C, H, W) maps, finest first; ``Memory.levels`` undoes it."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)


def measure_grid(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    image_sizes: Sequence[tuple[int, int]] | Tensor,
    padded_size: tuple[int, int],
    device: torch.device,
    by_stride: bool,
) -> Grid:
    """The geometry of levels of these (height, width) and strides.

    ``by_stride`` counts a level's un-padded pixels by its stride; otherwise those count whose nearest input pixel is
    none of the padding, as published. ``image_sizes`` as in ``Grid``.
    """
    shapes, sizes = [plain_sides(shape) for shape in shapes], image_sizes
    if not isinstance(sizes, Tensor):
        sizes = torch.tensor([plain_sides(size) for size in image_sizes])  # (B, 2)
    if by_stride:
        steps, limits = (torch.tensor(x, device=sizes.device) for x in (strides, shapes))
        valid_shapes = torch.minimum((sizes[:, None] + steps[:, None] - 1) // steps[:, None], limits)
    else:
        counts = [
            (torch.arange(side, device=sizes.device) * padded // side < sizes[:, axis, None]).sum(1)
            for shape in shapes
            for axis, (side, padded) in enumerate(zip(shape, padded_size))
        ]
        valid_shapes = torch.stack(counts, 1).unflatten(1, (-1, 2))
    return Grid(shapes, strides, image_sizes, padded_size, valid_shapes, device)


def position_code(grid: Grid, dim: int, temperature: float, offset: float, level_code: Tensor | None = None) -> Tensor:
    """(B, S, dim) sine code of every token, plus its level's vector where (L, dim) ``level_code`` is given; fp32."""
    codes = [
        sine_map_code(shape, grid.valid_shapes[:, level], dim, temperature, offset)
        for level, shape in enumerate(grid.shapes)
    ]
    if level_code is not None:
        codes = [code + vector for code, vector in zip(codes, level_code)]
    return torch.cat(codes, 1)


@NECKS.register("channel_mapper")
def build_channel_mapper(cfg, kit) -> ChannelMapper:
    D = cfg.MODEL.DETR
    features = in_features(D.NECK.IN_FEATURES, kit.feature_shapes)
    if D.NECK.NUM_LEVELS < len(features):
        raise UserError(
            f"MODEL.DETR.NECK.NUM_LEVELS is {D.NECK.NUM_LEVELS}, fewer than the backbone's maps {features}; "
            "MODEL.DETR.NECK.IN_FEATURES chooses some of them"
        )
    return ChannelMapper(
        in_features=features,
        in_channels=[kit.feature_shapes[f].channels for f in features],
        in_strides=[kit.feature_shapes[f].stride for f in features],
        embed_dim=D.HIDDEN_DIM,
        num_levels=D.NECK.NUM_LEVELS,
        temperature=D.POSITION.TEMPERATURE,
        offset=D.POSITION.OFFSET,
        mask_padding=D.NECK.MASK_PADDING,
    )


def in_features(
    names: Sequence[str], shapes: Mapping[str, ShapeSpec], key: str = "MODEL.DETR.NECK.IN_FEATURES"
) -> list[str]:
    """The maps of the backbone that the config key ``key`` names (all, where it names none), finest first.

    Raises:
        UserError: the backbone has no such map.
    """
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise UserError(f"{key} names {unknown[0]}, but the backbone's maps are {', '.join(shapes)}")
    return sorted(names or shapes, key=lambda name: shapes[name].stride)
