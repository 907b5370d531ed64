# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from ..checks import Choice, check_range
from ..layers import ACTIVATION, ACTIVATIONS, MLP
from ..registry import HEADS, Kit


class ClassHead(nn.Linear):
    """One linear layer to class logits; every score starts at 0.01 (focal loss, Lin et al. 2017, 3.3)."""

    #: Axis of each parameter that runs over the classes, for loading weights of another class list.
    class_axes: dict[str, int] = {"weight": 0, "bias": 0}

    def __init__(self, embed_dim: int, num_classes: int):
        super().__init__(embed_dim, num_classes)
        nn.init.constant_(self.bias, -math.log(99))


class ObjectnessHead(ClassHead):
    """A class head of which channel 0 alone counts, as objectness; the others are trained as negatives.

    The published two-stage models give the encoder such a head as wide as the classes. Its rows are no classes: other
    weights fill it from the first row on, whatever their class names.
    """

    class_axes: dict[str, int] = {}
    leading_axes = {"weight": 0, "bias": 0}


def build_box_head(embed_dim: int, size_bias: float = 0.0) -> MLP:
    """Three-layer MLP whose last layer is zero, so that a box starts at its reference.

    Args:
        size_bias: bias of width and height. Deformable DETR's single-stage models, whose references are points, start
            the first head at -2 (a box of 0.12 of the image).
    """
    head = MLP(embed_dim, embed_dim, 4, 3)
    nn.init.zeros_(head.last.weight)
    nn.init.zeros_(head.last.bias)
    nn.init.constant_(head.last.bias[2:], size_bias)
    return head


class Tower(nn.Sequential):
    """Layers of (linear, LayerNorm, activation), all of one width."""

    def __init__(self, dim: int, num_layers: int, bias: bool, activation: str):
        layers: list[nn.Module] = []
        for _ in range(num_layers):
            layers += [nn.Linear(dim, dim, bias=bias), nn.LayerNorm(dim), ACTIVATIONS[activation]()]
            nn.init.xavier_uniform_(layers[-3].weight)
        super().__init__(*layers)


class TowerHead(nn.Module):
    """A tower and the linear layer that predicts (Sparse R-CNN, AdaMixer, ASAG)."""

    def __init__(self, tower: Tower, last: nn.Linear):
        super().__init__()
        self.tower, self.last = tower, last

    def forward(self, content: Tensor) -> Tensor:
        return self.last(self.tower(content))


class Heads(NamedTuple):
    """What makes the heads of a decoder's layers, one at each call."""

    class_head: Callable[[], nn.Module]
    box_head: Callable[[float], nn.Module]  # of the bias of width and height; its last linear layer is ``last``


@HEADS.register("mlp")
def build_mlp_heads(cfg, kit: Kit) -> Heads:
    dim = cfg.MODEL.DETR.HIDDEN_DIM
    return Heads(partial(ClassHead, dim, kit.num_classes), partial(build_box_head, dim))


_BOX_INIT = Choice("MODEL.DETR.DECODER.TOWERS.BOX_INIT", ("zeros", "xavier"))


@HEADS.register("towers")
def build_tower_heads(cfg, kit: Kit) -> Heads:
    D = cfg.MODEL.DETR
    T, key = D.DECODER.TOWERS, "MODEL.DETR.DECODER.TOWERS"
    activation = ACTIVATION(D.ACTIVATION)
    box_init = _BOX_INIT(T.BOX_INIT)
    depths = {name: check_range(f"{key}.{name}", T[name], "[0, inf)") for name in ("CLASS_LAYERS", "BOX_LAYERS")}

    def tower(name: str) -> Tower:
        return Tower(D.HIDDEN_DIM, depths[name], T.BIAS, activation)

    def class_head() -> TowerHead:
        head = ClassHead(D.HIDDEN_DIM, kit.num_classes)
        nn.init.xavier_uniform_(head.weight)
        return TowerHead(tower("CLASS_LAYERS"), head)

    def box_head(size_bias: float) -> TowerHead:
        last = nn.Linear(D.HIDDEN_DIM, 4)
        if box_init == "xavier":
            nn.init.xavier_uniform_(last.weight)
        else:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        if size_bias:
            nn.init.constant_(last.bias[2:], size_bias)
        return TowerHead(tower("BOX_LAYERS"), last)

    return Heads(class_head, box_head)
