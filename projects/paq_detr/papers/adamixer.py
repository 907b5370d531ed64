# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""AdaMixer (Gao et al., CVPR 2022): points sampled in space and scale, then mixed by kernels that the query makes.

| paper and official code | here | key below MODEL.DETR |
|---|---|---|
| maps of equal width, no pyramid, no encoder | ``LateralNeck`` | NECK.NAME lateral, ENCODER.NAME none |
| queries: content, and (x, y, z, r) that starts as the whole image | ``modeling.queries.LearnedBoxes`` | QUERIES.NAME LearnedBoxes, QUERIES.LEARN_BOXES False, QUERIES.CONTENT_NORM True |
| how (x, y, z, r) moves | ``modeling.codec.XYZRCodec`` | CODEC xyzr |
| position-aware self-attention | ``modeling.iof_attention.IoFSelfAttention`` | DECODER.INTERACTION [iof_self_attention] |
| adaptive location sampling, in space and scale | ``AdaptiveSampling``, ``sample_3d`` | DECODER.CROSS_ATTENTION [adaptive_mixing], ADAMIXER.* |
| adaptive content decoding: channel and spatial mixing | ``AdaptiveMixing`` | same |
| class and box towers | ``modeling.heads.TowerHead`` | DECODER.HEADS towers, DECODER.TOWERS.* |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode as CN
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_range
from ..errors import UserError
from ..layers import ACTIVATION, ACTIVATIONS, MaskedGroupNorm
from ..modeling.codec import XYZRCodec
from ..modeling.fpn import one_level_per_map
from ..modeling.neck import as_tokens, measure_grid
from ..ops import ms_deform_attn
from ..registry import CROSS_ATTENTIONS, NECKS, Kit, adds_config
from ..structures import DecoderState, Memory


@adds_config
def add_config(cfg: CN) -> None:
    cfg.MODEL.DETR.ADAMIXER = A = CN()
    A.GROUPS = 4  # each with channels, points and kernels of its own
    A.IN_POINTS = 32  # sampled per query and group
    A.OUT_POINTS = 128  # after the spatial mixing


class LateralNeck(nn.Module):
    """1x1 convolutions to one width, and one group norm for all levels; without position codes."""

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        embed_dim: int = 256,
        mask_padding: bool = True,
    ):
        """Args: as in ``FPN``; ``mask_padding`` leaves padding out of the norm and makes it zero."""
        super().__init__()
        self.in_features, self.strides, self.mask_padding = tuple(in_features), tuple(in_strides), mask_padding
        self.convs = nn.ModuleList(nn.Conv2d(width, embed_dim, 1) for width in in_channels)
        self.norm = MaskedGroupNorm(32, embed_dim)
        for conv in self.convs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(
        self, features: Mapping[str, Tensor], image_sizes: Sequence[tuple[int, int]], padded_size: tuple[int, int]
    ) -> Memory:
        """Args: as in ``FPN``."""
        inputs = [features[name] for name in self.in_features]
        shapes = [tuple(x.shape[-2:]) for x in inputs]
        grid = measure_grid(shapes, self.strides, image_sizes, padded_size, inputs[0].device, self.mask_padding)
        masks = grid.masks if grid.has_padding and self.mask_padding else [None] * len(inputs)
        maps = [self.norm(conv(x), mask) for conv, x, mask in zip(self.convs, inputs, masks)]
        return Memory(as_tokens(maps), None, grid, dict(features))


class AdaptiveSampling(nn.Module):
    """Features at points around a query's box, on the scale around its z. (x, y) moves by offsets in box sides."""

    def __init__(self, embed_dim: int, groups: int, points: int):
        super().__init__()
        self.groups, self.points = groups, points
        self.geometry = XYZRCodec()
        self.sampling_offsets = nn.Linear(embed_dim, groups * points * 3)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            bias = self.sampling_offsets.bias.view(-1, 3)  # points anywhere in the box, one octave below its scale
            nn.init.uniform_(bias[:, :2], -0.5, 0.5)
            nn.init.constant_(bias[:, 2], -1.0)

    def forward(self, query: Tensor, boxes: Tensor, memory: Memory) -> Tensor:
        """(B, N, C) queries and their (B, N, 4) boxes to (B, N, groups, points, C / groups) features."""
        offsets = self.sampling_offsets(query).float().unflatten(-1, (self.groups, self.points, 3))
        pixels = (boxes.float() * memory.grid.image_scale)[:, :, None, None]  # (B, N, 1, 1, 4)
        z = self.geometry.to_xyzr(boxes, memory.grid)[:, :, None, None, 2]
        return sample_3d(memory, pixels[..., :2] + offsets[..., :2] * pixels[..., 2:], z + offsets[..., 2])


