# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The meta-architecture of every system here: a template whose parts a config chooses.

backbone -> neck -> encoder -> Memory -> query sources -> routes (decoders) -> losses, or detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from . import papers  # noqa: F401  (they register their parts and config keys)
from .assembly import build_parts
from .config import add_core_config
from .data import albumented, augment, check_batch, check_image_array, mix  # noqa: F401  (three add their keys)
from .errors import UserError
from .modeling.diagnostics import MatchedSlots, alive_share, log_scalars, positives_per_object, slot_agreement
from .modeling.objective import divisors, supervise
from .modeling.read_out import with_full_masks
from .modeling.route import Route, drop_train_only
from .modeling.whole_batch import WholeBatch
from .registry import add_plugin_keys
from .structures import Memory, Prediction, Targets, stack_instances


def add_paq_detr_config(cfg: CfgNode) -> None:
    """Add this project's keys to ``cfg`` (from ``detectron2.config.get_cfg()``), in place: the core's, and those of
    every paper and plug-in that is imported."""
    add_core_config(cfg)
    add_plugin_keys(cfg)


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
        sources: Mapping[str, nn.Module],
        routes: Sequence[Route],
        class_names: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        augmenters: Mapping[str, nn.Module] | None = None,
        input_format: str = "RGB",
        class_renames: Sequence[Sequence[str]] = (),
    ):
        """
        Args:
            neck: from the backbone's maps to a ``Memory``; encoder: from memory to memory.
            sources: query sources by name; each runs once a step, in this order.
            routes: decoder passes, each over the queries of one source. The first predicts at inference; the others are
                training-only.
            class_names: in the order of the class ids.
            pixel_mean, pixel_std: in the order of ``input_format``, 0..255.
            augmenters: by the name of a source, what is put in front of its queries in training.
            class_renames: (old, new) pairs: what classes of weight files are called here.
        """
        super().__init__()
        _check_routes(routes, sources)
        self.backbone, self.neck, self.encoder = backbone, neck, encoder
        self.sources, self.augmenters = nn.ModuleDict(sources), nn.ModuleDict(augmenters or {})
        self.routes = nn.ModuleDict({route.name: route for route in routes})
        for name, source in self.sources.items():
            source.train_only = all(route.train_only for route in routes if route.source == name)
        for augmenter in self.augmenters.values():
            augmenter.train_only = True
        self.matched_slots = MatchedSlots()
        self.whole: WholeBatch | None = None  # what the next batches in training are parts of; None: they are whole
        self.class_names, self.input_format = tuple(class_names), input_format
        self.class_renames = dict(class_renames)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        names = list(cfg.MODEL.DETR.CLASS_NAMES)
        if not names:
            raise UserError(
                "MODEL.DETR.CLASS_NAMES is empty: call paq_detr.data.register_datasets(cfg), which takes the names "
                "from the training dataset, or use the config.yaml that training wrote into its output folder"
            )
        return {
            **build_parts(cfg, len(names)),
            "class_names": names,
            "class_renames": cfg.MODEL.DETR.CLASS_RENAMES,
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
                (gt_boxes, gt_classes, optional gt_ignore, gt_masks for a detector with masks); at inference optional
                ``height`` and ``width`` that boxes and masks are scaled to, and ``lowest_score``, below which nothing
                is found (and no mask computed).
        """
        images = self.preprocess(batched_inputs)
        memory = self.encode(images)
        if self.training:
            instances = [x["instances"] for x in batched_inputs]
            with_masks = self.routes["main"].mask_head is not None
            targets = stack_instances(instances, images.image_sizes, self.device, with_masks)
            if self.whole is not None:
                targets.fullest_of_whole = self.whole.fullest
            return self._losses(memory, targets)
        results = self.detect(memory, [x.get("lowest_score", 0.0) for x in batched_inputs])
        return [
            {"instances": with_full_masks(detector_postprocess(r, x.get("height", size[0]), x.get("width", size[1])))}
            for r, x, size in zip(results, batched_inputs, images.image_sizes)
        ]

    def preprocess(self, batched_inputs: Sequence[dict[str, Any]]) -> ImageList:
        """Normalised images, padded to one size with zeros at the bottom and the right.

        Raises:
            ValueError: no batch, or no images; at inference an image of another form, number type or range than
                ``input_format``'s.
        """
        check_batch(batched_inputs, self.training)
        images = [x["image"] for x in batched_inputs]
        if not self.training:  # at inference, images may come from anywhere
            images = [check_image_array(image, self.input_format) for image in images]
        images = [(image.to(self.device) - self.pixel_mean) / self.pixel_std for image in images]
        images = ImageList.from_tensors(images, self.backbone.size_divisibility)
        learns_a_part = self.training and self.whole is not None
        return self.whole.padded(images, self.backbone.size_divisibility) if learns_a_part else images

    def encode(self, images: ImageList) -> Memory:
        features = self.backbone(images.tensor)
        return self.encoder(self.neck(features, images.image_sizes, tuple(images.tensor.shape[-2:])))

    def detect(self, memory: Memory, lowest_scores: Sequence[float] | None = None) -> list[Instances]:
        """What the main route finds, per image, in pixels of the resized image."""
        route = self.routes["main"]
        return route.read_out(route(self.sources[route.source](memory), memory), memory, lowest_scores)

    def predictions(self, memory: Memory, targets: Targets) -> tuple[list[Prediction], dict[str, Tensor]]:
        """Everything that a step supervises, and the losses that need no ground truth."""
        predictions, losses = [], {}
        queries = {}
        for name, source in self.sources.items():
            queries[name] = source(memory, targets)
            if name in self.augmenters:
                queries[name] = self.augmenters[name](queries[name], targets, memory)
        read: set[str] = set()
        for route in self.routes.values():
            own = queries[route.source]
            if route.source not in read:  # what a source wants goes with the first route that reads it
                read.add(route.source)
                for p in own.predictions:
                    after = route.named(p.after) if p.after else None
                    predictions.append(replace(p, name=route.named(p.name), after=after, scale=route.scale * p.scale))
                for name, value in own.losses.items():
                    losses[route.named(name)] = route.scale * value
            predictions += route.predictions(own, memory)
        return predictions, losses

    def _losses(self, memory: Memory, targets: Targets) -> dict[str, Tensor]:
        predictions, own_losses = self.predictions(memory, targets)
        if self.whole is not None:  # the parts' sum is the whole's
            own_losses = {name: value / len(self.whole.parts) for name, value in own_losses.items()}
        losses, assignments = supervise(predictions, targets, self.whole.divide if self.whole is not None else divisors)
        twice = own_losses.keys() & losses.keys()
        if twice:
            raise ValueError(f"a query source's losses have the names of others: {', '.join(sorted(twice))}")
        final = next(p for p in predictions if p.name == "final")
        self.matched_slots.update(final.output, assignments["final"])
        log_scalars(lambda: positives_per_object(assignments, targets))
        log_scalars(lambda: alive_share(predictions))
        log_scalars(lambda: slot_agreement(assignments, list(self.routes.values())))
        log_scalars(lambda: {"queries_ever_matched": self.matched_slots.share()})
        return {**own_losses, **losses}

    def drop_training_parts(self) -> None:
        """Delete everything that is marked ``train_only`` with its parameters; what is predicted stays the same."""
        drop_train_only(self)


def _check_routes(routes: Sequence[Route], sources: Mapping[str, nn.Module]) -> None:
    if not routes or routes[0].name != "main":
        raise ValueError(f"the first route must be called main, these are {[route.name for route in routes]}")
    if routes[0].train_only or not all(route.train_only for route in routes[1:]):
        raise ValueError("the first route must predict at inference, and all others must be train_only")
    names = [route.name for route in routes]
    if len(set(names)) < len(names):
        raise ValueError(f"routes need different names, these are {names}")
    for route in routes:
        if route.source not in sources:
            raise ValueError(f"route {route.name} reads the source {route.source}, there are only {list(sources)}")
    idle = set(sources) - {route.source for route in routes}
    if idle:
        raise ValueError(f"no route reads the queries of {sorted(idle)}")
