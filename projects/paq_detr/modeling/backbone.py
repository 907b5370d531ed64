# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling import build_backbone as build_detectron2_backbone
from torch import nn

from ..errors import UserError
from .frozen_norm import FrozenStatsBatchNorm2d, freeze_statistics, replace_modules
from .recompute import recompute

__all__ = ["FrozenStatsBatchNorm2d", "build_backbone"]


def build_backbone(cfg) -> Backbone:
    """Detectron2's backbone of ``cfg``, with ``MODEL.RESNETS.NORM: FrozenStatsBN`` as one more norm.

    ``MODEL.BACKBONE.FREEZE_AT`` freezes the stem (1), also res2 (2: Deformable DETR, DINO, ASAG), or nothing (0).
    ``MODEL.BACKBONE.NAME: timm`` is any network of timm, under the keys ``MODEL.TIMM``. ``MODEL.RESNETS.CHECKPOINT``
    recomputes the activations of a ResNet's blocks.

    Raises:
        UserError: keys do not fit each other, there are no such blocks, or their norms would count each image twice.
    """
    backbone = _build(cfg)
    if cfg.MODEL.RESNETS.CHECKPOINT:
        _recompute_blocks(cfg, backbone)
    return backbone


def _recompute_blocks(cfg, backbone: Backbone) -> None:
    key, stages = "MODEL.RESNETS.CHECKPOINT", getattr(getattr(backbone, "bottom_up", backbone), "stages", None)
    if stages is None:
        raise UserError(f"{key} is True, but MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} is no ResNet")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in backbone.modules()):
        raise UserError(
            f"{key} is True, but MODEL.RESNETS.NORM {cfg.MODEL.RESNETS.NORM} would count each image twice in its "
            "statistics; FrozenBN, FrozenStatsBN and GN have none"
        )
    for block in (block for stage in stages for block in stage):
        if any(parameter.requires_grad for parameter in block.parameters()):
            recompute(block)


def _build(cfg) -> Backbone:
    try:
        if cfg.MODEL.RESNETS.NORM != "FrozenStatsBN":
            return build_detectron2_backbone(cfg)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.RESNETS.NORM = "BN"
        return replace_modules(build_detectron2_backbone(cfg), nn.BatchNorm2d, freeze_statistics)
    except AssertionError as error:  # how Detectron2 refuses keys that do not fit each other
        raise UserError(f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} cannot be built: {error}") from error


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