def sample_3d(memory: Memory, points: Tensor, z: Tensor) -> Tensor:
    """Features at points in space and scale; zero outside the image.

    A level of stride s weighs softmax(-(z - log2 s)^2 / 2). This is deformable attention whose queries have one point
    for each head, the same on all levels.

    Args:
        points: (B, N, G, P, 2) (x, y) in pixels.
        z: (B, N, G, P) logarithm of the scale to the base 2.

    Returns:
        (B, N, G, P, C / G): group g has its own slice of the channels.
    """
    width_height, log_stride, value = memory.once(sample_3d, _levels_to_sample)
    (_, num_queries, groups, _), heads_last = z.shape, (2, 3)
    weights = (-((z[..., None] - log_stride) ** 2) / 2).softmax(-1).transpose(*heads_last)  # (B, N, P, G, L)
    locations = (points[..., None, :] / width_height).transpose(*heads_last)  # (B, N, P, G, L, 2)
    sampled = ms_deform_attn(
        value.unflatten(-1, (groups, -1)),
        memory.grid.shapes,
        locations.flatten(1, 2)[..., None, :],
        weights.flatten(1, 2)[..., None],
    )
    return sampled.unflatten(-1, (groups, -1)).unflatten(1, (num_queries, -1)).transpose(*heads_last)


def _levels_to_sample(memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
    """(L, 2) width and height of the padded levels in pixels, (L,) log2 of their strides, tokens without padding."""
    grid, tokens = memory.grid, memory.tokens
    sizes = torch.tensor([(w * s, h * s) for (h, w), s in zip(grid.shapes, grid.strides)], dtype=torch.float32)
    log_strides = torch.tensor(grid.strides, dtype=torch.float32).log2()
    levels = torch.cat([sizes, log_strides[:, None]], 1).to(tokens.device)
    value = tokens if grid.padding is None else tokens.masked_fill(grid.padding[..., None], 0.0)
    return levels[:, :2], levels[:, 2], value


class AdaptiveMixing(nn.Module):
    """The points of each group mixed by two kernels that the query makes: between channels, then between points."""

    def __init__(self, embed_dim: int, groups: int, in_points: int, out_points: int, activation: str = "relu"):
        super().__init__()
        self.groups, self.in_points, self.out_points = groups, in_points, out_points
        self.dim = embed_dim // groups
        self.kernels = nn.Linear(embed_dim, groups * (self.dim**2 + in_points * out_points))
        self.output = nn.Linear(groups * out_points * self.dim, embed_dim)
        self.activation = ACTIVATIONS[activation]()
        nn.init.zeros_(self.kernels.weight)  # all queries start with the same kernels, its random bias
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, query: Tensor, samples: Tensor) -> Tensor:
        """(B, N, C) queries and (B, N, groups, in_points, C / groups) samples to (B, N, C)."""
        kernels = self.kernels(query).unflatten(-1, (self.groups, -1))
        channel, spatial = kernels.split([self.dim**2, self.in_points * self.out_points], -1)
        mixed = self._normed(samples @ channel.unflatten(-1, (self.dim, self.dim)))
        mixed = self._normed(spatial.unflatten(-1, (self.out_points, self.in_points)) @ mixed)
        return self.output(mixed.flatten(2))

    def _normed(self, x: Tensor) -> Tensor:
        """Over points and channels of a group together, without parameters."""
        return self.activation(F.layer_norm(x, x.shape[-2:]))


class SamplingAndMixing(nn.Module):
    """AdaMixer's cross-attention; residual and post-norm."""

    needs = frozenset({"boxes"})

    def __init__(self, sampling: AdaptiveSampling, mixing: AdaptiveMixing, embed_dim: int, dropout: float = 0.0):
        super().__init__()
        self.sampling, self.mixing = sampling, mixing
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, state: DecoderState, memory: Memory) -> DecoderState:
        samples = self.sampling(state.query, state.reference, memory)
        update = self.mixing(state.query, samples)
        return state.with_content(self.norm(state.content + self.dropout(update)))


@NECKS.register("lateral")
def build_lateral_neck(cfg: CN, kit: Kit) -> LateralNeck:
    return LateralNeck(**one_level_per_map(cfg, kit))


@CROSS_ATTENTIONS.register("adaptive_mixing")
def build_adaptive_mixing(cfg: CN, kit: Kit) -> SamplingAndMixing:
    D, A, key = cfg.MODEL.DETR, cfg.MODEL.DETR.ADAMIXER, "MODEL.DETR.ADAMIXER"
    groups, in_points, out_points = (check_range(f"{key}.{name}", A[name], "[1, inf)") for name in A)
    if D.HIDDEN_DIM % groups:
        raise UserError(f"{key}.GROUPS is {groups}, must divide MODEL.DETR.HIDDEN_DIM {D.HIDDEN_DIM}")
    activation = ACTIVATION(D.ACTIVATION)
    mixing = AdaptiveMixing(D.HIDDEN_DIM, groups, in_points, out_points, activation)
    return SamplingAndMixing(AdaptiveSampling(D.HIDDEN_DIM, groups, in_points), mixing, D.HIDDEN_DIM, D.DROPOUT)
