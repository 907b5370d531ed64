# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From predictions to assignments, in two halves.

``Assigner.measure`` runs on the device, once for all layers that share the assigner; what it measures goes to the host
in *one* copy per step; ``Assigner.solve`` runs there, image by image. A new assigner supplies these two methods.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .. import ops
from ..checks import Choice
from ..layers import corner_distance
from ..registry import ASSIGNERS, COSTS
from ..structures import Assignment, LayerOutput, Prediction, Targets

#: Cost of a pair that must not be: the solver may take it for want of another, and it is dropped afterwards.
FORBIDDEN = 2 * ops.NON_FINITE_COST

#: With so many objects in an image, layers are solved side by side.
CROWDED = 40


class Pairs(NamedTuple):
    """What an assigner found for one output, on the host; P pairs."""

    query: np.ndarray  # (P,) within its image
    target: np.ndarray  # (P,) index into the objects of the batch
    weight: np.ndarray | None = None  # (P,) factor on the pair's losses
    rank: np.ndarray | None = None  # (P,) place among the pairs of its object, best first


class Assigner(Protocol):
    """Finds the objects of the queries of L stacked outputs."""

    def measure(self, output: LayerOutput, targets: Targets) -> tuple[Tensor, ...]:
        """What ``solve`` needs to know, each (L, M, ...) on the device. Tensors of ``output`` are (L, B, N, ...)."""

    def solve(self, measured: Sequence[np.ndarray], targets: Targets, previous: Pairs | None = None) -> Pairs:
        """The pairs of one layer. Arrays of ``measured`` are (M, ...); ``previous`` are the pairs of the layer before,
        where there is one."""


@dataclass(frozen=True)
class MatchCost:
    """Focal class cost, L1 and GIoU; the weights 2/5/2 are those of every published system (ops.match_cost).

    ``corners``: the L1 distance is that of the corners (Sparse R-CNN, AdaMixer), in place of centres and sizes.
    """

    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    corners: bool = False

    def __call__(self, output: LayerOutput, targets: Targets) -> Tensor:
        """(L, M, N) costs; ``FORBIDDEN`` for slots that only fill up the batch."""
        cost = ops.match_cost(
            output.logits,
            output.boxes,
            targets.labels,
            targets.boxes,
            targets.image,
            class_weight=self.class_weight,
            l1_weight=0.0 if self.corners else self.l1_weight,
            giou_weight=self.giou_weight,
        )
        if self.corners:
            distance = corner_distance(output.boxes.float()[:, targets.image], targets.boxes[:, None])
            cost = cost + self.l1_weight * distance.nan_to_num(0.0, posinf=0.0)  # the others price what is not finite
        if output.valid is None:
            return cost
        return cost.masked_fill(~output.valid[:, targets.image], FORBIDDEN)


class HungarianAssigner:
    """One query per object, of least total cost (DETR). ``copies`` > 1 gives each object so many (H-DETR, hybrid)."""

    def __init__(self, cost: MatchCost, copies: int = 1):
        self.cost, self.copies = cost, copies

    def measure(self, output: LayerOutput, targets: Targets) -> tuple[Tensor, ...]:
        return (self.cost(output, targets),)

    def solve(self, measured: Sequence[np.ndarray], targets: Targets, previous: Pairs | None = None) -> Pairs:
        (cost,) = measured
        return solve_images(cost, np.full(len(cost), self.copies), targets)


def solve_images(cost: np.ndarray, copies: np.ndarray, targets: Targets) -> Pairs:
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
    return Pairs(np.concatenate(queries), np.concatenate(objects))


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
    """The assignment of every prediction; those that come with known pairs keep them."""
    stacks = _stack_alike(predictions, targets)
    measured = [stack.assigner.measure(stack.output, stack.targets) for stack in stacks]
    on_host = iter(_to_host([tensor for tensors in measured for tensor in tensors]))
    to_solve: dict[int, tuple[_Stack, list[np.ndarray]]] = {}
    for stack, tensors in zip(stacks, measured):
        arrays = [next(on_host) for _ in tensors]
        for layer, member in enumerate(stack.members):
            to_solve[member] = stack, [array[layer] for array in arrays]
    solved: dict[str, Future[Pairs]] = {}
    images = []
    with _solvers(stacks) as solvers:
        for member in sorted(to_solve):  # in the order of the predictions: a layer may wait for the one before
            stack, arrays = to_solve[member]
            p = predictions[member]
            solved[p.name] = solvers.submit(_solve, stack, arrays, solved.get(p.after))
            images.append(stack.targets.image)
    made = iter(_to_assignments([future.result() for future in solved.values()], images))
    return [next(made) if p.pairs is None else p.pairs for p in predictions]


