# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What ASAG's anchors and queries learn: the objects of each patch, matching by area, query weighting.

| paper, official code | here | key |
|---|---|---|
| objects of a patch | ``objects_in`` | ASAG.* |
| the whole image and its three flips | ``flipped_objects`` | ASAG.LEGACY_P6_FLIP |
| area factor (code only) | ``AreaWeightedCost`` | MATCHER.COST area_weighted, QUERY_WEIGHTING.AREA_WEIGHT |
| query weighting (Eq. 1-3) | ``QueryWeighting`` | LOSS.CLASSIFICATION query_weighting, QUERY_WEIGHTING.* |
| losses of the anchors | ``AnchorQuality`` | ASAG.CLASS_WEIGHT, ... |

Shape legend beside structures.py's: P patches ("images" of their ``Targets``), A anchors of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode as CN
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..checks import check_range
from ..layers import boxes_cxcywh_to_xyxy
from ..modeling.assignment import MatchCost, cost_terms
from ..modeling.losses import ClassificationLoss, Matches
from ..registry import CLASS_LOSSES, COSTS, Kit, adds_config
from ..structures import LayerOutput, Targets
from .asag_patches import clipped, to_window


@adds_config
def add_config(cfg: CN) -> None:
    # The class loss "query_weighting" and the matching cost "area_weighted".
    cfg.MODEL.DETR.QUERY_WEIGHTING = Q = CN()
    Q.GAMMA_SCORE = 0.4  # gamma_1 of Eq. 1
    Q.GAMMA_IOU = 0.6
    # Cost and losses of an object grow from 1, where it fills the image, to this as it shrinks; the paper has 1, no
    # such factor.
    Q.AREA_WEIGHT = 4.0


# ----------------------------------------------------------------------------------------------------------------------
# Objects of patches, on the host


def on_host(targets: Targets) -> Targets:
    """The objects of a batch as one class, on the host; one copy."""
    boxes, regions, image = (t.to(torch.float32) for t in (targets.boxes, targets.ignore_boxes, targets.ignore_image))
    flat = torch.cat([boxes.flatten(), regions.flatten(), image]).cpu()
    boxes, regions, region_image = flat.split([boxes.numel(), regions.numel(), len(image)])
    image = torch.arange(len(targets.counts)).repeat_interleave(torch.tensor(targets.counts))
    return Targets(
        boxes=boxes.view(-1, 4),
        labels=torch.zeros_like(image),
        image=image,
        counts=targets.counts,
        ignore_boxes=regions.view(-1, 4),
        ignore_image=region_image.long(),
    )


def to_device(targets: Targets, device: torch.device) -> Targets:
    """In two copies."""
    boxes = torch.cat([targets.boxes, targets.ignore_boxes]).to(device)
    numbers = torch.cat([targets.labels, targets.image, targets.ignore_image]).to(device)
    objects, regions = len(targets.boxes), len(targets.ignore_boxes)
    labels, image, region_image = numbers.split([objects, objects, regions])
    return Targets(boxes[:objects], labels, image, targets.counts, boxes[objects:], region_image)


def objects_in(windows: Tensor, image: Tensor, targets: Targets, whole: bool) -> Targets:
    """The objects of P patches, in shares of their patch.

    An object belongs to every patch of its image that its centre lies in, borders included; what of it sticks out is
    cut off. Ignore regions are not: a region counts where it reaches.

    Args:
        windows: (P, 4) x, y, x, y in shares of the image.
        image: (P,) int64.
        whole: leave out objects wider or higher than the patch.
    """
    low, high = windows[:, None].chunk(2, -1)  # (P, 1, 2)
    center, size = targets.boxes.chunk(2, -1)
    inside = (image[:, None] == targets.image) & ((low <= center) & (center <= high)).all(-1)
    if whole:
        inside &= (size <= high - low).all(-1)
    patch, index = inside.nonzero(as_tuple=True)
    region_low, region_high = boxes_cxcywh_to_xyxy(targets.ignore_boxes).chunk(2, -1)
    meets = (image[:, None] == targets.ignore_image) & ((region_low < high) & (region_high > low)).all(-1)
    region_patch, region = meets.nonzero(as_tuple=True)
    return Targets(
        boxes=to_window(clipped(targets.boxes[index], windows[patch]), windows[patch]),
        labels=targets.labels[index],
        image=patch,
        counts=tuple(inside.sum(1).tolist()),
        ignore_boxes=to_window(targets.ignore_boxes[region], windows[region_patch]),
        ignore_image=region_patch,
    )


