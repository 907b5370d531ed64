# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From predictions to assignments, in two halves.

``Assigner.measure`` runs on the device, once for all layers that share the assigner; what it measures goes to the host
in *one* copy per step; ``Assigner.solve`` runs there, image by image. A new assigner supplies these two methods.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .. import ops
from ..structures import Assignment, LayerOutput, Prediction, Targets

#: Cost of a pair that must not be: the solver may take it for want of another, and it is dropped afterwards.
FORBIDDEN = 2 * ops.NON_FINITE_COST


class Assigner(Protocol):
    """Finds the objects of the queries of L stacked outputs."""

    def measure(self, output: LayerOutput, targets: Targets) -> tuple[Tensor, ...]:
        """What ``solve`` needs to know, each (L, M, ...) on the device. Tensors of ``output`` are (L, B, N, ...)."""

    def solve(self, measured: Sequence[np.ndarray], targets: Targets) -> tuple[np.ndarray, np.ndarray]:
        """Query (within its image) and object of every pair of one layer. Arrays of ``measured`` are (M, ...)."""


@dataclass(frozen=True)
class MatchCost:
    """Focal class cost, L1 and GIoU; the weights 2/5/2 are those of every published system (ops.match_cost)."""

    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0

    def __call__(self, output: LayerOutput, targets: Targets) -> Tensor:
        """(L, M, N) costs; ``FORBIDDEN`` for slots that only fill up the batch."""
        cost = ops.match_cost(
            output.logits,
            output.boxes,
            targets.labels,
            targets.boxes,
            targets.image,
            class_weight=self.class_weight,
            l1_weight=self.l1_weight,
            giou_weight=self.giou_weight,
        )
        if output.valid is None:
            return cost
        return cost.masked_fill(~output.valid[:, targets.image], FORBIDDEN)


class HungarianAssigner:
    """One query per object, of least total cost (DETR). ``copies`` > 1 gives each object so many (H-DETR, hybrid)."""

    def __init__(self, cost: MatchCost, copies: int = 1):
        self.cost, self.copies = cost, copies

    def measure(self, output: LayerOutput, targets: Targets) -> tuple[Tensor, ...]:
        return (self.cost(output, targets),)

    def solve(self, measured: Sequence[np.ndarray], targets: Targets) -> tuple[np.ndarray, np.ndarray]:
        (cost,) = measured
        return solve_images(cost, np.full(len(cost), self.copies), targets)


def solve_images(cost: np.ndarray, copies: np.ndarray, targets: Targets) -> tuple[np.ndarray, np.ndarray]:
    """Bipartite matching of every image, object j of (M, N) ``cost`` standing in it ``copies[j]`` times."""
    queries, objects = [], []
    for start, stop in zip(targets.offsets, targets.offsets[1:]):
        rows = np.repeat(np.arange(start, stop), copies[start:stop])
        columns = _useful_columns(cost[start:stop], len(rows))
        row, column = linear_sum_assignment(cost[rows[:, None], columns])
        query = columns[column]
        allowed = cost[rows[row], query] < FORBIDDEN
        queries.append(query[allowed])
        objects.append(rows[row][allowed])
    return np.concatenate(queries), np.concatenate(objects)


def _useful_columns(cost: np.ndarray, num_rows: int) -> np.ndarray:
    """Columns of (M, N) ``cost`` among which ``num_rows`` rows surely find a cheapest matching, ascending.

    A row that takes none of its ``num_rows`` cheapest columns could move to one of them that the others leave free. An
    encoder's 20,000 tokens become some hundreds.
    """
    num_columns = cost.shape[1]
    if num_columns <= 8 * num_rows or num_rows == 0:
        return np.arange(num_columns)
    return np.unique(np.argpartition(cost, num_rows - 1, axis=1)[:, :num_rows])


@torch.no_grad()
def assign(predictions: Sequence[Prediction], targets: Targets) -> list[Assignment]:
    """The assignment of every prediction; those that come with one keep it."""
    stacks = _stack_alike(predictions)
    measured = [
        assigner.measure(output, targets.binary() if binary else targets) for _, assigner, output, binary in stacks
    ]
    on_host = iter(_to_host([tensor for tensors in measured for tensor in tensors]))
    solved: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for (members, assigner, _, _), tensors in zip(stacks, measured):
        arrays = [next(on_host) for _ in tensors]
        for layer, member in enumerate(members):
            solved[member] = assigner.solve([array[layer] for array in arrays], targets)
    made = iter(_to_assignments([solved[i] for i in sorted(solved)], targets))
    return [p.assign if isinstance(p.assign, Assignment) else next(made) for p in predictions]


def _stack_alike(predictions: Sequence[Prediction]) -> list[tuple[list[int], Assigner, LayerOutput, bool]]:
    """Predictions with the same assigner and shape as one stacked output, so that they are measured in one call."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    for index, p in enumerate(predictions):
        if not isinstance(p.assign, Assignment):
            alike[id(p.assign), p.output.logits.shape, p.binary, p.output.valid is None].append(index)
    stacks = []
    for members in alike.values():
        first = predictions[members[0]]
        outputs = [predictions[i].output for i in members]
        stacked = LayerOutput(
            logits=torch.stack([o.logits.detach() for o in outputs]),
            boxes=torch.stack([o.boxes.detach() for o in outputs]),
            valid=None if first.output.valid is None else torch.stack([o.valid for o in outputs]),
        )
        stacks.append((members, first.assign, stacked, first.binary))
    return stacks


def _to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """All tensors as fp32 arrays, in a single copy."""
    if not tensors:
        return []
    flat = torch.cat([t.to(torch.float32).flatten() for t in tensors]).cpu().numpy()
    ends = np.cumsum([t.numel() for t in tensors])[:-1]
    return [part.reshape(t.shape) for part, t in zip(np.split(flat, ends), tensors)]


def _to_assignments(pairs: Sequence[tuple[np.ndarray, np.ndarray]], targets: Targets) -> list[Assignment]:
    """Index arrays back to the device, in a single copy."""
    if not pairs:
        return []
    sizes = [len(query) for query, _ in pairs]
    flat = np.stack([np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])])
    query, target = torch.from_numpy(flat.astype(np.int64)).to(targets.boxes.device)
    image = targets.image[target]
    return [Assignment(*parts) for parts in zip(image.split(sizes), query.split(sizes), target.split(sizes))]
