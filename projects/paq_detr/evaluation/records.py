# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What the evaluators share: a record of every image, its way to the main process, and checks of all records."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools import mask as rle


@dataclass
class Detections:
    """The usable detections of one image, in the order in which the model gave them."""

    boxes_xyxy: np.ndarray  # (D, 4) float32 pixels of the original image
    scores: np.ndarray  # (D,) float32
    classes: np.ndarray  # (D,) int32 contiguous
    num_dropped: int = 0  # detections left out because a box or score was not finite
    masks: list[dict] | None = None  # D run lengths of the original image's size; None: not asked for

    def __len__(self) -> int:
        return len(self.scores)


def finite_detections(instances: Instances, with_masks: bool = False) -> Detections:
    """The detections of ``instances`` (pred_boxes, scores, pred_classes) without those that hold NaN or Inf; with their
    ``pred_masks``, where asked for."""
    boxes = instances.pred_boxes.tensor.detach().to("cpu").float().numpy().reshape(-1, 4)
    scores = instances.scores.detach().to("cpu").float().numpy()
    classes = instances.pred_classes.to("cpu").numpy().astype(np.int32)
    keep = np.isfinite(boxes).all(1) & np.isfinite(scores)
    found = Detections(boxes[keep], scores[keep], classes[keep], int((~keep).sum()))
    if with_masks:
        if not instances.has("pred_masks"):
            raise ValueError("the model's Instances have no field pred_masks, which masks are evaluated by")
        masks = instances.pred_masks[torch.from_numpy(np.flatnonzero(keep)).to(instances.scores.device)]
        found.masks = [rle.encode(np.asfortranarray(mask.cpu().numpy(), dtype=np.uint8)) for mask in masks]
    return found


class RecordingEvaluator(DatasetEvaluator, ABC):
    """Keeps a record of every image and evaluates those of all ranks together, on the main process.

    A subclass supplies ``results_of``, and ``record_of`` where a record is not the image's ``Detections``. Records are
    kept by image id: an image that a padding sampler gave twice counts once.

    Args:
        output_dir: folder that ``results_of`` writes into, made before; None writes nothing.
    """

    def __init__(self, output_dir: str | None = None):
        self.output_dir = output_dir
        self._records: dict[Hashable, Any] = {}

    def reset(self) -> None:
        self._records = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            self._records[image["image_id"]] = self.record_of(image["image_id"], output["instances"])

    def evaluate(self) -> dict[str, dict[str, float]]:
        """What ``results_of`` gives on the main process, ``{}`` on the others."""
        comm.synchronize()
        parts = comm.gather(self._records, dst=0)
        if not comm.is_main_process():
            return {}
        records: dict[Hashable, Any] = {}
        for part in parts:
            for image_id, record in part.items():
                records.setdefault(image_id, record)
        if self.output_dir:
            os.makedirs(self.output_dir, exist_ok=True)
        return self.results_of(records)

    def record_of(self, image_id: Hashable, instances: Instances) -> Any:
        """What is kept of an image."""
        return finite_detections(instances)

    @abstractmethod
    def results_of(self, records: dict[Hashable, Any]) -> dict[str, dict[str, float]]:
        """The metrics by task, of the records by image id."""

    def _path(self, name: str) -> str:
        return os.path.join(self.output_dir, name)


def has_annotations(dicts: list[dict], metadata: Metadata) -> bool:
    """Whether a dataset knows annotations at all, be there none in any image: a test set of COCO's does not.

    Read from ``metadata.annotated`` where it is set, else from the key ``annotations`` in the dicts.
    """
    return metadata.get("annotated", not dicts or any("annotations" in image for image in dicts))


def check_detections(
    records: dict[Hashable, Detections], image_ids: Collection[Hashable], dataset_name: str, logger: logging.Logger
) -> None:
    """Say how many images were not predicted and how many detections were dropped.

    Raises:
        ValueError: a record is of an image that the dataset does not hold.
    """
    unknown = [image_id for image_id in records if image_id not in image_ids]
    if unknown:
        raise ValueError(f"image_id {unknown[0]!r} of a prediction is not in the dataset {dataset_name!r}")
    missing = len(image_ids) - len(records)
    if missing:
        logger.warning("%d of %d images of %s were not predicted; they count as images without detections",
                       missing, len(image_ids), dataset_name)  # fmt: skip
    dropped = sum(record.num_dropped for record in records.values())
    if dropped:
        logger.warning("%d detections with a NaN or infinite box or score were dropped", dropped)