def flipped_objects(targets: Targets, legacy: bool = False) -> Targets:
    """The objects of 4 B patches: every image as it is, flipped horizontally, vertically, and both.

    ``legacy`` flips as the official code does, which takes centres and sizes for corners: (1 - w, y, 1 - x, h).
    """
    image = torch.arange(len(targets.counts)).repeat_interleave(4)
    patch, index = (image[:, None] == targets.image).nonzero(as_tuple=True)
    region_patch, region = (image[:, None] == targets.ignore_image).nonzero(as_tuple=True)
    return Targets(
        boxes=(_legacy_flip if legacy else _flip)(targets.boxes[index], patch % 4),
        labels=targets.labels[index],
        image=patch,
        counts=tuple(n for n in targets.counts for _ in range(4)),
        ignore_boxes=_flip(targets.ignore_boxes[region], region_patch % 4),
        ignore_image=region_patch,
    )


def _flip(boxes: Tensor, kind: Tensor) -> Tensor:
    """(M, 4) boxes flipped by (M,) kind: bit 0 horizontally, bit 1 vertically."""
    mirrored = torch.stack([kind & 1, kind >> 1], 1) > 0
    return torch.cat([torch.where(mirrored, 1 - boxes[:, :2], boxes[:, :2]), boxes[:, 2:]], 1)


def _legacy_flip(boxes: Tensor, kind: Tensor) -> Tensor:
    for axis, bit in ((0, 1), (1, 2)):
        swapped = boxes.clone()
        swapped[:, axis], swapped[:, axis + 2] = 1 - boxes[:, axis + 2], 1 - boxes[:, axis]
        boxes = torch.where((kind & bit > 0)[:, None], swapped, boxes)
    return boxes


# ----------------------------------------------------------------------------------------------------------------------
# Area factor


def area_factor(boxes: Tensor, weight: float, large: bool = False) -> Tensor:
    """(M,) ``weight - (weight - 1) sqrt(w h)``, more for small boxes; ``large``: ``1 + (weight - 1) sqrt(w h)``."""
    side = boxes[:, 2:].prod(1).clamp(min=0).sqrt()
    return 1 + (weight - 1) * (side if large else 1 - side)


@dataclass(frozen=True)
class AreaWeightedCost(MatchCost):
    """The whole matching cost times the object's area factor."""

    area_weight: float = 4.0
    large: bool = False

    def __call__(self, output: LayerOutput, targets: Targets) -> Tensor:
        cost = super().__call__(output, targets)
        factor = area_factor(targets.boxes, self.area_weight, self.large)[:, None]
        return torch.where(cost < ops.NON_FINITE_COST, cost * factor, cost)


@COSTS.register("area_weighted")
def build_area_weighted_cost(cfg: CN, kit: Kit, large: bool = False) -> AreaWeightedCost:
    return AreaWeightedCost(**cost_terms(cfg), area_weight=area_weight(cfg), large=large)


def area_weight(cfg: CN) -> float:
    return check_range("MODEL.DETR.QUERY_WEIGHTING.AREA_WEIGHT", cfg.MODEL.DETR.QUERY_WEIGHTING.AREA_WEIGHT, "[1, inf)")


# ----------------------------------------------------------------------------------------------------------------------
# Losses


