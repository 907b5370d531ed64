# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling import build_backbone as build_detectron2_backbone
from torch import nn

from ..errors import UserError
from .frozen_norm import FrozenStatsBatchNorm2d, freeze_statistics, replace_modules

__all__ = ["FrozenStatsBatchNorm2d", "build_backbone"]


def build_backbone(cfg) -> Backbone:
    """Detectron2's backbone of ``cfg``, with ``MODEL.RESNETS.NORM: FrozenStatsBN`` as one more norm.

    ``MODEL.BACKBONE.FREEZE_AT`` freezes the stem (1), also res2 (2: Deformable DETR, DINO, ASAG), or nothing (0).
    ``MODEL.BACKBONE.NAME: timm`` is any network of timm, under the keys ``MODEL.TIMM``.
    """
    if cfg.MODEL.RESNETS.NORM != "FrozenStatsBN":
        return build_detectron2_backbone(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.NORM = "BN"
    return replace_modules(build_detectron2_backbone(cfg), nn.BatchNorm2d, freeze_statistics)


@BACKBONE_REGISTRY.register()
def timm(cfg, input_shape) -> Backbone:
    """A network of timm (modeling/timm_backbone.py); timm is imported here alone, as it is an optional dependency."""
    try:
        from .timm_backbone import build_timm_backbone
    except ImportError as error:
        if error.name != "timm":
            raise
        raise UserError("MODEL.BACKBONE.NAME timm needs the package timm: pip install timm") from error
    return build_timm_backbone(cfg, input_shape)
