# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The types that flow between the parts of a query-based detector.

Shape legend, used in the whole package:
    B images, S tokens of all levels, L levels, N queries, C channels, K classes, M objects of the batch in all,
    P pairs of a query and an object.

Boxes are cxcywh in [0, 1] of the un-padded image; any other convention is in the name (``boxes_xyxy``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from .window_masks import WindowMasks

# ----------------------------------------------------------------------------------------------------------------------
# What the image gives


class Grid:
    """The geometry of a batch's feature levels. What follows from it is computed once, and sent to the device once.

    While a program for all sizes is being exported, sizes are symbols (``torch.SymInt``), and the images' own are data.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        image_sizes: Sequence[tuple[int, int]] | Tensor,
        padded_size: tuple[int, int],
        valid_shapes: Sequence[Sequence[tuple[int, int]]] | Tensor,
        device: torch.device | str = "cpu",
    ):
        """
        Args:
            shapes: (height, width) of each level, padding included.
            strides: pixels per step of each level.
            image_sizes: un-padded (height, width) of each image, in pixels; (B, 2) int64 on ``device`` where they are
                data, which then always count as padded.
            padded_size: (height, width) of the batch, in pixels.
            valid_shapes: per image and level, the (rows, columns) that are no padding; also as (B, L, 2) int64.
        """
        self.shapes = tuple(map(plain_sides, shapes))
        self.strides = tuple(strides)
        self.padded_size = tuple(padded_size)
        self.image_sizes, self.has_padding = image_sizes, True
        if not isinstance(image_sizes, Tensor):
            self.image_sizes = tuple(map(plain_sides, image_sizes))
            self.has_padding = any(size != self.padded_size for size in self.image_sizes)
        valid = valid_shapes if isinstance(valid_shapes, Tensor) else torch.tensor(valid_shapes, dtype=torch.int64)
        valid = valid.view(-1, len(self.shapes), 2)
        ratios = (valid / torch.tensor(self.shapes, device=valid.device)).flip(-1).to(torch.float32)
        self._valid_shapes = valid  # on the host, unless images' sizes are data
        self.valid_shapes: Tensor = valid.to(device)  # (B, L, 2) (rows, columns)
        self.valid_ratios: Tensor = ratios.to(device)  # (B, L, 2) share of (width, height) that is no padding

    @property
    def device(self) -> torch.device:
        return self.valid_shapes.device

    @property
    def level_sizes(self) -> list[int]:
        """Tokens of each level."""
        return [h * w for h, w in self.shapes]

    @cached_property
    def valid_sizes(self) -> list[list[list[int]]]:
        """``valid_shapes`` as numbers of the host."""
        return self._valid_shapes.tolist()

    @cached_property
    def masks(self) -> list[Tensor]:
        """Per level (B, H, W), True where padding."""
        masks = []
        for level, (height, width) in enumerate(self.shapes):
            rows, columns = self.valid_shapes[:, level, :1, None], self.valid_shapes[:, level, 1:, None]
            y = torch.arange(height, device=self.device)[None, :, None] >= rows
            x = torch.arange(width, device=self.device)[None, None, :] >= columns
            masks.append(y | x)
        return masks

    @cached_property
    def padding(self) -> Tensor | None:
        """(B, S) True where padding; None where no image of the batch has any."""
        return torch.cat([mask.flatten(1) for mask in self.masks], 1) if self.has_padding else None

    @cached_property
    def centers(self) -> Tensor:
        """(B, S, 2) centre (x, y) of every token in [0, 1] of the un-padded image (beyond 1 in the padding)."""
        centers = []
        for level, (height, width) in enumerate(self.shapes):
            y = torch.arange(height, device=self.device, dtype=torch.float32) + 0.5
            x = torch.arange(width, device=self.device, dtype=torch.float32) + 0.5
            pixels = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flip(-1).reshape(1, height * width, 2)
            centers.append(pixels / self.valid_shapes[:, None, level].flip(-1))
        return torch.cat(centers, 1)

    @cached_property
    def image_scale(self) -> Tensor:
        """(B, 1, 4) un-padded (width, height, width, height) in pixels: boxes times this are in pixels."""
        sizes = torch.as_tensor(self.image_sizes, dtype=torch.float32)
        return sizes.flip(-1).repeat(1, 2).to(self.device)[:, None]


def plain_sides(size: Sequence[int]) -> tuple[int, ...]:
    """(height, width) as Python ints, which a trace has as tensors; a symbol stays one."""
    return tuple(side if isinstance(side, torch.SymInt) else int(side) for side in size)


@dataclass
class Memory:
    """What sources and decoders read: the flattened feature levels of a batch, encoded or straight from the neck."""

    tokens: Tensor  # (B, S, C)
    position: Tensor | None  # (B, S, C) sine code plus level vector; None from necks that make none
    grid: Grid
    maps: dict[str, Tensor] = field(default_factory=dict)  # the backbone's maps by name, (B, C_i, H_i, W_i)
    _once: dict[int, tuple[Any, Any]] = field(default_factory=dict, init=False, repr=False)

    def once(self, owner: Hashable, compute: Callable[[Memory], Any]) -> Any:
        """``compute(self)``, computed at the first call for ``owner`` (a module, a function) and kept as long as this
        memory: what several layers or routes of a step need (an encoder's proposals, a value projection)."""
        if id(owner) not in self._once:
            self._once[id(owner)] = owner, compute(self)  # the owner is kept, so that its id stays its own
        return self._once[id(owner)][1]

    def apart(self) -> Memory:
        """The same, which keeps to itself what is computed once from here on."""
        memory = replace(self)
        memory._once = dict(self._once)
        return memory

    def levels(self) -> list[Tensor]:
        """The tokens as (B, C, H, W) maps, finest first."""
        batch, _, channels = self.tokens.shape
        levels = self.tokens.split(self.grid.level_sizes, dim=1)
        return [t.transpose(1, 2).reshape(batch, channels, h, w) for t, (h, w) in zip(levels, self.grid.shapes)]

    def with_tokens(self, tokens: Tensor) -> Memory:
        return replace(self, tokens=tokens)


# ----------------------------------------------------------------------------------------------------------------------
# Queries on their way through a decoder


@dataclass
class QueryGroup:
    """A slice of the queries of one decoder pass that has known partners (denoising queries)."""

    name: str
    start: int
    stop: int
    pairs: Assignment
    scale: float = 1.0  # factor on its losses (1 / number of denoising groups)
    objective: Supervision | None = None  # how it is supervised; None: as the layer's other queries
    supervised: Tensor | None = None  # (B, stop - start) False for slots without losses, seen or not; None: all have


@dataclass
class QuerySet:
    """What a decoder pass starts from, and what its source wants supervised."""

    content: Tensor  # (B, N, C)
    reference: Tensor  # (B, N, 4) boxes, or (B, N, 2) points
    position: Tensor | None = None  # (B, N, C) fixed position code; None where the decoder makes its own, or has none
    valid: Tensor | None = None  # (B, N) False for slots that only fill up the batch; None: all are queries
    attention_mask: Tensor | None = None  # (N, N) True where row must not see column
    groups: list[QueryGroup] = field(default_factory=list)  # slices apart from the matching queries, which come last
    predictions: list[Prediction] = field(default_factory=list)  # what the query source itself must be supervised on
    losses: dict[str, Tensor] = field(default_factory=dict)  # its losses that need no ground truth, weighted
    # (B, P, 4) boxes to the content and the fixed position that the source would give queries there, for queries that
    # others add; None where boxes give neither.
    codes: Callable[[Tensor], tuple[Tensor | None, Tensor | None]] | None = None

    def first(self, count: int) -> QuerySet:
        """The first ``count`` queries alone, of a set without mask, groups and predictions."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[:, :count]

        return QuerySet(cut(self.content), cut(self.reference), cut(self.position), cut(self.valid), codes=self.codes)

    @property
    def first_matching(self) -> int:
        """The first slot of the matching queries; what stands before it belongs to groups."""
        return max((group.stop for group in self.groups), default=0)


class QueryMasks(Protocol):
    """Masks of an output's queries, computed for those alone that are asked for; modeling/masks.py has the class."""

    stride: int  # pixels per cell

    def __call__(self, image: Tensor, query: Tensor) -> Tensor:
        """(P, h, w) logits of the queries (P,) of the images (P,)."""

    def sample(self, logits: Tensor, image: Tensor, points: Tensor) -> Tensor:
        """(P, K) of these logits at points (P, K, 2), x, y in [0, 1] of the images (P,)."""

    def slice(self, start: int, stop: int | None) -> QueryMasks:
        """Those of the queries ``start:stop`` alone."""


@dataclass
class LayerOutput:
    """What one decoder layer, or the encoder, predicts for every query."""

    logits: Tensor  # (B, N, K)
    boxes: Tensor  # (B, N, 4)
    content: Tensor | None = None  # (B, N, C) state after the layer
    valid: Tensor | None = None  # (B, N) False for queries that are out of matching, loss and output; None: none are
    masks: QueryMasks | None = None  # None: a detector without masks

    def best_score(self) -> Tensor:
        """(B, N) score of each query's best class, detached."""
        return self.logits.detach().float().sigmoid().amax(-1)

    def slice(self, start: int, stop: int | None) -> LayerOutput:
        """The output of the queries ``start:stop`` alone."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[:, start:stop]

        masks = None if self.masks is None else self.masks.slice(start, stop)
        return LayerOutput(cut(self.logits), cut(self.boxes), cut(self.content), cut(self.valid), masks)

    def restricted(self, valid: Tensor) -> LayerOutput:
        """The output with only those valid that also are so in (B, N) ``valid``."""
        return replace(self, valid=valid if self.valid is None else self.valid & valid)


@dataclass
class DecoderState:
    """The queries between two decoder layers. A layer takes one and returns the next; it changes none in place."""

    content: Tensor  # (B, N, C)
    reference: Tensor  # (B, N, 4) boxes, or (B, N, 2) points, detached: where the attention looks
    position: Tensor | None  # (B, N, C), or None for a decoder without position codes
    valid: Tensor | None  # (B, N) as in QuerySet: which slots are queries at all; the same in all layers
    alive: Tensor | None  # (B, N) which queries take part from here on; a later layer may call one back
    attention_mask: Tensor | None = None  # (N, N) as in QuerySet
    spatial: Tensor | None = None  # (B, N, C) a position that only cross-attention reads (DAB-DETR)
    history: tuple[LayerOutput, ...] = ()  # what the layers before predicted
    first_matching: int = 0  # as in QuerySet

    @classmethod
    def of(cls, queries: QuerySet) -> DecoderState:
        return cls(
            content=queries.content,
            reference=queries.reference,
            position=queries.position,
            valid=queries.valid,
            alive=queries.valid,
            attention_mask=queries.attention_mask,
            first_matching=queries.first_matching,
        )

    @property
    def query(self) -> Tensor:
        """Content plus position, what attention compares."""
        return self.content if self.position is None else self.content + self.position

    def with_content(self, content: Tensor) -> DecoderState:
        return replace(self, content=content)


# ----------------------------------------------------------------------------------------------------------------------
# Supervision


class Supervision(Protocol):
    """How one kind of output is supervised; modeling/objective.py has the class ``Objective``."""

    scale: float

    def seen(self, targets: Targets) -> Targets:
        """The objects as this output sees them."""

    def losses(self, matches: Any) -> dict[str, Tensor]:
        """Weighted sums by name, not yet divided."""

    def of_group(self) -> Supervision:
        """How a group of queries with known partners is supervised beside the others."""


@dataclass
class Targets:
    """The ground truth of a batch; objects of all images stand one behind the other.

    An "image" may be a patch: whatever has a row of its own in the output that is supervised.
    """

    boxes: Tensor  # (M, 4)
    labels: Tensor  # (M,) int64
    image: Tensor  # (M,) int64 image of each object, ascending
    counts: tuple[int, ...]  # objects per image, on the host: their prefix sums are the segment offsets
    ignore_boxes: Tensor  # (R, 4) regions whose queries are neither right nor wrong
    ignore_image: Tensor  # (R,) int64
    masks: WindowMasks | None = None  # of the M objects; None: a detector without masks
    fullest_of_whole: int = 0  # objects of the fullest image of the batch that these images are a part of

    @property
    def fullest(self) -> int:
        """Objects of the fullest image of the batch."""
        return max(*self.counts, self.fullest_of_whole, 0)

    @property
    def offsets(self) -> tuple[int, ...]:
        """B + 1 prefix sums of ``counts``: objects ``offsets[b]:offsets[b + 1]`` belong to image b."""
        sums = [0]
        for count in self.counts:
            sums.append(sums[-1] + count)
        return tuple(sums)

    def binary(self) -> Targets:
        """The same objects as one class, for heads that only tell objects from background."""
        return replace(self, labels=torch.zeros_like(self.labels))


@dataclass
class Assignment:
    """Pairs of a query and an object: all that a loss knows of how they were found."""

    image: Tensor  # (P,) int64
    query: Tensor  # (P,) int64
    target: Tensor  # (P,) int64, index into the objects of ``Targets``
    weight: Tensor | None = None  # (P,) factor on the pair's losses; None: 1
    rank: Tensor | None = None  # (P,) int64 place among the pairs of its object, best first; None: not ranked

    def __len__(self) -> int:
        return len(self.query)


@dataclass
class Prediction:
    """One output that is supervised: the unit of matching and losses."""

    name: str  # suffix of the loss names: "final", "layer1", "encoder", "hybrid_layer1", ...
    output: LayerOutput
    objective: Supervision
    pairs: Assignment | None = None  # known partners; None: the objective's assigner finds them
    match: LayerOutput | None = None  # what the pairs are found on, where that is not ``output`` (priors)
    targets: Targets | None = None  # the objects, where they are not the batch's (patches)
    after: str | None = None  # name of the prediction whose pairs the assigner may see (the layer before)
    scale: float = 1.0  # factor on its losses


def stack_instances(
    instances: Sequence, image_sizes: Sequence[tuple[int, int]], device: torch.device, with_masks: bool = False
) -> Targets:
    """Detectron2 ``Instances`` of a batch (gt_boxes in pixels, gt_classes, optional gt_ignore) as ``Targets``.

    Args:
        instances: one per image; the field ``gt_ignore`` (bool) marks ignore regions, which are no objects.
        image_sizes: un-padded (height, width) of each image.
        with_masks: take the field ``gt_masks`` (``WindowMasks``, or Detectron2's ``BitMasks`` or ``PolygonMasks``).

    Raises:
        ValueError: ``gt_masks`` is missing or of no known kind.
    """
    boxes, labels, image, counts, ignored, ignored_image, masks = [], [], [], [], [], [], []
    for index, (inst, (height, width)) in enumerate(zip(instances, image_sizes)):
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        xyxy = inst.gt_boxes.tensor.to("cpu", torch.float32) / scale
        cxcywh = torch.cat([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], 1)
        ignore = inst.gt_ignore.cpu() if inst.has("gt_ignore") else torch.zeros(len(inst), dtype=torch.bool)
        boxes.append(cxcywh[~ignore])
        labels.append(inst.gt_classes.cpu()[~ignore].to(torch.int64))
        counts.append(int((~ignore).sum()))
        image += [index] * counts[-1]
        ignored.append(cxcywh[ignore])
        ignored_image += [index] * int(ignore.sum())
        if with_masks:
            if not inst.has("gt_masks"):
                raise ValueError("the instances have no gt_masks, which MODEL.DETR.MASK.ENABLED trains on")
            masks.append(WindowMasks.of(inst.gt_masks, (height, width))[~ignore])
    objects, regions = len(image), len(ignored_image)
    floats = torch.cat([*boxes, *ignored]).to(device)  # one copy of all boxes, one of all numbers
    numbers = torch.cat([*labels, torch.tensor([*image, *ignored_image], dtype=torch.int64)]).to(device)
    object_labels, object_image, region_image = numbers.split([objects, objects, regions])
    return Targets(
        boxes=floats[:objects],
        labels=object_labels,
        image=object_image,
        counts=tuple(counts),
        ignore_boxes=floats[objects:],
        ignore_image=region_image,
        masks=WindowMasks.cat(masks).to(device) if with_masks else None,
    )
