# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..structures import LayerOutput, Memory, Prediction, QuerySet
from .masks import StateMasks
from .objective import Objective
from .read_out import ReadOut


class Borrowed(nn.Module):
    """A module that another part owns: used here, but neither saved nor moved nor trained twice. Its attributes are the
    owner's."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._hidden = (module,)  # in a tuple, torch does not register it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._hidden[0](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or name == "_hidden":  # while being copied or unpickled there is no module yet
                raise
        return getattr(self._hidden[0], name)


def drop_train_only(module: nn.Module) -> None:
    """Delete every part below ``module`` that is marked ``train_only``; an attribute becomes None."""
    for name, child in reversed(list(module.named_children())):  # from the end, as lists close their gaps
        if not getattr(child, "train_only", False):
            drop_train_only(child)
        elif isinstance(module, nn.ModuleDict):
            del module[name]
        elif isinstance(module, nn.ModuleList):
            del module[int(name)]
        else:
            setattr(module, name, None)


class Route(nn.Module):
    """One whole decoder pass: whose queries it reads, its decoder, how each layer is supervised, what is read out."""

    #: Whether its slots have the main route's contents, so that the diagnostics may compare who has an object.
    same_slots = False

    def __init__(
        self,
        *,
        name: str,
        decoder: nn.Module,
        objectives: Sequence[Objective],
        source: str = "main",
        read_out: ReadOut | None = None,
        scale: float = 1.0,
        train_only: bool = False,
    ):
        """
        Args:
            name: prefix of its loss names, but for "main".
            source: name of the query source that it reads; several routes may read one.
            decoder: ``Borrowed`` where another route owns it.
            objectives: one for each decoder layer.
            read_out: makes detections of its outputs; None for a training-only route.
            scale: factor on its losses, and on those of a source that it is the first to read.
            train_only: not run, and its parameters not needed, at inference.
        """
        super().__init__()
        if len(objectives) != len(decoder.layers):
            raise ValueError(f"route {name} has {len(objectives)} objectives for {len(decoder.layers)} decoder layers")
        if (read_out is None) != train_only:
            raise ValueError(f"route {name} must have a read-out or be train_only, and not both")
        self.name, self.source, self.decoder = name, source, decoder
        self.objectives, self.read_out = list(objectives), read_out
        self.scale, self.train_only = scale, train_only
        self.mask_head: nn.Module | None = None  # ``Borrowed`` where another route owns it

    def forward(self, queries: QuerySet, memory: Memory) -> list[LayerOutput]:
        """What each layer that runs predicts; masks are not computed yet."""
        outputs = self.decoder(queries, memory)
        if self.mask_head is None:
            return outputs
        return [replace(o, masks=StateMasks(self.mask_head, o.content, o.boxes, memory)) for o in outputs]

    def predictions(self, queries: QuerySet, memory: Memory) -> list[Prediction]:
        """Every layer's output, to be supervised; groups with known partners apart."""
        predictions, before = [], None
        outputs = self(queries, memory)
        for index, (output, objective) in enumerate(zip(outputs, self.objectives)):
            layer = "final" if index == len(outputs) - 1 else f"layer{index + 1}"
            for group in queries.groups:
                part = output.slice(group.start, group.stop)
                predictions.append(
                    Prediction(
                        self.named(f"{group.name}_{layer}"),
                        part if group.supervised is None else part.restricted(group.supervised),
                        group.objective or objective.of_group(),
                        pairs=group.pairs,
                        scale=self.scale * group.scale,
                    )
                )
            part = output.slice(queries.first_matching, None) if queries.groups else output
            predictions.append(Prediction(self.named(layer), part, objective, after=before, scale=self.scale))
            before = predictions[-1].name
        return predictions

    def named(self, part: str) -> str:
        """The name of one of its predictions or losses, apart from other routes'."""
        return part if self.name == "main" else f"{self.name}_{part}"
