# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..structures import LayerOutput, Memory, Prediction, QuerySet
from .matcher import Assigner


class Borrowed:
    """A module that another part owns: used here, but not registered, so neither saved nor moved nor trained twice."""

    def __init__(self, module: nn.Module):
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_module":  # while being copied or unpickled there is no module yet
            raise AttributeError(name)
        return getattr(self._module, name)


class Route(nn.Module):
    """One whole decoder pass: query source, decoder, and how its layers' predictions find their objects."""

    def __init__(
        self,
        *,
        name: str,
        source: nn.Module,
        decoder: nn.Module | Borrowed,
        assigners: Sequence[Assigner],
        box_losses: int | None = None,
        scale: float = 1.0,
        train_only: bool = False,
    ):
        """
        Args:
            name: prefix of its loss names; empty for the main route.
            source: makes a ``QuerySet`` from the memory.
            decoder: ``Borrowed`` where another route owns it.
            assigners: how each decoder layer's predictions find their objects.
            box_losses: only so many first layers have box losses; None: all.
            scale: factor on its losses.
            train_only: not run, and its parameters not needed, at inference.
        """
        super().__init__()
        self.name, self.source, self.decoder = name, source, decoder
        self.assigners, self.box_losses = list(assigners), box_losses
        self.scale, self.train_only = scale, train_only

    def forward(self, memory: Memory) -> LayerOutput:
        """The last layer's prediction."""
        return self.decoder(self.source(memory), memory)[-1]

    def predict_for_training(self, memory: Memory) -> tuple[list[Prediction], dict[str, Tensor]]:
        """Everything to be supervised, and the source's own losses."""
        queries: QuerySet = self.source(memory)
        outputs = self.decoder(queries, memory)
        predictions = list(queries.predictions)
        matching = max((group.stop for group in queries.groups), default=0)  # groups stand in front
        for index, output in enumerate(outputs):
            layer = "final" if index == len(outputs) - 1 else f"layer{index + 1}"
            boxes = self.box_losses is None or index < self.box_losses
            for group in queries.groups:
                part = output.slice(group.start, group.stop)
                name = self._named(f"{group.name}_{layer}")
                predictions.append(Prediction(name, part, group.assignment, self.scale * group.scale, box_losses=boxes))
            part = output.slice(matching, None) if matching else output
            predictions.append(
                Prediction(self._named(layer), part, self.assigners[index], self.scale, box_losses=boxes)
            )
        return predictions, queries.losses

    def _named(self, layer: str) -> str:
        return f"{self.name}_{layer}" if self.name else layer
