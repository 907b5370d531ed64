# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Denoising queries: noised objects in front of the others, which training asks to be undone.

| paper | here | key |
|---|---|---|
| DN-DETR (Li et al. 2022, 4.1 to 4.4) | ``Denoising`` | QUERIES.AUGMENT dn, DENOISING.DN.*, QUERIES.INDICATOR |
| DINO (Zhang et al. 2022, 3.3) | ``ContrastiveDenoising`` | QUERIES.AUGMENT cdn, DENOISING.CDN.* |
| boxes without labels (ASAG's option) | ``BoxDenoising`` | QUERIES.AUGMENT box_dn, DENOISING.BOX_DN.* |

Each goes with any source whose references are boxes. Slots of a group: one per object of the fullest image of the batch
(contrastive: as many positives, then as many negatives); what an image has no object for is filling.

Shape legend beside structures.py's: G groups, m objects of the fullest image, s slots of a group (m or 2 m), P = G s
slots in all, R = rows, one per object and copy of it, copies one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from detectron2.config import CfgNode as CN
from torch import Tensor, nn

from ..checks import Choice, check_range
from ..layers import boxes_cxcywh_to_xyxy, boxes_xyxy_to_cxcywh, inverse_sigmoid
from ..registry import AUGMENTERS, Kit, adds_config
from ..structures import Assignment, Memory, QueryGroup, QuerySet, Targets

#: What ``DENOISING.PADDING_SLOTS`` may be.
PADDING_SLOTS = ("background", "unsupervised", "ignored")
_PADDING_SLOTS = Choice("MODEL.DETR.DENOISING.PADDING_SLOTS", PADDING_SLOTS)


@adds_config
def add_config(cfg: CN) -> None:
    cfg.MODEL.DETR.DENOISING = D = CN()
    # Slots that an image has no object for: "background": trained to predict nothing, and seen by their group (DINO,
    # detrex); "unsupervised": without loss, but seen (DN-DETR's code); "ignored": without loss, and seen by none.
    D.PADDING_SLOTS = "background"
    D.DN = CN()
    D.DN.GROUPS = 5
    D.DN.LABEL_NOISE = 0.2  # share of labels that are drawn anew
    D.DN.BOX_NOISE = 0.4  # largest shift of a centre in half sides, and change of a side in sides
    D.CDN = CN()
    D.CDN.PAIRS = 100  # budget of (positive, negative) pairs an image, which all groups share
    D.CDN.LABEL_NOISE = 0.25  # DINO's "0.5", of which the code takes half
    # In half sides, positives up to 1 time, negatives 1 to 2 times that. DINO's results were made with 1.0, says its
    # repository, not with the 0.4 of the paper; Mr. DETR uses 0.4.
    D.CDN.BOX_NOISE = 1.0
    D.BOX_DN = CN()
    D.BOX_DN.QUERIES = 200  # budget an image, which all groups share
    D.BOX_DN.BOX_NOISE = 0.4


@dataclass
class NoiseTape:
    """Every random number of one step's denoising. Drawn by torch's generator of the targets' device, which a
    checkpoint keeps, so that a resumed run goes on exactly."""

    label: Tensor  # (R,) in [0, 1): below the flip probability a label is replaced
    new_label: Tensor  # (R,) int64, by what
    sign: Tensor  # (R, 4) -1 or 1
    part: Tensor  # (R, 4) in [0, 1), share of the largest noise

    @classmethod
    def draw(cls, rows: int, num_classes: int, device: torch.device) -> NoiseTape:
        return cls(
            label=torch.rand(rows, device=device),
            new_label=torch.randint(num_classes, (rows,), device=device),
            sign=torch.randint(2, (rows, 4), device=device) * 2.0 - 1,
            part=torch.rand(rows, 4, device=device),
        )


@dataclass
class Slots:
    """Where the rows stand: group-major, within a group the positives and then the negatives, as their image's list."""

    groups: int
    size: int  # slots of a group
    image: Tensor  # (R,) int64
    slot: Tensor  # (R,) int64, in 0..P-1
    target: Tensor  # (R,) int64, index into the objects of the batch
    positive: Tensor  # (R,) bool

    @property
    def count(self) -> int:
        """P."""
        return self.groups * self.size

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Index of the rows in (B, P, ...)."""
        return self.image, self.slot

    @classmethod
    def lay_out(cls, targets: Targets, groups: int, kinds: int) -> Slots:
        """``kinds`` 1: positives only; 2: as many negatives behind them."""
        most = targets.fullest
        image, objects = targets.image, torch.arange(len(targets.image), device=targets.image.device)
        place = objects - torch.searchsorted(image, image)  # of each object in its image
        copy = torch.arange(groups * kinds, device=image.device)[:, None]
        return cls(
            groups=groups,
            size=kinds * most,
            image=image.repeat(groups * kinds),
            slot=(copy * most + place).flatten(),
            target=objects.repeat(groups * kinds),
            positive=(copy % kinds == 0).expand(-1, len(image)).flatten(),
        )


def group_mask(groups: int, size: int, own: Tensor) -> Tensor:
    """(P + N, P + N), True where a row must not see a column.

    Matching queries never see a denoising one, a denoising one sees its own group and all matching queries.

    Args:
        own: (N, N) the same of the matching queries among each other.
    """
    count = groups * size
    group = torch.arange(groups, device=own.device).repeat_interleave(size)
    mask = own.new_zeros(count + len(own), count + len(own))
    mask[:count, :count] = group[:, None] != group
    mask[count:, :count] = True
    mask[count:, count:] = own
    return mask


class NoisedQueries(nn.Module):
    """What all denoisings share: groups of noised objects with known pairs, a mask, filling slots."""

    needs = frozenset({"boxes"})
    kinds = 1  # 2: negatives behind the positives of each group

    def __init__(self, *, num_classes: int, box_noise: float, padding_slots: str = "background", eps: float = 1e-3):
        """
        Args:
            padding_slots: one of ``PADDING_SLOTS``, see the key of that name.
            eps: noised boxes are kept so far inside (0, 1).
        """
        super().__init__()
        self.num_classes, self.box_noise, self.padding_slots, self.eps = num_classes, box_noise, padding_slots, eps

    def forward(
        self, queries: QuerySet, targets: Targets, memory: Memory | None = None, tape: NoiseTape | None = None
    ) -> QuerySet:
        """``queries`` with P denoising ones in front, as one ``QueryGroup`` "dn".

        ``tape`` gives the noise; one drawn here is kept with ``memory``, so that all sources of a step have the same.
        """
        slots = Slots.lay_out(targets, self.num_groups(targets.fullest), self.kinds)
        device = targets.boxes.device
        tape = tape or self._tape(len(slots.slot), device, memory)
        boxes = torch.full((len(queries.content), slots.count, 4), 0.5, device=device)
        boxes[slots.rows] = self.noised_boxes(targets.boxes[slots.target], slots.positive, tape)
        boxes = inverse_sigmoid(boxes, self.eps).sigmoid()
        position = None if queries.position is None else queries.codes(boxes)[1]
        content = self.contents(queries, boxes, slots, targets.labels[slots.target], tape)
        return self.put_in_front(queries, slots, content, boxes, position)

    def _tape(self, rows: int, device: torch.device, memory: Memory | None) -> NoiseTape:
        def draw(_: Memory | None) -> NoiseTape:
            return NoiseTape.draw(rows, self.num_classes, device)

        return draw(None) if memory is None else memory.once(self, draw)

    def num_groups(self, most: int) -> int:
        """How many groups, where the fullest image has ``most`` objects."""
        raise NotImplementedError

    def contents(self, queries: QuerySet, boxes: Tensor, slots: Slots, labels: Tensor, tape: NoiseTape) -> Tensor:
        """(B, P, C) for noised boxes (B, P, 4) and clean labels (R,)."""
        raise NotImplementedError

    def noised_boxes(self, boxes: Tensor, positive: Tensor, tape: NoiseTape) -> Tensor:
        """(R, 4): centre moved by up to ``box_noise`` half sides, sides changed by up to as much of themselves."""
        reach = torch.cat([boxes[:, 2:] / 2, boxes[:, 2:]], 1)
        return (boxes + tape.sign * tape.part * self.box_noise * reach).clamp(0, 1)

    def put_in_front(
        self, queries: QuerySet, slots: Slots, content: Tensor, boxes: Tensor, position: Tensor | None
    ) -> QuerySet:
        batch, matching = queries.content.shape[:2]
        filled = torch.zeros(batch, slots.count, dtype=torch.bool, device=content.device)
        filled[slots.rows] = True
        valid, ignored = queries.valid, self.padding_slots == "ignored"
        if valid is not None or ignored:
            own = valid if valid is not None else filled.new_ones(batch, matching)
            valid = torch.cat([filled if ignored else torch.ones_like(filled), own], 1)
        supervised = filled if self.padding_slots == "unsupervised" else None
        known = slots.positive
        pairs = Assignment(slots.image[known], slots.slot[known], slots.target[known])
        before = [replace(g, start=g.start + slots.count, stop=g.stop + slots.count) for g in queries.groups]
        own_mask = queries.attention_mask
        if own_mask is None:
            own_mask = content.new_zeros(matching, matching, dtype=torch.bool)
        return replace(
            queries,
            content=torch.cat([content.to(queries.content.dtype), queries.content], 1),
            reference=torch.cat([boxes.to(queries.reference.dtype), queries.reference], 1),
            position=None if position is None else torch.cat([position, queries.position], 1),
            valid=valid,
            attention_mask=group_mask(slots.groups, slots.size, own_mask),
            groups=[QueryGroup("dn", 0, slots.count, pairs, 1 / slots.groups, supervised=supervised), *before],
        )


class Denoising(NoisedQueries):
    """DN-DETR: a fixed number of groups; each holds every object once, with a noised box and sometimes another label.

    A query's content is the learned vector of its label; with ``indicator`` its last channel is 1.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        embed_dim: int,
        groups: int = 5,
        label_noise: float = 0.2,
        box_noise: float = 0.4,
        indicator: bool = False,
        **parts,
    ):
        """
        Args:
            label_noise: probability that a label is drawn anew from all classes, its own included.
            parts: as in ``NoisedQueries``.
        """
        super().__init__(num_classes=num_classes, box_noise=box_noise, **parts)
        self.labels = nn.Embedding(num_classes, embed_dim - indicator)
        self.labels.class_axes = {"weight": 0}
        self.groups, self.label_noise, self.indicator = groups, label_noise, indicator

    def num_groups(self, most: int) -> int:
        return self.groups

    def contents(self, queries: QuerySet, boxes: Tensor, slots: Slots, labels: Tensor, tape: NoiseTape) -> Tensor:
        labels = torch.where(tape.label < self.label_noise, tape.new_label, labels)
        vectors = self.labels(labels)
        if self.indicator:
            vectors = torch.cat([vectors, torch.ones_like(vectors[:, :1])], 1)
        content = vectors.new_zeros(*boxes.shape[:2], vectors.shape[1])
        content[slots.rows] = vectors
        return content + 0 * self.labels.weight.sum()  # keeps the table in the graph of a step without objects


