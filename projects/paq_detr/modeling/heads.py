# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

from torch import nn

from ..layers import MLP


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
