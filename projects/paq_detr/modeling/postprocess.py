# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances

from ..layers import boxes_cxcywh_to_xyxy
from ..structures import LayerOutput


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
