# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Masks of queries: DETR's mask head as Mr. DETR's instance segmentation has it (official code, project ins_seg).

A query's attention over a coarse level of the encoded memory becomes a map by convolutions, which go up over the
backbone's maps. It is computed for the queries that are asked for alone: matched ones in training, detections after.

Shape legend beside structures.py: P queries asked for, (h, w) cells of that level, (H, W) of the masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..checks import check_range
from ..layers import MaskedGroupNorm
from ..structures import Memory
from .mask_losses import PointMaskLosses
from .neck import in_features, measure_grid


class ConvBlock(nn.Module):
    """3x3 convolution, group norm that leaves padding out, ReLU."""

    def __init__(self, in_width: int, out_width: int, groups: int = 8):
        super().__init__()
        self.conv = nn.Conv2d(in_width, out_width, 3, padding=1)
        groups = math.gcd(groups, out_width)
        if groups == out_width:  # of one channel and one cell there are no statistics
            groups //= 2
        self.norm = MaskedGroupNorm(groups, out_width)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return self.normed(self.conv(x), padding)

    def normed(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return self.norm(x, padding).relu()


@dataclass
class _Shared:
    """What all queries of a batch read, computed once a step."""

    keys: Tensor  # (B, h w, C)
    base: Tensor  # (B, C + heads, h, w) the first convolution's share from the memory
    maps: list[Tensor]  # (B, width, H_i, W_i) per block that adds one, coarsest first; 0 in the padding
    paddings: list[Tensor | None]  # (B, ., .) of the attention's level, then of each map; None where there is none

    def of(self, image: Tensor) -> _Shared:
        """The same per query, of the images (P,)."""
        keys, base, maps = self.keys[image], self.base[image], [x[image] for x in self.maps]
        return _Shared(keys, base, maps, [None if mask is None else mask[image] for mask in self.paddings])


class MaskHead(nn.Module):
    """From the states of queries to mask logits at the finest map's stride (16 in the official model).

    Attention maps: all heads' logits over the cells of one level in one softmax; no values. With the level's
    tokens they go through blocks of widths C + heads (twice), then C / 2, C / 4, ... of which each of width C / 2 and
    less has a map of the backbone added behind it, coarsest first; then one block more and the logits. Going from map
    to map repeats cells. With ``coordinates`` these maps also tell where their cells lie in the query's box.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        names: Sequence[str],
        channels: Sequence[int],
        strides: Sequence[int],
        level: int = -1,
        halve: bool = True,
        mean_one: bool = False,
        coordinates: bool = False,
        prior: float = 0.5,
        at_once: int = 100,
    ):
        """
        Args:
            names, channels, strides: of the backbone's maps to go up over, finest first.
            level: index of the memory's level that the attention is over.
            halve: a 3x3 convolution of stride 2 halves each of these maps, and its width, first (official code).
            mean_one: multiply attention by the number of heads and cells, so that its mean is 1. As published it sums
                to 1, and is next to nothing beside the tokens until the convolutions have learnt to look for it.
            coordinates: tell every cell where it is from the centre of the query's box, in half sides of the box
                (relative coordinates, CondInst, Tian et al. 2020, 3.1), and whether it is in it. As published the head
                knows an object by its looks alone.
            prior: probability that a new head gives every cell. As published 0.5: the first thing that it learns is
                that most cells are none of the object's.
            at_once: queries computed together. In training, where there are more, activations are recomputed in the
                backward pass, so that the memory is that of so many.
        """
        super().__init__()
        self.num_heads, self.level, self.mean_one, self.at_once = num_heads, level, mean_one, at_once
        self.names, self.map_strides = tuple(reversed(names)), tuple(reversed(strides))
        widths = list(reversed(channels))
        self.query, self.key = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        self.halve = None
        if halve:
            self.halve = nn.ModuleList(nn.Conv2d(width, width // 2, 3, stride=2, padding=1) for width in widths)
            widths = [width // 2 for width in widths]
        self.strides = tuple(stride * (2 if halve else 1) for stride in self.map_strides)
        first = embed_dim + num_heads
        going_up = [embed_dim // 2**i for i in range(1, len(names) + 2)]
        self.blocks = nn.ModuleList(ConvBlock(*pair) for pair in pairwise([first, first, *going_up]))
        self.adapt = nn.ModuleList(nn.Conv2d(width, out, 1) for width, out in zip(widths, going_up))
        self.out = nn.Conv2d(going_up[-1], 1, 3, padding=1)
        self.where = None
        if coordinates:
            self.where = nn.ModuleList(nn.Conv2d(3, width, 1, bias=False) for width in going_up[:-1])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.out.bias, math.log(prior / (1 - prior)))

    @property
    def stride(self) -> int:
        """Pixels per cell of the masks."""
        return self.strides[-1]

    def forward(self, states: Tensor, boxes: Tensor, image: Tensor, memory: Memory) -> Tensor:
        """
        Args:
            states: (P, C) what a decoder layer made of the queries.
            boxes: (P, 4) theirs, cxcywh in [0, 1].
            image: (P,) whose they are.

        Returns:
            (P, H, W) logits, fp32; what they are in the padding is of no meaning.
        """
        shared = memory.once(self, self.read)
        boxes = boxes.detach() * memory.grid.image_scale[image, 0]
        parts = list(zip(*(x.split(self.at_once) for x in (states, boxes, image))))
        recompute = len(parts) > 1 and torch.is_grad_enabled()
        logits = [
            checkpoint(self.draw, *part, shared, memory, use_reentrant=False)
            if recompute
            else self.draw(*part, shared, memory)
            for part in parts
        ]
        return torch.cat(logits)

    def read(self, memory: Memory) -> _Shared:
        """What does not depend on the queries."""
        level = memory.levels()[self.level]
        maps, finer = [memory.maps[name] for name in self.names], []
        shapes = [tuple(x.shape[-2:]) for x in maps]
        if self.halve is not None:
            shapes += [tuple((side + 1) // 2 for side in shape) for shape in shapes]
        strides = (*self.map_strides, *self.strides) if self.halve is not None else self.strides
        old = memory.grid
        grid = measure_grid(shapes, strides, old.image_sizes, old.padded_size, level.device, by_stride=True)
        paddings = grid.masks if grid.has_padding else [None] * len(shapes)
        level_padding = old.masks[self.level] if old.has_padding else None
        for index, x in enumerate(maps):
            if self.halve is not None:
                x = self.halve[index](cleared(x, paddings[index]))
            finer.append(cleared(self.adapt[index](x), paddings[index - len(maps)]))
        level = cleared(level, level_padding)
        conv = self.blocks[0].conv
        base = F.conv2d(level, conv.weight[:, : level.shape[1]], conv.bias, padding=1)
        keys = self.key(level.flatten(2).transpose(1, 2))
        return _Shared(keys, base, finer, [level_padding, *paddings[-len(maps) :]])

    def attend(self, states: Tensor, keys: Tensor, padding: Tensor | None) -> Tensor:
        """(P, heads, h w) attention of (P, C) states to (P, h w, C) keys; each query's sums to 1 over heads and cells,
        or has the mean 1."""
        queries = self.query(states).unflatten(-1, (self.num_heads, -1))
        keys = keys.unflatten(-1, (self.num_heads, -1))
        logits = torch.einsum("phc,pshc->phs", queries, keys).float() * queries.shape[-1] ** -0.5
        if padding is not None:
            logits = logits.masked_fill(padding.flatten(1)[:, None], -torch.inf)
        attention = logits.flatten(1).softmax(-1).view(logits.shape)
        if not self.mean_one:
            return attention
        cells = keys.shape[1] if padding is None else (~padding).flatten(1).sum(1)[:, None, None]
        return attention * (self.num_heads * cells)

    def draw(self, states: Tensor, boxes: Tensor, image: Tensor, shared: _Shared, memory: Memory) -> Tensor:
        """The logits of some queries; boxes in pixels."""
        own = shared.of(image)
        attention = self.attend(states, own.keys, own.paddings[0])
        first, *blocks = self.blocks
        attention = attention.view(*attention.shape[:2], *own.base.shape[-2:]).to(own.base.dtype)
        padding, stride = own.paddings[0], memory.grid.strides[self.level]
        x = F.conv2d(attention, first.conv.weight[:, -self.num_heads :], padding=1) + own.base
        x = first.normed(x, padding)
        where = self.where or [None] * len(own.maps)
        for block, added, place, next_padding, next_stride in zip(
            blocks, own.maps, where, own.paddings[1:], self.strides
        ):
            x = repeated(block(x, padding), stride, next_stride, added.shape[-2:]) + added
            if place is not None:
                x = x + place(box_coordinates(boxes, x.shape[-2:], next_stride).to(x.dtype))
            x, padding, stride = cleared(x, next_padding), next_padding, next_stride
        return self.out(blocks[-1](x, padding))[:, 0].float()


def box_coordinates(boxes: Tensor, shape: Sequence[int], stride: int) -> Tensor:
    """(P, 3, h, w) how far right and down of the centre of boxes (P, 4), cxcywh in pixels, the centres of cells of so
    many pixels lie, -1 and 1 at the box's sides and never beyond -2 and 2; and whether they lie in it, 0 or 1."""
    height, width = shape
    x, y = ((torch.arange(n, device=boxes.device) + 0.5) * stride for n in (width, height))
    cx, cy, w, h = (part[:, None] for part in boxes.float().unbind(-1))
    right, down = (2 * (a - c) / s.clamp(min=1e-6) for a, c, s in ((x, cx, w), (y, cy, h)))  # (P, w), (P, h)
    expanded = right[:, None].expand(-1, height, -1), down[..., None].expand(-1, -1, width)
    places = torch.stack(expanded, 1)
    return torch.cat([places.clamp(-2, 2), places.abs().amax(1, keepdim=True) <= 1], 1)


def cleared(x: Tensor, padding: Tensor | None) -> Tensor:
    """(B, C, H, W) with 0 where (B, H, W) is True."""
    return x if padding is None else x * ~padding[:, None]


def repeated(x: Tensor, stride: int, wanted: int, shape: Sequence[int]) -> Tensor:
    """Maps of one stride at another, of so many (rows, columns): cells are repeated, or left out."""
    if stride > wanted:
        x = F.interpolate(x, scale_factor=stride // wanted, mode="nearest")
    elif stride < wanted:
        x = x[..., :: wanted // stride, :: wanted // stride]
    return x[..., : shape[0], : shape[1]]


@dataclass
class StateMasks:
    """The masks of an output's queries, by their states (``structures.QueryMasks``)."""

    head: nn.Module
    content: Tensor  # (B, N, C)
    boxes: Tensor  # (B, N, 4)
    memory: Memory

    @property
    def stride(self) -> int:
        return self.head.stride

    def __call__(self, image: Tensor, query: Tensor) -> Tensor:
        return self.head(self.content[image, query], self.boxes[image, query], image, self.memory)

    def slice(self, start: int, stop: int | None) -> StateMasks:
        return StateMasks(self.head, self.content[:, start:stop], self.boxes[:, start:stop], self.memory)

    def sample(self, logits: Tensor, image: Tensor, points: Tensor) -> Tensor:
        """(P, K) of (P, H, W) ``logits`` at points (P, K, 2), x, y in [0, 1] of the images (P,), bilinear between the
        centres of cells. No cell of the padding is read."""
        cells = self.memory.grid.image_scale[image, :, :2] / self.stride  # (P, 1, 2) columns, rows; a part counts
        at = (points * cells - 0.5).clamp(min=0).minimum(cells.ceil() - 1)
        height, width = logits.shape[1:]
        grid = torch.stack([(2 * at[..., 0] + 1) / width, (2 * at[..., 1] + 1) / height], -1)[:, None] - 1
        return F.grid_sample(logits[:, None], grid, padding_mode="border", align_corners=False)[:, 0, 0]


def build_mask_head(cfg, feature_shapes) -> MaskHead:
    D = cfg.MODEL.DETR
    key = "MODEL.DETR.MASK.IN_FEATURES"
    names = in_features(D.MASK.IN_FEATURES or D.NECK.IN_FEATURES, feature_shapes, key)
    return MaskHead(
        embed_dim=D.HIDDEN_DIM,
        num_heads=D.NUM_HEADS,
        names=names,
        channels=[feature_shapes[name].channels for name in names],
        strides=[feature_shapes[name].stride for name in names],
        level=check_range("MODEL.DETR.MASK.LEVEL", D.MASK.LEVEL, f"[0, {D.NECK.NUM_LEVELS}]") - 1,
        halve=D.MASK.HALVE_MAPS,
        mean_one=D.MASK.MEAN_ONE,
        coordinates=D.MASK.BOX_COORDINATES,
        prior=check_range("MODEL.DETR.MASK.PRIOR", D.MASK.PRIOR, "(0, 1)"),
        at_once=check_range("MODEL.DETR.MASK.AT_ONCE", D.MASK.AT_ONCE, "[1, inf)"),
    )


def build_mask_losses(cfg) -> dict:
    """By name weight and loss, for ``Objective.mask_losses``."""
    M, key = cfg.MODEL.DETR.MASK, "MODEL.DETR.MASK"
    losses = PointMaskLosses(
        num_points=check_range(f"{key}.NUM_POINTS", M.NUM_POINTS, "[1, inf)"),
        oversample=check_range(f"{key}.OVERSAMPLE", M.OVERSAMPLE, "[1, inf)"),
        uncertain=check_range(f"{key}.UNCERTAIN", M.UNCERTAIN, "[0, 1]"),
    )
    return {"mask": (M.BCE_WEIGHT, losses.bce), "dice": (M.DICE_WEIGHT, losses.dice)}
