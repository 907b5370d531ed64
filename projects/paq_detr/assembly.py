# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From the names in a config to the parts of a detector. It knows slots; papers fill them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from . import modeling  # noqa: F401  (its parts register themselves)
from .errors import UserError
from .modeling.backbone import build_backbone
from .modeling.masks import build_mask_head, build_mask_losses
from .modeling.objective import Objective, build_objective
from .modeling.route import Borrowed, Route
from .registry import (
    ASSIGNERS,
    AUGMENTERS,
    CLASS_LOSSES,
    CONTENTS,
    COSTS,
    DECODERS,
    ENCODERS,
    NECKS,
    READ_OUTS,
    ROUTES,
    SOURCES,
    Kit,
    load_plugins,
    needs_of,
    per_layer,
)


def build_parts(cfg: CfgNode, num_classes: int) -> dict[str, Any]:
    """The arguments of ``QueryDetector`` that are parts.

    Raises:
        UserError: a name that is not registered, a number out of range, parts that do not fit each other; one sentence
            with the full key.
    """
    D = cfg.MODEL.DETR
    load_plugins(D.PLUGINS)  # in a process that was handed a finished config
    backbone = build_backbone(cfg)
    kit = Kit(num_classes, backbone.output_shape())
    kit.neck = NECKS.build(D.NECK.NAME, cfg, kit)
    parts = {
        "backbone": backbone,
        "neck": kit.neck,
        "encoder": ENCODERS.build(D.ENCODER.NAME, cfg, kit),
    }
    kit.sources["main"] = SOURCES.build(D.QUERIES.NAME, cfg, kit)
    kit.routes["main"] = build_main_route(cfg, kit)
    augmenter = AUGMENTERS.build(D.QUERIES.AUGMENT, cfg, kit)
    if augmenter is not None:
        _check_augmenter(cfg, kit, augmenter)
        kit.augmenters["main"] = augmenter
    for name in D.ROUTES:
        if name in kit.routes:
            raise UserError(f"{ROUTES.key} is {list(D.ROUTES)}: each route can be there once, and main always is")
        kit.routes[name] = ROUTES.build(name, cfg, kit)
    if D.MASK.ENABLED:
        add_masks(cfg, kit)
    return {**parts, "sources": kit.sources, "augmenters": kit.augmenters, "routes": list(kit.routes.values())}


def build_main_route(cfg: CfgNode, kit: Kit) -> Route:
    D = cfg.MODEL.DETR
    kit.decoder = DECODERS.build(D.DECODER.NAME, cfg, kit)
    return Route(
        name="main",
        decoder=kit.decoder,
        objectives=layer_objectives(cfg, kit),
        read_out=READ_OUTS.build(D.READ_OUT.NAME, cfg, kit),
    )


def layer_objectives(cfg: CfgNode, kit: Kit) -> list[Objective]:
    """How each decoder layer is supervised; layers of one assigner and cost share them, to be matched in one call."""
    D = cfg.MODEL.DETR
    count = D.DECODER.NUM_LAYERS
    classification = CLASS_LOSSES.build(D.LOSS.CLASSIFICATION, cfg, kit)
    assigners: dict[tuple[str, str], Any] = {}
    objectives = []
    for layer, cost in enumerate(per_layer(COSTS.key, D.MATCHER.COST, count)):
        role = "FINAL" if layer == count - 1 else "INTERMEDIATE"
        name = D.ASSIGNER[role]
        if (name, cost) not in assigners:
            key = f"{ASSIGNERS.key}.{role}"
            assigners[name, cost] = ASSIGNERS.build(name, cfg, kit, COSTS.build(cost, cfg, kit), key=key)
        boxes = D.LOSS.REPEAT_BOX_LOSSES or layer < (D.DECODER.BOX_LAYERS or count)
        objectives.append(
            build_objective(cfg, assigner=assigners[name, cost], classification=classification, boxes=boxes)
        )
    return objectives


def add_masks(cfg: CfgNode, kit: Kit) -> None:
    """One mask head for all routes, learnt by the last layer of each; by that of the main one which is read out."""
    D = cfg.MODEL.DETR
    head, losses = build_mask_head(cfg, kit.feature_shapes), build_mask_losses(cfg)
    for route in kit.routes.values():
        main = route.name == "main"
        layer = (D.READ_OUT.LAYER or D.DECODER.TEST_LAYERS if main else 0) or D.DECODER.NUM_LAYERS
        route.mask_head = head if main else Borrowed(head)
        route.objectives[layer - 1] = replace(route.objectives[layer - 1], mask_losses=losses)


def _check_augmenter(cfg: CfgNode, kit: Kit, augmenter: nn.Module) -> None:
    missing = needs_of(augmenter) - kit.sources["main"].provides
    if missing:
        Q = cfg.MODEL.DETR.QUERIES
        raise UserError(
            f"{AUGMENTERS.key} {Q.AUGMENT} needs queries with {' and '.join(sorted(missing))}, which {SOURCES.key} "
            f"{Q.NAME} with {CONTENTS.key} {Q.CONTENT} does not make"
        )
