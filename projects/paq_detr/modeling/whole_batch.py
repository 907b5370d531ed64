# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A batch that is learnt in parts, so that it needs less memory, with the gradients that it has in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.structures import ImageList
from torch import Tensor
from torch.nn import functional as F

from .objective import OBJECTS, divisors


class WholeBatch:
    """What a part of a batch must know of the whole: its size, its fullest image, and what losses are divided by.

    The number of objects is known from the start. What other normalisers count (matched pairs) follows from outputs:
    with ``counting`` True the parts are run once beforehand, and :meth:`divide` adds up what they have.
    """

    def __init__(self, batch: Sequence[dict[str, Any]], parts: int):
        """
        Args:
            batch: this process's images, as the detector takes them.
            parts: into how many equal parts it goes.
        """
        size = len(batch) // parts
        self.parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        self.size = tuple(max(x["image"].shape[side] for x in batch) for side in (-2, -1))  # height, width
        counts = [_objects(x["instances"]) for x in batch]
        self.fullest = max(counts)
        self._objects = float(sum(counts))
        self.counting = False
        self._counted: dict[str, Tensor] = {}
        self._divisors: dict[str, Tensor] = {}

    @property
    def counts_outputs(self) -> bool:
        """Whether a normaliser counts anything but objects; known once the parts were counted."""
        return len(self._counted) > 1

    def padded(self, images: ImageList, divisor: int) -> ImageList:
        """A part's images in the size that the whole has, rounded up to a multiple of ``divisor``."""
        height, width = (-(-side // max(divisor, 1)) * max(divisor, 1) for side in self.size)
        rows, columns = height - images.tensor.shape[-2], width - images.tensor.shape[-1]
        return ImageList(F.pad(images.tensor, (0, columns, 0, rows)), images.image_sizes)

    def divide(self, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """The whole's divisors, for a part's counts; to be called on every process alike."""
        if self.counting:
            for name, count in counts.items():
                self._counted[name] = self._counted.get(name, 0) + count.detach()
            return {name: count.clamp(min=1) for name, count in counts.items()}  # of losses that nobody reads
        if not self._divisors:
            objects = counts[OBJECTS].new_full((), self._objects)
            self._divisors = divisors({**self._counted, OBJECTS: objects})
        return {name: self._divisors[name] for name in counts}


def _objects(instances: Any) -> int:
    """How many of an image's instances are no ignore regions."""
    return len(instances) - (int(instances.gt_ignore.sum()) if instances.has("gt_ignore") else 0)
