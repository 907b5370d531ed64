# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The exponential moving average of a model's weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class WeightAverage(HookBase):
    """After step t the average a of the weights w becomes ``d a + (1 - d) w``, d = ``decay * (1 - exp(-t / warmup))``.

    Buffers that are numbers of floating point are averaged as well, others copied.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9998, warmup: float = 2000):
        """
        Args:
            warmup: steps in which d reaches 63 % of ``decay``, so that the first weights are soon forgotten; 0: none.
        """
        self.model, self.full_decay, self.warmup = model, decay, warmup
        self.updates = 0
        self.weights: dict[str, Tensor] = {}

    def decay(self) -> float:
        return self.full_decay * (1 - math.exp(-self.updates / self.warmup) if self.warmup else 1.0)

    def before_train(self) -> None:
        if not self.weights:
            if self.trainer.start_iter:
                logger.warning("The checkpoint holds no averaged weights: the average begins at its weights.")
            self.weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def after_step(self) -> None:
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        own = self.model.state_dict()
        averaged = [name for name, tensor in own.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.weights[n] for n in averaged], [own[n] for n in averaged], 1 - self.decay())
        for name in own.keys() - set(averaged):
            self.weights[name].copy_(own[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        own = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.weights)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        own = self.model.state_dict()
        self.weights = {name: tensor.to(own[name].device) for name, tensor in state["weights"].items()}
