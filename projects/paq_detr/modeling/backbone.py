# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

from detectron2.modeling import Backbone
from detectron2.modeling import build_backbone as build_detectron2_backbone
from torch import nn


class FrozenStatsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that always uses its stored statistics but trains its affine (ASAG and AdaMixer's backbone)."""

    def train(self, mode: bool = True) -> FrozenStatsBatchNorm2d:
        return super().train(False)


def build_backbone(cfg) -> Backbone:
    """Detectron2's backbone of ``cfg``, with ``MODEL.RESNETS.NORM: FrozenStatsBN`` as one more norm.

    ``MODEL.BACKBONE.FREEZE_AT`` freezes the stem (1), also res2 (2: Deformable DETR, DINO, ASAG), or nothing (0).
    """
    if cfg.MODEL.RESNETS.NORM != "FrozenStatsBN":
        return build_detectron2_backbone(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.NORM = "BN"
    return _replace(build_detectron2_backbone(cfg), nn.BatchNorm2d, _freeze_statistics)


def _freeze_statistics(norm: nn.BatchNorm2d) -> FrozenStatsBatchNorm2d:
    frozen = FrozenStatsBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    frozen.load_state_dict(norm.state_dict())
    frozen.requires_grad_(norm.weight.requires_grad)
    return frozen.train(False)


def _replace(module: nn.Module, old: type, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, make(child) if isinstance(child, old) else _replace(child, old, make))
    return module
