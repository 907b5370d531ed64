# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From what the layers of a route predict to detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import batched_nms

from ..checks import check_range
from ..errors import UserError
from ..layers import boxes_cxcywh_to_xyxy
from ..registry import READ_OUTS
from ..structures import LayerOutput, Memory
from .predicted_masks import PredictedMasks


class ReadOut:
    """The best (query, class) pairs of one layer. A subclass may fuse layers (``combine``) or add fields."""

    def __init__(self, top_k: int, layer: int | None = None, nms_iou: float = 0.0):
        """
        Args:
            top_k: detections kept per image.
            layer: whose prediction, counted from 1 among those that run at inference; None: the last one.
            nms_iou: class-wise suppression above this IoU; 0: none.
        """
        self.top_k, self.layer, self.nms_iou = top_k, layer, nms_iou

    def combine(self, outputs: Sequence[LayerOutput], memory: Memory) -> LayerOutput:
        """The output that detections are selected from."""
        return outputs[-1 if self.layer is None else self.layer - 1]

    def __call__(
        self, outputs: Sequence[LayerOutput], memory: Memory, lowest_scores: Sequence[float] | None = None
    ) -> list[Instances]:
        """Per image ``Instances`` as of ``select_detections``, from its lowest score on, in pixels of the resized
        image, and of a detector with masks their ``PredictedMasks`` in the field mask_logits."""
        output = self.combine(outputs, memory)
        results = select_detections(output, memory.grid.image_sizes, self.top_k)
        if self.nms_iou:
            results = [r[batched_nms(r.pred_boxes.tensor, r.scores, r.pred_classes, self.nms_iou)] for r in results]
        if lowest_scores is not None:
            results = [r[r.scores >= lowest] for r, lowest in zip(results, lowest_scores)]
        if output.masks is not None:
            for image, result in enumerate(results):
                result.mask_logits = detected_masks(output, image, result)
        return results


def detected_masks(output: LayerOutput, image: int, result: Instances) -> PredictedMasks:
    """The masks of an image's detections; a query that is detected as several classes has its mask computed once."""
    query, place = result.query_indices.unique(return_inverse=True)
    logits = output.masks(torch.full_like(query, image), query)
    cells = tuple(side / output.masks.stride for side in result.image_size)
    rows, columns = (-(-side // output.masks.stride) for side in result.image_size)
    return PredictedMasks(logits[place, :rows, :columns], cells, result.image_size)


def with_full_masks(result: Instances) -> Instances:
    """Detections in the pixels of their image with ``mask_logits``, if any, as ``pred_masks`` of that size."""
    if result.has("mask_logits"):
        result.pred_masks = result.mask_logits.at_size(*result.image_size)
        result.remove("mask_logits")
    return result


def select_detections(output: LayerOutput, image_sizes: Sequence[tuple[int, int]], top_k: int) -> list[Instances]:
    """The ``top_k`` best (query, class) pairs of each image; no NMS.

    Args:
        image_sizes: (height, width) of each image without padding, in the pixels that the boxes shall have.

    Returns:
        Per image ``Instances`` with pred_boxes (xyxy pixels), scores, pred_classes, and query_indices (the query slot
        that each detection comes from). Pairs that are not finite are left out.
    """
    scores = output.logits.float().sigmoid()
    finite = output.boxes.isfinite().all(-1, keepdim=True) & scores.isfinite()
    if output.valid is not None:
        finite = finite & output.valid[..., None]
    num_classes = scores.shape[-1]
    scores = scores.masked_fill(~finite, -1.0).flatten(1)
    scores, index = scores.topk(min(top_k, scores.shape[1]), dim=1)
    results = []
    for image_scores, image_index, boxes, (height, width) in zip(scores, index, output.boxes, image_sizes):
        keep = image_scores >= 0
        query = torch.div(image_index[keep], num_classes, rounding_mode="floor")
        scale = boxes.new_tensor([width, height, width, height])
        result = Instances((height, width))
        result.pred_boxes = Boxes(boxes_cxcywh_to_xyxy(boxes[query].float()) * scale)
        result.scores = image_scores[keep]
        result.pred_classes = image_index[keep] % num_classes
        result.query_indices = query
        results.append(result)
    return results


@READ_OUTS.register("layer")
def build_layer_read_out(cfg, kit) -> ReadOut:
    D = cfg.MODEL.DETR
    running = [number + 1 for number in kit.decoder.at_inference()]
    if D.READ_OUT.LAYER not in (0, *running):
        raise UserError(
            f"MODEL.DETR.READ_OUT.LAYER is {D.READ_OUT.LAYER}, must be in 0..{len(running)}, the layers "
            "that run at inference (0: the last)"
        )
    place = running.index(D.READ_OUT.LAYER) + 1 if D.READ_OUT.LAYER else None
    nms_iou = check_range("MODEL.DETR.READ_OUT.NMS_IOU", D.READ_OUT.NMS_IOU, "[0, 1]")
    return ReadOut(cfg.TEST.DETECTIONS_PER_IMAGE, place, nms_iou)
