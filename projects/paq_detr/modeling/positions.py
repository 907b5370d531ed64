# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Position codes of a decoder's queries, asked for before every layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers import MLP, sine_box_code, xavier
from ..registry import POSITIONS, Kit
from ..structures import DecoderState, Memory


class KeptPosition(nn.Module):
    """The query source's own position code, the same in every layer."""

    needs = frozenset({"position"})

    def forward(self, state: DecoderState, memory: Memory) -> Tensor:
        return state.position


class SinePosition(nn.Module):
    """Position code of the current boxes, made anew in every layer: an MLP of their sine code (DAB-DETR, 4.2; DINO).

    The code's blocks stand in the order y, x, w, h, as in every published model.
    """

    needs = frozenset({"boxes"})

    def __init__(self, embed_dim: int, content_scale: bool = False, scale_by_valid_ratio: bool = False):
        """
        Args:
            content_scale: from the second layer on, multiply by an MLP of the content (DAB-Deformable-DETR; DINO has
                left it out).
            scale_by_valid_ratio: code the boxes as shares of the padded batch in place of the image, as all published
                deformable models do. The same for a batch of one; in others, a query then depends on the padding.
        """
        super().__init__()
        self.mlp = xavier(MLP(2 * embed_dim, embed_dim, embed_dim, 2))
        self.content_scale = xavier(MLP(embed_dim, embed_dim, embed_dim, 2)) if content_scale else None
        self.scale_by_valid_ratio = scale_by_valid_ratio

    def forward(self, state: DecoderState, memory: Memory) -> Tensor:
        boxes = state.reference
        if self.scale_by_valid_ratio:
            boxes = boxes * memory.grid.valid_ratios[:, None, 0].repeat(1, 1, 2)
        position = self.mlp(sine_yxwh_code(boxes, self.mlp[0].in_features // 4).to(state.content.dtype))
        if self.content_scale is None or not state.history:
            return position
        return position * self.content_scale(state.content)


def sine_yxwh_code(boxes: Tensor, dim: int) -> Tensor:
    """(B, N, 4) boxes to (B, N, 4 * dim): the sine codes of centre y, centre x, width and height."""
    x, y, w, h = boxes.unbind(-1)
    return sine_box_code(torch.stack([y, x, w, h], -1), dim)


class NoPosition(nn.Module):
    """Queries without a position code (Sparse R-CNN, where a query sees its place in its RoI alone)."""

    needs: frozenset[str] = frozenset()

    def forward(self, state: DecoderState, memory: Memory) -> None:
        return None


@POSITIONS.register("fixed")
def build_kept_position(cfg, kit: Kit) -> KeptPosition:
    return KeptPosition()


@POSITIONS.register("sine_mlp")
def build_sine_position(cfg, kit: Kit) -> SinePosition:
    D = cfg.MODEL.DETR
    return SinePosition(D.HIDDEN_DIM, scale_by_valid_ratio=D.DECODER.SCALE_POSITION)


@POSITIONS.register("scaled_sine_mlp")
def build_scaled_sine_position(cfg, kit: Kit) -> SinePosition:
    D = cfg.MODEL.DETR
    return SinePosition(D.HIDDEN_DIM, content_scale=True, scale_by_valid_ratio=D.DECODER.SCALE_POSITION)


@POSITIONS.register("none")
def build_no_position(cfg, kit: Kit) -> NoPosition:
    return NoPosition()
