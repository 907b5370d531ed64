# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The meta-architecture of every system here: a template whose parts a config chooses.

backbone -> neck -> encoder -> Memory -> routes (query source -> decoder) -> criterion, or detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn

from .modeling.backbone import build_backbone
from .modeling.build import build_routes
from .modeling.criterion import SetCriterion
from .modeling.diagnostics import MatchedSlots, alive_share, log_scalars, positives_per_object
from .modeling.encoder import Encoder
from .modeling.neck import ChannelMapper
from .modeling.postprocess import select_detections
from .modeling.route import Route
from .structures import Memory, Targets, stack_instances


@META_ARCH_REGISTRY.register()
class QueryDetector(nn.Module):
    """A query-based detector assembled from parts. Detectron2's calling convention: a list of dicts in; losses (in
    training) or a list of ``{"instances": Instances}`` out."""

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: nn.Module,
        encoder: nn.Module,
        routes: Sequence[Route],
        criterion: nn.Module,
        class_names: Sequence[str],
        top_k: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "RGB",
    ):
        """
        Args:
            neck: from the backbone's maps to a ``Memory``; encoder: from memory to memory.
            routes: the first is the one that predicts at inference; the others are training-only.
            class_names: in the order of the class ids.
            top_k: detections kept per image.
            pixel_mean, pixel_std: in the order of ``input_format``, 0..255.
        """
        super().__init__()
        if routes[0].train_only or not all(route.train_only for route in routes[1:]):
            raise ValueError("the first route must predict at inference, and all others must be train_only")
        self.backbone, self.neck, self.encoder = backbone, neck, encoder
        self.routes = nn.ModuleList(routes)
        self.criterion = criterion
        self.matched_slots = MatchedSlots()
        self.class_names, self.top_k, self.input_format = tuple(class_names), top_k, input_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        names = list(cfg.MODEL.DETR.CLASS_NAMES)
        if not names:
            raise ValueError(
                "MODEL.DETR.CLASS_NAMES is empty: call paq_detr.data.register_datasets(cfg), which takes the names "
                "from the training dataset, or use the config.yaml that training wrote into its output folder"
            )
        for dataset in cfg.DATASETS.TEST:
            metadata = MetadataCatalog.get(dataset)
            if dataset not in DatasetCatalog and not metadata.get("thing_classes"):
                metadata.set(thing_classes=names)  # a bare predictor: let its metadata name the classes all the same
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "neck": ChannelMapper(cfg, backbone.output_shape()),
            "encoder": Encoder(cfg),
            "routes": build_routes(cfg, len(names)),
            "criterion": SetCriterion(cfg),
            "class_names": names,
            "top_k": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[dict[str, Any]]):
        """
        Args:
            batched_inputs: per image a dict with ``image`` (C, H, W) in ``input_format``; in training ``instances``
                (gt_boxes, gt_classes, optional gt_ignore); at inference optional ``height`` and ``width`` that the
                boxes are scaled to.
        """
        images = self.preprocess(batched_inputs)
        memory = self.encode(images)
        if self.training:
            instances = [x["instances"] for x in batched_inputs]
            return self._losses(memory, stack_instances(instances, images.image_sizes, self.device))
        output = self.routes[0](memory)
        results = select_detections(output, images.image_sizes, self.top_k)
        return [
            {"instances": detector_postprocess(r, x.get("height", size[0]), x.get("width", size[1]))}
            for r, x, size in zip(results, batched_inputs, images.image_sizes)
        ]

    def preprocess(self, batched_inputs: Sequence[dict[str, Any]]) -> ImageList:
        """Normalised images, padded to one size with zeros at the bottom and the right."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def encode(self, images: ImageList) -> Memory:
        features = self.backbone(images.tensor)
        return self.encoder(self.neck(features, images.image_sizes, tuple(images.tensor.shape[-2:])))

    def _losses(self, memory: Memory, targets: Targets) -> dict[str, Tensor]:
        predictions, losses = [], {}
        for route in self.routes:
            of_route, own_losses = route.predict_for_training(memory)
            predictions += of_route
            losses.update(own_losses)
        of_pairs, assignments = self.criterion(predictions, targets)
        final = next(p for p in predictions if p.name == "final")
        self.matched_slots.update(final.output, assignments["final"])
        log_scalars(lambda: positives_per_object(assignments, targets))
        log_scalars(lambda: alive_share(predictions))
        log_scalars(lambda: {"queries_ever_matched": self.matched_slots.share()})
        return {**losses, **of_pairs}

    def drop_training_parts(self) -> None:
        """Delete training-only routes and decoder layers with their parameters; what is predicted stays the same."""
        del self.routes[1:]
        self.routes[0].decoder.drop_training_layers()
