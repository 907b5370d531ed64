# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A few test pictures with their ground truth beside what the detector finds, for the loggers."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.evaluation import inference_context
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from ..data.mapper import DetrDatasetMapper, read_image
from ..data.sample import Sample, piece_of, resized, sample_of
from ..drawing import draw_detections
from ..evaluation.thresholds import read_thresholds

_LONG_SIDE = 640
_THRESHOLD = 0.3  # where the evaluation has found none
_GAP = 4  # white columns between the two


class ShownPictures:
    """``TEST.PICTURES`` pictures of each test dataset, spread over it, always the same ones."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self._dicts: dict[str, list[dict]] | None = None

    @torch.no_grad()
    def log(self, model: nn.Module) -> None:
        """Put the pictures into the event storage, as ``pictures/<dataset>/<number>``."""
        if not self.cfg.TEST.PICTURES or not self.cfg.LOGGERS:
            return
        mapper = DetrDatasetMapper(self.cfg, False)
        thresholds = read_thresholds(self.cfg.OUTPUT_DIR)
        for dataset, dicts in self._chosen().items():
            threshold = thresholds.get(dataset, {}).get("threshold", _THRESHOLD)
            for number, record in enumerate(dicts):
                truth = self._truth(record)
                height, width = truth.size
                with inference_context(model):
                    found = model([{**mapper(record), "height": height, "width": width}])[0]["instances"].to("cpu")
                picture = self._beside(truth, found[found.scores >= threshold])
                storage = get_event_storage()
                storage.put_image(f"pictures/{dataset}/{number}", torch.from_numpy(picture.transpose(2, 0, 1).copy()))

    def _chosen(self) -> dict[str, list[dict]]:
        if self._dicts is None:
            self._dicts = {}
            for name in self.cfg.DATASETS.TEST:
                dicts = get_detection_dataset_dicts(name, filter_empty=False)
                places = np.unique(np.linspace(0, len(dicts) - 1, self.cfg.TEST.PICTURES).astype(int))
                self._dicts[name] = [dicts[place] for place in places]
        return self._dicts

    def _truth(self, record: dict) -> Sample:
        """A picture, made small, and its objects without the ignore regions."""
        image = read_image(record["file_name"], "RGB")
        masks = self.cfg.MODEL.DETR.MASK.ENABLED and all(
            "segmentation" in a or a.get("iscrowd") for a in record.get("annotations", ())
        )
        sample = sample_of(record, image, len(self.cfg.MODEL.DETR.CLASS_NAMES), masks)
        scale = min(_LONG_SIDE / max(sample.size), 1)
        return resized(sample.take(~sample.ignore), *(max(round(side * scale), 1) for side in sample.size))

    def _beside(self, truth: Sample, found: Instances) -> np.ndarray:
        """(H, W, 3) uint8: the objects at the left, the detections at the right."""
        names = list(self.cfg.MODEL.DETR.CLASS_NAMES)
        masks = None if truth.masks is None else [_dense(mask, truth.size) for mask in truth.masks]
        left = draw_detections(truth.image, truth.boxes, truth.classes, np.ones(len(truth)), names, masks=masks)
        right = draw_detections(
            truth.image, found.pred_boxes.tensor.numpy(), found.pred_classes.numpy(), found.scores.numpy(), names,
            masks=list(found.pred_masks) if found.has("pred_masks") else None, show_scores=True,
        )  # fmt: skip
        gap = np.full((truth.size[0], _GAP, 3), 255, dtype=np.uint8)
        return np.concatenate([np.asarray(left), gap, np.asarray(right)], 1)


def _dense(mask, size: tuple[int, int]) -> np.ndarray:
    x, y, pixels = piece_of(mask, size)
    dense = np.zeros(size, dtype=bool)
    dense[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return dense
