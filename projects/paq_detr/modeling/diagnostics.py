# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..structures import Assignment, LayerOutput, Prediction, Targets
from .route import Route

#: Diagnostics are written every so many iterations, because reading a number off a device waits for it.
PERIOD = 20


def iteration() -> int | None:
    """The training loop's, from 0 and kept by checkpoints; None outside of one."""
    try:
        return get_event_storage().iter
    except AssertionError:
        return None


def log_scalars(compute: Callable[[], Mapping[str, float | Tensor]]) -> None:
    """Put what ``compute`` returns into Detectron2's event storage; ``compute`` runs only when it is wanted."""
    now = iteration()
    if now is not None and now % PERIOD == 0:
        get_event_storage().put_scalars(
            **{name: float(value) for name, value in compute().items()}, smoothing_hint=False
        )


class MatchedSlots(nn.Module):
    """Which query slots have had an object since training began or was resumed."""

    def __init__(self):
        super().__init__()
        self.register_buffer("matched", torch.zeros(0, dtype=torch.bool), persistent=False)

    @torch.no_grad()
    def update(self, output: LayerOutput, pairs: Assignment) -> None:
        num_queries = output.logits.shape[1]
        if len(self.matched) < num_queries:  # two-stage models have fewer slots on tiny images
            self.matched = torch.cat([self.matched, self.matched.new_zeros(num_queries - len(self.matched))])
        self.matched[pairs.query] = True

    def share(self) -> Tensor:
        return self.matched.float().mean()


def positives_per_object(assignments: Mapping[str, Assignment], targets: Targets) -> dict[str, float]:
    """Mean number of queries that an object got, for every prediction."""
    objects = max(len(targets.boxes), 1)
    return {f"positives_per_object/{name}": len(pairs) / objects for name, pairs in assignments.items()}


def alive_share(predictions: Sequence[Prediction]) -> dict[str, Tensor]:
    """Share of the queries that take part, for every prediction that may leave some out."""
    return {f"alive_share/{p.name}": p.output.valid.float().mean() for p in predictions if p.output.valid is not None}


def slot_agreement(assignments: Mapping[str, Assignment], routes: Sequence[Route]) -> dict[str, Tensor]:
    """Share of the queries matched in a layer of the main route, ``routes[0]``, that have an object in the same layer
    of another route, for every layer of the routes whose slots can be compared (``Route.same_slots``)."""
    main, *others = routes
    agreement = {}
    for route in (route for route in others if route.same_slots):
        layers = [*(f"layer{number}" for number in range(1, len(route.objectives))), "final"]
        for layer in layers:
            matched, positives = assignments.get(main.named(layer)), assignments.get(route.named(layer))
            if matched and positives:  # there, and of at least one pair
                slots = 1 + torch.maximum(matched.query.max(), positives.query.max())  # an image has so many at least
                ours, theirs = (pairs.image * slots + pairs.query for pairs in (matched, positives))
                agreement[f"slot_agreement/{route.named(layer)}"] = torch.isin(ours, theirs).float().mean()
    return agreement