class QueryWeighting(ClassificationLoss):
    """A matched query learns to be positive as far as it is good, and negative as far as it is not (Eq. 1-3).

    With the query's score s for the object's class and its IoU u, both detached, a matched entry has
    ``-w_pos log s - w_neg log(1 - s)``, its L1 and GIoU the factor w_pos, and all are multiplied by the object's area
    factor. Every other entry has ``-s^2 log(1 - s)``, s^2 not detached.
    """

    def __init__(self, gamma_score: float = 0.4, gamma_iou: float = 0.6, area_weight: float = 4.0, large: bool = False):
        self.gamma_score, self.gamma_iou, self.area_weight, self.large = gamma_score, gamma_iou, area_weight, large

    def area(self, matches: Matches) -> Tensor:
        """(P,) area factors of the pairs' objects."""
        return area_factor(matches.wanted, self.area_weight, self.large)

    def positive(self, score: Tensor, iou: Tensor) -> Tensor:
        """w_pos in [0.19, 1] of Eq. 1."""
        return _normed(score**self.gamma_score * iou**self.gamma_iou)

    def negative(self, score: Tensor, iou: Tensor) -> Tensor:
        """w_neg in [0, 0.81] of Eq. 3, 0 at score 0 and at IoU 1 (the paper's offset lacks a factor)."""
        quality = iou**self.gamma_iou
        wrong = torch.where(quality < 0.5, 1.0, (4 / 3) * (1 - quality**2))  # Eq. 2, of DW (Li et al. 2022)
        return _normed(score**self.gamma_score * wrong) - _normed(torch.zeros_like(score))

    def __call__(self, matches: Matches) -> Tensor:
        logits, area = matches.logits, self.area(matches)
        positive, negative = self.positive(matches.scores, matches.iou), self.negative(matches.scores, matches.iou)
        matched = matches.spread(area * positive) * F.softplus(-logits)
        matched = matched + matches.spread(area * negative) * F.softplus(logits)
        return torch.where(matches.spread(1.0) > 0, matched, logits.sigmoid() ** 2 * F.softplus(logits))

    def pair_factors(self, matches: Matches) -> Mapping[str, Tensor]:
        factor = self.area(matches) * self.positive(matches.scores, matches.iou)
        return {"l1": factor, "giou": factor}


def _normed(x: Tensor) -> Tensor:
    """[0, 1] to [0.1915, 1]."""
    return (4.5 * (x - 1 / 3)).sigmoid() * (1 + math.exp(-3))


class AnchorQuality(QueryWeighting):
    """The anchors' score learns the IoU: quality focal loss (Li et al. 2020) with the area factor on matched ones.

    Unmatched anchors that overlap any object of their patch by ``ignore_iou`` have no class loss. L1 and GIoU are
    weighted as in query weighting.
    """

    def __init__(self, ignore_iou: float = 0.5, **weighting):
        super().__init__(**weighting)
        self.ignore_iou = ignore_iou

    def __call__(self, matches: Matches) -> Tensor:
        logits, target, matched = matches.logits, matches.spread(matches.iou), matches.spread(1.0) > 0
        loss = (target - logits.sigmoid()) ** 2 * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        factor = torch.where(matched, matches.spread(self.area(matches)), 1.0)
        ignored = (best_iou(matches) >= self.ignore_iou)[..., None] & ~matched
        return factor * loss.masked_fill(ignored, 0.0)


def best_iou(matches: Matches) -> Tensor:
    """(P, A) largest IoU of each anchor with an object of its patch."""
    boxes, targets = matches.output.boxes.detach(), matches.targets
    iou, _ = ops.pair_iou(boxes[None], targets.boxes, targets.image)
    index = targets.image[:, None].expand_as(iou[0])
    return boxes.new_zeros(boxes.shape[:2]).scatter_reduce(0, index, iou[0].to(boxes.dtype), "amax")


@CLASS_LOSSES.register("query_weighting")
def build_query_weighting(cfg: CN, kit: Kit) -> QueryWeighting:
    return QueryWeighting(**weighting_numbers(cfg))


def weighting_numbers(cfg: CN) -> dict[str, float]:
    """The numbers of ``QueryWeighting``, checked."""
    Q, key = cfg.MODEL.DETR.QUERY_WEIGHTING, "MODEL.DETR.QUERY_WEIGHTING"
    gammas = {k.lower(): check_range(f"{key}.{k}", Q[k], "[0, inf)") for k in ("GAMMA_SCORE", "GAMMA_IOU")}
    return {**gammas, "area_weight": area_weight(cfg)}
