# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing: what a module computes is thrown away and computed again in the backward pass, with the
same random numbers, so that training needs less memory and more time (Chen et al. 2016)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..structures import DecoderState, Memory


def recomputed(layer: nn.Module, state: DecoderState, memory: Memory) -> DecoderState:
    """``layer(state, memory)``. What it computes once for all (``Memory.once``) is its own, and computed again too."""
    known = memory.apart()
    return checkpoint(lambda state: layer(state, known.apart()), state, use_reentrant=False)


class Recomputed:
    """Put before a module's class, in training its forward pass is recomputed."""

    def forward(self, *inputs: Tensor) -> Any:
        if self.training and torch.is_grad_enabled():
            return checkpoint(super().forward, *inputs, use_reentrant=False)
        return super().forward(*inputs)


def recompute(module: nn.Module) -> None:
    """From now on ``module`` is one of those; its parameters keep their names, and copies of it are like it."""
    kind = type(module)
    module.__class__ = type(f"Recomputed{kind.__name__}", (Recomputed, kind), {})
