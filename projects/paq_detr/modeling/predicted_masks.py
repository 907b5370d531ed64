# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Predicted masks at the size of the image, made when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Pixels of masks that are made at once: 64 MiB of fp32.
_PIXELS_AT_ONCE = 2**24


@dataclass
class PredictedMasks:
    """N masks of one image as logits on a coarse grid; whoever reads one gets it at full size, a pixel is the object's
    where its bilinear logit is above 0.

    300 masks of a 4000 x 3000 image would be 3.4 GiB at full size, and are 57 MB here. It stands in the field
    ``pred_masks`` of Detectron2's ``Instances``, in place of a bool (N, height, width) tensor, and is read like one: by
    ``len``, index, ``for mask in masks``, ``to``, ``cpu``, ``numpy.asarray``; ``tensor`` is that very tensor.
    """

    logits: Tensor  # (N, h, w); no cell is padding
    cells: tuple[float, float]  # rows and columns of cells that the image covers; of the last ones perhaps a part
    size: tuple[int, int]  # (height, width) of the full masks

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self), *self.size)

    @property
    def device(self) -> torch.device:
        return self.logits.device

    def at_size(self, height: int, width: int) -> PredictedMasks:
        """The same masks for the image at another size."""
        return replace(self, size=(height, width))

    def to(self, *args: Any, **kwargs: Any) -> PredictedMasks:
        return replace(self, logits=self.logits.to(*args, **kwargs))

    def cpu(self) -> PredictedMasks:
        return self.to("cpu")

    @staticmethod
    def cat(masks: Sequence[PredictedMasks]) -> PredictedMasks:
        """Masks of one image, as parts of its detections have them."""
        return replace(masks[0], logits=torch.cat([part.logits for part in masks]))

    def __getitem__(self, item: Any) -> PredictedMasks | Tensor:
        """One mask, (height, width) bool, of an int; of a slice, a bool or an index tensor those masks."""
        if isinstance(item, (int, np.integer)):
            return replace(self, logits=self.logits[item][None]).tensor[0]
        return replace(self, logits=self.logits[item])

    def __iter__(self) -> Iterator[Tensor]:
        """The masks in order, (height, width) bool each."""
        for part in self.parts():
            yield from part

    def parts(self) -> Iterator[Tensor]:
        """(n, height, width) bool, so many at once as fit in a little memory."""
        at_once = max(1, _PIXELS_AT_ONCE // max(1, self.size[0] * self.size[1]))
        for logits in self.logits.split(at_once) if len(self) else ():
            rows = resized(logits, 1, self.size[0], self.cells[0])
            yield resized(rows, 2, self.size[1], self.cells[1]) > 0

    @property
    def tensor(self) -> Tensor:
        """(N, height, width) bool."""
        full = torch.empty(self.shape, dtype=torch.bool, device=self.device)
        start = 0
        for part in self.parts():
            full[start : start + len(part)] = part
            start += len(part)
        return full

    def numpy(self) -> np.ndarray:
        return self.tensor.numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        full = self.cpu().numpy()
        return full if dtype is None else full.astype(dtype)


def resized(x: Tensor, axis: int, length: int, cells: float) -> Tensor:
    """``x`` linearly at ``length`` pixels along an axis whose first ``cells`` cells they cover; before the first and
    behind the last cell's centre its value goes on."""
    last = x.shape[axis] - 1
    at = (torch.arange(length, dtype=torch.float64, device=x.device) + 0.5) * (cells / length) - 0.5
    at = at.clamp(0, last)
    low = at.floor().long()
    share = (at - low).to(x.dtype).view([-1 if a == axis else 1 for a in range(x.dim())])
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=last)), share)
