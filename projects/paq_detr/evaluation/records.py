# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What the evaluators share: one compact record of detections per image, and its way to the main process."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import Instances
from detectron2.utils import comm


@dataclass
class Detections:
    """The usable detections of one image, in the order in which the model gave them."""

    boxes_xyxy: np.ndarray  # (D, 4) float32 pixels of the original image
    scores: np.ndarray  # (D,) float32
    classes: np.ndarray  # (D,) int32 contiguous
    num_dropped: int = 0  # detections left out because a box or score was not finite

    def __len__(self) -> int:
        return len(self.scores)


def finite_detections(instances: Instances) -> Detections:
    """The detections of ``instances`` (pred_boxes, scores, pred_classes) without those that hold NaN or Inf."""
    boxes = instances.pred_boxes.tensor.detach().to("cpu").float().numpy().reshape(-1, 4)
    scores = instances.scores.detach().to("cpu").float().numpy()
    classes = instances.pred_classes.to("cpu").numpy().astype(np.int32)
    keep = np.isfinite(boxes).all(1) & np.isfinite(scores)
    return Detections(boxes[keep], scores[keep], classes[keep], int((~keep).sum()))


def gather_records(records: dict[Hashable, Any]) -> dict[Hashable, Any] | None:
    """The records of all ranks on the main process, None on the others.

    Keys are image ids: an image that a padding sampler gave to two ranks counts once.
    """
    comm.synchronize()
    parts = comm.gather(records, dst=0)
    if not comm.is_main_process():
        return None
    merged: dict[Hashable, Any] = {}
    for part in parts:
        for image_id, record in part.items():
            merged.setdefault(image_id, record)
    return merged
