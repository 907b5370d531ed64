# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..checks import Choice

TIMM_NORM = Choice("MODEL.TIMM.NORM", ("", "FrozenBN", "FrozenStatsBN", "GN"))  # here, as timm may be missing


class FrozenStatsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that always uses its stored statistics but trains its affine (ASAG and AdaMixer's backbone)."""

    def train(self, mode: bool = True) -> FrozenStatsBatchNorm2d:
        return super().train(False)


def freeze_statistics(norm: nn.BatchNorm2d) -> FrozenStatsBatchNorm2d:
    frozen = FrozenStatsBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    frozen.load_state_dict(norm.state_dict())
    frozen.requires_grad_(norm.weight.requires_grad)
    return frozen.train(False)


def replace_modules(module: nn.Module, old: type, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """``module`` with every child of type ``old``, at any depth, replaced in place by what ``make`` gives for it."""
    for name, child in module.named_children():
        setattr(module, name, make(child) if isinstance(child, old) else replace_modules(child, old, make))
    return module
