# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The losses of training, taken over a test dataset."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from ..data.mapper import DetrDatasetMapper
from .loader import NamedFaults

logger = logging.getLogger(__name__)


def add_validation_losses(
    results: dict[str, Any], cfg: CfgNode, model: nn.Module, autocast: Mapping[str, Any], iteration: int
) -> None:
    """Put :func:`validation_losses` of every test dataset into its results as "validation" (main process)."""
    names = cfg.DATASETS.TEST
    for name in names:
        mapper = DetrDatasetMapper(cfg, False, with_instances=True)
        loader = NamedFaults(build_detection_test_loader(cfg, name, mapper=mapper))
        losses = validation_losses(model, loader, autocast, iteration)
        if comm.is_main_process():
            (results if len(names) == 1 else results[name])["validation"] = losses
            logger.info("The loss over %s is %.4g", name, losses["total_loss"])


def validation_losses(
    model: nn.Module, batches: Iterable[list[dict]], autocast: Mapping[str, Any], iteration: int
) -> dict[str, float]:
    """Every loss of training and "total_loss", each a mean over the images, which count by their objects (those without
    any as one), so that it is the sum over all images by their objects, as in one large batch. On every process alike.

    Nothing is learnt and nothing changes: dropout is off, norms use the statistics that they have, and the random
    numbers (denoising, points of masks) are the same each time.

    Args:
        batches: this process's, with ``instances``.
        iteration: of the training, for parts that change with it.
    """
    sums: dict[str, float] = defaultdict(float)
    with torch.no_grad(), torch.autocast(**autocast), _quiet(model), EventStorage(iteration):
        torch.manual_seed(0)
        for batch in batches:
            count = max(1, sum(_objects(x["instances"]) for x in batch))
            losses = model(batch)
            sums["objects"] += count
            for name, value in losses.items():
                sums[name] += count * float(value)
    total: dict[str, float] = defaultdict(float)
    for part in comm.all_gather(dict(sums)):
        for name, value in part.items():
            total[name] += value
    objects = total.pop("objects", 1.0)
    means = {name: value / objects for name, value in total.items()}
    return {"total_loss": sum(means.values()), **means}


def _objects(instances: Any) -> int:
    return len(instances) - (int(instances.gt_ignore.sum()) if instances.has("gt_ignore") else 0)


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """The model gives losses, and otherwise is as at inference."""
    modes = {module: module.training for module in model.modules()}
    slots = getattr(model, "matched_slots", None)
    matched = None if slots is None else slots.matched.clone()
    model.train()
    for module in model.modules():
        dropping = isinstance(
            module, (nn.modules.dropout._DropoutNd, nn.MultiheadAttention, nn.modules.batchnorm._NormBase)
        )
        if dropping or type(module).__name__ == "DropPath":
            module.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        if slots is not None:
            slots.matched = matched
