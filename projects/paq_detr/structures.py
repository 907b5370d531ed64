# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The types that flow between the parts of a query-based detector.

Shape legend, used in the whole package:
    B images, S tokens of all levels, L levels, N queries, C channels, K classes, M objects of the batch in all.

Boxes are cxcywh in [0, 1] of the un-padded image; any other convention is in the name (``boxes_xyxy``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .modeling.losses import ClassificationLoss
    from .modeling.matcher import Assigner


@dataclass
class Memory:
    """What a decoder reads: the flattened feature levels of a batch, encoded or straight from the neck."""

    tokens: Tensor  # (B, S, C)
    position: Tensor  # (B, S, C) sine code plus level vector
    shapes: tuple[tuple[int, int], ...]  # (H, W) of each level, padding included
    valid_shapes: Tensor  # (B, L, 2) integer (H, W) of the part of each level that is no padding
    padding: Tensor | None  # (B, S) True where padding; None where no image of the batch has any

    @cached_property
    def valid_ratios(self) -> Tensor:
        """(B, L, 2) share of each level's width and height that is no padding, in the order (w, h)."""
        full = self.valid_shapes.new_tensor(self.shapes)
        return (self.valid_shapes / full).flip(-1).to(torch.float32)

    def maps(self) -> list[Tensor]:
        """The levels as (B, C, H, W) maps, finest first."""
        batch, _, channels = self.tokens.shape
        levels = self.tokens.split([h * w for h, w in self.shapes], dim=1)
        return [t.transpose(1, 2).reshape(batch, channels, h, w) for t, (h, w) in zip(levels, self.shapes)]

    def masks(self) -> list[Tensor | None]:
        """The padding of each level as (B, H, W) maps, True where padding; None where there is none."""
        if self.padding is None:
            return [None] * len(self.shapes)
        levels = self.padding.split([h * w for h, w in self.shapes], dim=1)
        return [p.reshape(-1, h, w) for p, (h, w) in zip(levels, self.shapes)]

    def token_centers(self) -> Tensor:
        """(B, S, 2) centre (x, y) of every token in [0, 1] of the un-padded image (beyond 1 in the padding)."""
        device = self.tokens.device
        centers = []
        for level, (h, w) in enumerate(self.shapes):
            y = torch.arange(h, device=device, dtype=torch.float32) + 0.5
            x = torch.arange(w, device=device, dtype=torch.float32) + 0.5
            grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flip(-1).reshape(1, h * w, 2)
            centers.append(grid / self.valid_shapes[:, None, level].flip(-1))
        return torch.cat(centers, 1)

    def with_tokens(self, tokens: Tensor) -> Memory:
        return replace(self, tokens=tokens)


@dataclass
class QueryGroup:
    """A slice of the queries of one decoder pass that has known partners (denoising queries)."""

    name: str
    start: int
    stop: int
    assignment: Assignment
    scale: float = 1.0  # factor on its losses (1 / number of denoising groups)


@dataclass
class QuerySet:
    """What a decoder pass starts from."""

    content: Tensor  # (B, N, C)
    reference: Tensor  # (B, N, 4) boxes, or (B, N, 2) points
    position: Tensor | None = None  # (B, N, C) fixed position code; None where the decoder makes its own
    valid: Tensor | None = None  # (B, N) False for slots that only fill up the batch; None: all are queries
    attention_mask: Tensor | None = None  # (N, N) True where row must not see column
    groups: list[QueryGroup] = field(default_factory=list)  # slices apart from the matching queries, which come last
    predictions: list[Prediction] = field(default_factory=list)  # what the query source itself must be supervised on
    losses: dict[str, Tensor] = field(default_factory=dict)  # its losses that need no ground truth, weighted


@dataclass
class LayerOutput:
    """What one decoder layer, or the encoder, predicts for every query."""

    logits: Tensor  # (B, N, K)
    boxes: Tensor  # (B, N, 4)
    content: Tensor | None = None  # (B, N, C) state after the layer
    valid: Tensor | None = None  # (B, N) as in QuerySet

    def slice(self, start: int, stop: int | None) -> LayerOutput:
        """The output of the queries ``start:stop`` alone."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[:, start:stop]

        return LayerOutput(self.logits[:, start:stop], self.boxes[:, start:stop], cut(self.content), cut(self.valid))


@dataclass
class Targets:
    """The ground truth of a batch; objects of all images stand one behind the other."""

    boxes: Tensor  # (M, 4)
    labels: Tensor  # (M,) int64
    image: Tensor  # (M,) int64 image of each object, ascending
    counts: tuple[int, ...]  # objects per image, on the host: their prefix sums are the segment offsets
    ignore_boxes: Tensor  # (R, 4) regions whose queries are neither right nor wrong
    ignore_image: Tensor  # (R,) int64

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
    """Pairs of a query and an object. Any matcher's result is this, and the criterion knows nothing else."""

    image: Tensor  # (P,) int64
    query: Tensor  # (P,) int64
    target: Tensor  # (P,) int64, index into the objects of ``Targets``
    weight: Tensor | None = None  # (P,) factor on the pair's losses; None: 1

    def __len__(self) -> int:
        return len(self.query)


@dataclass
class Prediction:
    """One output that is supervised: the unit that the criterion consumes."""

    name: str  # suffix of the loss names: "final", "layer1", "encoder", "hybrid_layer1", ...
    output: LayerOutput
    assign: Assigner | Assignment  # how its queries find their objects, or that they already have
    scale: float = 1.0  # factor on its losses
    binary: bool = False  # only channel 0 counts and every label is 0
    box_losses: bool = True  # False: it is supervised by its classification loss alone
    classification: ClassificationLoss | None = None  # None: the criterion's own


def stack_instances(instances: Sequence, image_sizes: Sequence[tuple[int, int]], device: torch.device) -> Targets:
    """Detectron2 ``Instances`` of a batch (gt_boxes in pixels, gt_classes, optional gt_ignore) as ``Targets``.

    Args:
        instances: one per image; the field ``gt_ignore`` (bool) marks ignore regions, which are no objects.
        image_sizes: un-padded (height, width) of each image.
    """
    boxes, labels, image, counts, ignored, ignored_image = [], [], [], [], [], []
    for index, (inst, (height, width)) in enumerate(zip(instances, image_sizes)):
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        xyxy = inst.gt_boxes.tensor.to("cpu", torch.float32) / scale
        cxcywh = torch.cat([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], 1)
        ignore = inst.gt_ignore.cpu() if inst.has("gt_ignore") else torch.zeros(len(inst), dtype=torch.bool)
        boxes.append(cxcywh[~ignore])
        labels.append(inst.gt_classes.cpu()[~ignore])
        counts.append(int((~ignore).sum()))
        image += [index] * counts[-1]
        ignored.append(cxcywh[ignore])
        ignored_image += [index] * int(ignore.sum())
    return Targets(
        boxes=torch.cat(boxes).to(device),
        labels=torch.cat(labels).to(device=device, dtype=torch.int64),
        image=torch.tensor(image, dtype=torch.int64, device=device),
        counts=tuple(counts),
        ignore_boxes=torch.cat(ignored).to(device),
        ignore_image=torch.tensor(ignored_image, dtype=torch.int64, device=device),
    )
