# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""How outputs are supervised: an ``Objective`` for each kind, and the losses of a step's predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from detectron2.utils import comm
from torch import Tensor

from ..checks import Choice
from ..layers import intersection_over_own_area
from ..structures import Assignment, Prediction, Targets
from .assignment import Assigner, assign, cost_terms
from .losses import ClassificationLoss, Matches, corner_l1_loss, giou_loss, l1_loss

#: A loss of the assigned pairs, (P,) each.
PairLoss = Callable[[Matches], Tensor]


def box_losses(
    l1_weight: float = 5.0, giou_weight: float = 2.0, corners: bool = False
) -> dict[str, tuple[float, PairLoss]]:
    """DETR's losses of the boxes, for ``Objective.pair_losses``; ``corners``: L1 as ``MatchCost`` has it."""
    return {"l1": (l1_weight, corner_l1_loss if corners else l1_loss), "giou": (giou_weight, giou_loss)}


@dataclass(frozen=True, eq=False)
class Objective:
    """How one kind of output is supervised: who finds its objects, as what it sees them, and which losses follow.

    Everything is summed over queries and pairs, weighted, and divided by what ``normalizer`` counts in this process's
    images (mean over ranks, at least 1). None counts objects, not pairs: DETR's, kept by PaQ-DETR's code.
    """

    assigner: Assigner
    classification: ClassificationLoss
    class_weight: float = 2.0
    pair_losses: Mapping[str, tuple[float, PairLoss]] = field(default_factory=box_losses)  # name: weight, loss
    mask_losses: Mapping[str, tuple[float, PairLoss]] = field(default_factory=dict)  # more of them, not for groups
    view: Callable[[Targets], Targets] | None = None  # as what the objects are seen (Targets.binary); None: as they are
    scale: float = 1.0  # factor on all its losses
    normalizer: Callable[[Matches], Tensor] | None = None
    # An unassigned query whose box lies in one ignore region by this share of its own area has no classification loss
    # (DH-DETR's code).
    ignore_ioa: float = 0.7

    def seen(self, targets: Targets) -> Targets:
        return targets if self.view is None else self.view(targets)

    def of_group(self) -> Objective:
        """For queries with known partners (denoising): the scale of their group counts their pairs, and they learn no
        masks."""
        return replace(self, classification=self.classification.of_group(), normalizer=None, mask_losses={})

    def losses(self, matches: Matches) -> dict[str, Tensor]:
        """Weighted sums by name, not yet divided; "class" and one for every of ``pair_losses`` and ``mask_losses``."""
        pairs = matches.pairs
        elements = self.classification(matches)
        if pairs.weight is not None:
            elements = elements * torch.ones_like(elements).index_put(matches.entry, pairs.weight)
        counted = self._counted_queries(matches)
        if counted is not None:
            elements = elements * counted[..., None]
        sums = {"class": self.class_weight * elements.sum()}
        factors = self.classification.pair_factors(matches)
        for name, (weight, loss) in {**self.pair_losses, **self.mask_losses}.items():
            each = loss(matches)
            for factor in (pairs.weight, factors.get(name)):
                each = each if factor is None else factor * each
            sums[name] = weight * each.sum()
        return sums

    def _counted_queries(self, matches: Matches) -> Tensor | None:
        """(B, N) False for queries without a classification loss; None where all have one."""
        output, pairs, targets = matches.output, matches.pairs, matches.targets
        counted = output.valid
        if len(targets.ignore_boxes):
            batch, num_queries = output.logits.shape[:2]
            ignored = output.boxes.new_zeros(batch, num_queries)
            ioa = intersection_over_own_area(output.boxes.detach()[targets.ignore_image], targets.ignore_boxes)
            ignored.scatter_reduce_(0, targets.ignore_image[:, None].expand_as(ioa), ioa, "amax")
            keep = ignored < self.ignore_ioa
            keep[pairs.image, pairs.query] = True
            counted = keep if counted is None else keep & counted
        return counted


#: From counts in this process's images, by name, to what losses are divided by.
Divide = Callable[[dict[str, Tensor]], dict[str, Tensor]]

OBJECTS = ""  # the name of the count of objects; others have their prediction's


def divisors(counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each count's mean over all processes, at least 1."""
    return dict(zip(counts, mean_over_ranks(torch.stack([c.float() for c in counts.values()])).clamp(min=1).unbind()))


def count_objects(targets: Targets) -> Tensor:
    return torch.full((), float(len(targets.boxes)), device=targets.boxes.device)


def supervise(
    predictions: Sequence[Prediction], targets: Targets, divide: Divide = divisors
) -> tuple[dict[str, Tensor], dict[str, Assignment]]:
    """
    Args:
        divide: what the counts come to; those of a part of a batch (whole_batch.py) to the whole's.

    Returns:
        Weighted losses ``loss_class/NAME``, ``loss_l1/NAME``, ``loss_giou/NAME`` and so on of every prediction, as far
        as its objective has them, and the assignments by name.

    Raises:
        ValueError: two predictions of one name.
    """
    names = [p.name for p in predictions]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several predictions are called {', '.join(twice)}; their losses would overwrite each other")
    assignments = assign(predictions, targets)
    matches = [Matches(p.output, pairs, p.objective.seen(p.targets or targets))
               for p, pairs in zip(predictions, assignments)]  # fmt: skip
    counts = {OBJECTS: count_objects(targets)}
    for p, matched in zip(predictions, matches):
        if p.objective.normalizer is not None:
            counts[p.name] = p.objective.normalizer(matched)
    by = divide(counts)
    losses: dict[str, Tensor] = {}
    for p, matched in zip(predictions, matches):
        divisor = by[OBJECTS if p.objective.normalizer is None else p.name]
        for name, value in p.objective.losses(matched).items():
            losses[f"loss_{name}/{p.name}"] = value * (p.scale * p.objective.scale / divisor)
    return losses, dict(zip(names, assignments))


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if comm.get_world_size() > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
        value = value / comm.get_world_size()
    return value


def matched_pairs(matches: Matches) -> Tensor:
    """The number of pairs."""
    return matches.output.boxes.new_full((), float(len(matches.pairs)))


#: What ``LOSS.NORMALIZER`` may be, as ``Objective.normalizer``.
NORMALIZERS = {"objects": None, "pairs": matched_pairs}
_NORMALIZER = Choice("MODEL.DETR.LOSS.NORMALIZER", NORMALIZERS)


def build_objective(
    cfg,
    *,
    assigner: Assigner,
    classification: ClassificationLoss,
    boxes: bool = True,
    view: Callable[[Targets], Targets] | None = None,
    scale: float = 1.0,
) -> Objective:
    """An objective with the weights of ``cfg``; ``boxes`` False leaves the box losses out."""
    L = cfg.MODEL.DETR.LOSS
    return Objective(
        assigner=assigner,
        classification=classification,
        class_weight=L.CLASS_WEIGHT,
        pair_losses=box_losses(L.L1_WEIGHT, L.GIOU_WEIGHT, cost_terms(cfg)["corners"]) if boxes else {},
        view=view,
        scale=scale,
        normalizer=NORMALIZERS[_NORMALIZER(L.NORMALIZER)],
        ignore_ioa=L.IGNORE_IOA,
    )