class ContrastiveDenoising(Denoising):
    """DINO: beside each noised object a more strongly noised one, which has to become background.

    As many groups as fit ``pairs`` pairs, at least one: with more objects than that the queries exceed the budget, as
    published. Corners move, independently: negatives (1 to 2 times the noise) may turn inside out, and are clipped.
    """

    kinds = 2

    def __init__(self, *, pairs: int = 100, label_noise: float = 0.25, box_noise: float = 1.0, **parts):
        super().__init__(label_noise=label_noise, box_noise=box_noise, **parts)
        self.pairs = pairs

    def num_groups(self, most: int) -> int:
        return max(1, self.pairs // most) if most else 1

    def noised_boxes(self, boxes: Tensor, positive: Tensor, tape: NoiseTape) -> Tensor:
        """(R, 4); corners are moved by up to (negatives: by one to two times) ``box_noise`` half sides."""
        reach = (boxes[:, 2:] / 2).repeat(1, 2)
        strength = tape.part + ~positive[:, None]
        corners = boxes_cxcywh_to_xyxy(boxes) + tape.sign * strength * self.box_noise * reach
        return boxes_xyxy_to_cxcywh(corners.clamp(0, 1))


class BoxDenoising(NoisedQueries):
    """Noised boxes whose content the source makes, as for its own; no labels (ASAG's option).

    ASAG repeats each image's objects as often as fits its budget; here all images have the same number of groups, so
    that one mask serves the batch.
    """

    needs = frozenset({"boxes", "contents from boxes"})

    def __init__(self, *, queries: int = 200, box_noise: float = 0.4, **parts):
        super().__init__(num_classes=1, box_noise=box_noise, **parts)
        self.queries = queries

    def num_groups(self, most: int) -> int:
        return max(1, self.queries // most) if most else 1

    def contents(self, queries: QuerySet, boxes: Tensor, slots: Slots, labels: Tensor, tape: NoiseTape) -> Tensor:
        return queries.codes(boxes)[0]


_NOISE = {"LABEL_NOISE": "[0, 1]", "BOX_NOISE": "[0, inf)"}


def _numbers(cfg: CN, name: str, ranges: dict[str, str]) -> dict:
    """The arguments that stand below DENOISING.``name``, checked, and those of all denoisings."""
    D = cfg.MODEL.DETR
    numbers = D.DENOISING[name]
    key = "MODEL.DETR.DENOISING"
    return {
        **{k.lower(): check_range(f"{key}.{name}.{k}", numbers[k], interval) for k, interval in ranges.items()},
        "padding_slots": _PADDING_SLOTS(D.DENOISING.PADDING_SLOTS),
        "eps": D.INVERSE_SIGMOID_EPS,
    }


def _labels(cfg: CN, kit: Kit) -> dict:
    D = cfg.MODEL.DETR
    return {"num_classes": kit.num_classes, "embed_dim": D.HIDDEN_DIM, "indicator": D.QUERIES.INDICATOR}


@AUGMENTERS.register("dn")
def build_denoising(cfg: CN, kit: Kit) -> Denoising:
    return Denoising(**_labels(cfg, kit), **_numbers(cfg, "DN", {"GROUPS": "[1, inf)", **_NOISE}))


@AUGMENTERS.register("cdn")
def build_contrastive_denoising(cfg: CN, kit: Kit) -> ContrastiveDenoising:
    return ContrastiveDenoising(**_labels(cfg, kit), **_numbers(cfg, "CDN", {"PAIRS": "[1, inf)", **_NOISE}))


@AUGMENTERS.register("box_dn")
def build_box_denoising(cfg: CN, kit: Kit) -> BoxDenoising:
    return BoxDenoising(**_numbers(cfg, "BOX_DN", {"QUERIES": "[1, inf)", "BOX_NOISE": "[0, inf)"}))