@dataclass
class _Stack:
    """Predictions that are measured in one call."""

    members: list[int]
    assigner: Assigner
    output: LayerOutput
    targets: Targets


class _Inline(Executor):
    """Does at once what it is given."""

    def submit(self, function, /, *arguments) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments))
        return future


def _solvers(stacks: Sequence[_Stack]) -> Executor:
    """Threads where images are crowded, as scipy's solver lets go of Python's lock; elsewhere they cost more than they
    save."""
    fullest = max((count for stack in stacks for count in stack.targets.counts), default=0)
    return ThreadPoolExecutor(os.cpu_count()) if fullest >= CROWDED else _Inline()


def _solve(stack: _Stack, arrays: Sequence[np.ndarray], before: Future[Pairs] | None) -> Pairs:
    return stack.assigner.solve(arrays, stack.targets, None if before is None else before.result())


def _stack_alike(predictions: Sequence[Prediction], targets: Targets) -> list[_Stack]:
    """Predictions with the same assigner, targets and shape, each group as one stacked output."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    for index, p in enumerate(predictions):
        if p.pairs is None:
            output = p.match or p.output
            view = p.objective.view, id(p.targets)
            alike[id(p.objective.assigner), output.logits.shape, view, output.valid is None].append(index)
    stacks = []
    for members in alike.values():
        first = predictions[members[0]]
        outputs = [predictions[i].match or predictions[i].output for i in members]
        stacked = LayerOutput(
            logits=torch.stack([o.logits.detach() for o in outputs]),
            boxes=torch.stack([o.boxes.detach() for o in outputs]),
            valid=None if outputs[0].valid is None else torch.stack([o.valid for o in outputs]),
        )
        stacks.append(
            _Stack(members, first.objective.assigner, stacked, first.objective.seen(first.targets or targets))
        )
    return stacks


def _to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """All tensors as fp32 arrays, in a single copy."""
    if not tensors:
        return []
    flat = torch.cat([t.to(torch.float32).flatten() for t in tensors]).cpu().numpy()
    ends = np.cumsum([t.numel() for t in tensors])[:-1]
    return [part.reshape(t.shape) for part, t in zip(np.split(flat, ends), tensors)]


def _to_assignments(found: Sequence[Pairs], images: Sequence[Tensor]) -> list[Assignment]:
    """Arrays back to the device: one copy of all indices, one of all weights where there are any."""
    if not found:
        return []
    sizes = [len(pairs.query) for pairs in found]
    ranks = [np.zeros(len(p.query)) if p.rank is None else p.rank for p in found]
    columns = [[p.query for p in found], [p.target for p in found], ranks]
    flat = np.stack([np.concatenate(column) for column in columns]).astype(np.int64)
    parts = [part.split(sizes) for part in torch.from_numpy(flat).to(images[0].device)]
    weights: Sequence[Tensor | None] = [None] * len(found)
    if any(p.weight is not None for p in found):
        ones = [np.ones(len(p.query)) if p.weight is None else p.weight for p in found]
        weights = torch.from_numpy(np.concatenate(ones).astype(np.float32)).to(images[0].device).split(sizes)
    return [
        Assignment(
            image=image[target],
            query=query,
            target=target,
            weight=None if p.weight is None else weight,
            rank=None if p.rank is None else rank,
        )
        for p, image, query, target, rank, weight in zip(found, images, *parts, weights)
    ]


_L1_FORMAT = Choice("MODEL.DETR.LOSS.L1_FORMAT", ("cxcywh", "corners"))


def cost_terms(cfg) -> dict:
    """The arguments of ``MatchCost``, and of what derives from it."""
    D = cfg.MODEL.DETR
    M = D.MATCHER
    return {
        "class_weight": M.CLASS_COST,
        "l1_weight": M.L1_COST,
        "giou_weight": M.GIOU_COST,
        "corners": _L1_FORMAT(D.LOSS.L1_FORMAT) == "corners",
    }


@COSTS.register("focal_l1_giou")
def build_match_cost(cfg, kit) -> MatchCost:
    return MatchCost(**cost_terms(cfg))


@ASSIGNERS.register("hungarian")
def build_hungarian(cfg, kit, cost: MatchCost) -> HungarianAssigner:
    return HungarianAssigner(cost)
