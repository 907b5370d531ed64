# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from ..layers import boxes_cxcywh_to_xyxy
from ..structures import Assignment, LayerOutput, Prediction, Targets
from .losses import ClassificationLoss, build_classification_loss
from .matcher import assign


class SetCriterion(nn.Module):
    """Losses of any list of predictions, whatever assigned them.

    Classification over all queries, L1 and GIoU over the assigned pairs, each summed and divided by the number of
    objects of the batch (mean over ranks, at least 1), not of the pairs: DETR's normaliser, kept by PaQ-DETR's code.
    """

    @configurable
    def __init__(
        self,
        *,
        classification: ClassificationLoss,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        ignore_ioa: float = 0.7,
    ):
        """
        Args:
            ignore_ioa: an unassigned query whose box lies in one ignore region by this share of its own area has no
                classification loss (DH-DETR's code).
        """
        super().__init__()
        self.classification = classification
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight
        self.ignore_ioa = ignore_ioa

    @classmethod
    def from_config(cls, cfg) -> dict:
        L = cfg.MODEL.DETR.LOSS
        return {
            "classification": build_classification_loss(L.CLASSIFICATION),
            "class_weight": L.CLASS_WEIGHT,
            "l1_weight": L.L1_WEIGHT,
            "giou_weight": L.GIOU_WEIGHT,
            "ignore_ioa": L.IGNORE_IOA,
        }

    def forward(
        self, predictions: Sequence[Prediction], targets: Targets
    ) -> tuple[dict[str, Tensor], dict[str, Assignment]]:
        """
        Returns:
            Weighted losses ``loss_class/NAME``, ``loss_l1/NAME`` and ``loss_giou/NAME`` of every prediction (the last
            two where it has box losses), and the assignments by name.
        """
        assignments = assign(predictions, targets)
        objects = self._mean_over_ranks(targets)
        losses: dict[str, Tensor] = {}
        for p, assignment in zip(predictions, assignments):
            of_one = self._losses(p, assignment, targets.binary() if p.binary else targets)
            for name, value in of_one.items():
                losses[f"{name}/{p.name}"] = value * (p.scale / objects)
        return losses, {p.name: a for p, a in zip(predictions, assignments)}

    def _mean_over_ranks(self, targets: Targets) -> Tensor:
        objects = torch.tensor(float(len(targets.boxes)), device=targets.boxes.device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(objects)
            objects = objects / comm.get_world_size()
        return objects.clamp(min=1)

    def _losses(self, prediction: Prediction, pairs: Assignment, targets: Targets) -> dict[str, Tensor]:
        output, classification = prediction.output, prediction.classification or self.classification
        logits = output.logits.float()
        boxes = output.boxes[pairs.image, pairs.query]
        wanted, labels = targets.boxes[pairs.target], targets.labels[pairs.target]
        entry = (pairs.image, pairs.query, labels)
        positive, quality = torch.zeros_like(logits), torch.zeros_like(logits)
        positive[entry] = 1.0
        quality[entry] = classification.quality(boxes, wanted)
        weight = torch.ones_like(logits)
        if pairs.weight is not None:
            weight[entry] = pairs.weight
        counted = self._counted_queries(output, pairs, targets)
        if counted is not None:
            weight = weight * counted[..., None]
        loss_class = self.class_weight * (weight * classification(logits, positive, quality)).sum()
        if not prediction.box_losses:
            return {"loss_class": loss_class}
        pair_weight = 1.0 if pairs.weight is None else pairs.weight
        l1 = (boxes - wanted).abs().sum(-1)
        giou = generalized_box_iou_loss(boxes_cxcywh_to_xyxy(boxes), boxes_cxcywh_to_xyxy(wanted))
        return {
            "loss_class": loss_class,
            "loss_l1": self.l1_weight * (pair_weight * l1).sum(),
            "loss_giou": self.giou_weight * (pair_weight * giou).sum(),
        }

    def _counted_queries(self, output: LayerOutput, pairs: Assignment, targets: Targets) -> Tensor | None:
        """(B, N) False for queries without a classification loss; None where all have one."""
        counted = output.valid
        if len(targets.ignore_boxes):
            batch, num_queries = output.logits.shape[:2]
            ignored = output.boxes.new_zeros(batch, num_queries)
            ioa = intersection_over_own_area(output.boxes.detach()[targets.ignore_image], targets.ignore_boxes)
            ignored.scatter_reduce_(0, targets.ignore_image[:, None].expand_as(ioa), ioa, "amax")
            keep = ignored < self.ignore_ioa
            keep[pairs.image, pairs.query] = True
            counted = keep if counted is None else keep & counted
        return counted


def intersection_over_own_area(boxes: Tensor, regions: Tensor) -> Tensor:
    """(R, N) share of each of (R, N, 4) boxes that lies in its region of (R, 4); both cxcywh."""
    a, b = boxes_cxcywh_to_xyxy(boxes), boxes_cxcywh_to_xyxy(regions)[:, None]
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return overlap / boxes[..., 2:].prod(-1).clamp(min=1e-7)
