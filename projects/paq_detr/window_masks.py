# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The masks of many objects in little memory: one bit a pixel, and only inside each object's window.

300 objects of 100 x 200 pixels take 0.75 MB, where 300 boolean maps of an 800 x 1333 image take 320 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

#: Objects that are sampled at once: what is computed on the way stays in a CPU's cache.
_AT_ONCE = 32


@dataclass
class WindowMasks:
    """Masks of M objects, each in its image's pixels. Outside its window a mask is 0.

    It can be a field of Detectron2's ``Instances``: it has a length, an index, ``cat`` and ``to``.
    """

    bits: Tensor  # (T,) uint8, eight pixels each, first pixel highest; windows row by row, one behind the other
    start: Tensor  # (M,) int64 first bit of each window
    window: Tensor  # (M, 4) int64 x0, y0, width, height in pixels; width and height 0 for a mask without a pixel
    size: Tensor  # (M, 2) int64 width and height of the object's image

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, item: Any) -> WindowMasks:
        """The masks of a slice, a bool (M,) or an index tensor; they keep sharing ``bits``."""
        return WindowMasks(self.bits, self.start[item], self.window[item], self.size[item])

    def to(self, *args: Any, **kwargs: Any) -> WindowMasks:
        return WindowMasks(*(tensor.to(*args, **kwargs) for tensor in self._tensors()))

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.bits, self.start, self.window, self.size

    @staticmethod
    def cat(masks: Sequence[WindowMasks]) -> WindowMasks:
        """All objects of ``masks``, one behind the other."""
        starts, before = [], 0
        for part in masks:
            starts.append(part.start + 8 * before)
            before += len(part.bits)
        rest = (torch.cat([getattr(part, name) for part in masks]) for name in ("bits", "window", "size"))
        bits, window, size = rest
        return WindowMasks(bits, torch.cat(starts), window, size)

    @classmethod
    def of_crops(cls, crops: Sequence[tuple[int, int, np.ndarray]], image_size: tuple[int, int]) -> WindowMasks:
        """
        Args:
            crops: per object x0, y0 and a bool (h, w) piece of its mask inside the image; it may have empty margins.
            image_size: (height, width) of the image.
        """
        packed, windows, starts, before = [], [], [], 0
        for x0, y0, piece in crops:
            rows, columns = np.flatnonzero(piece.any(1)), np.flatnonzero(piece.any(0))
            top, left = (rows[0], columns[0]) if len(rows) else (0, 0)
            piece = piece[top : rows[-1] + 1, left : columns[-1] + 1] if len(rows) else piece[:0, :0]
            packed.append(np.packbits(piece))
            windows.append((x0 + left, y0 + top, piece.shape[1], piece.shape[0]))
            starts.append(8 * before)
            before += len(packed[-1])
        height, width = image_size
        return cls(
            bits=torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.uint8), *packed])),
            start=torch.tensor(starts, dtype=torch.int64),
            window=torch.tensor(windows, dtype=torch.int64).reshape(-1, 4),
            size=torch.tensor([width, height]).expand(len(starts), 2),
        )

    @classmethod
    def of(cls, masks: Any, image_size: tuple[int, int]) -> WindowMasks:
        """From Detectron2's ``BitMasks`` or ``PolygonMasks`` of an image, or a bool (M, H, W) tensor.

        Raises:
            ValueError: masks of another size than (height, width) ``image_size``, or of no known kind.
        """
        if isinstance(masks, WindowMasks):
            return masks
        if hasattr(masks, "polygons"):
            return cls.of_crops([polygon_crop(polygons, image_size) for polygons in masks.polygons], image_size)
        dense = getattr(masks, "tensor", masks)
        if not isinstance(dense, Tensor) or dense.dim() != 3:
            raise ValueError(f"gt_masks is a {type(masks).__name__}, must be BitMasks, PolygonMasks or WindowMasks")
        if tuple(dense.shape[1:]) != tuple(image_size):
            raise ValueError(f"gt_masks are {tuple(dense.shape[1:])} pixels, their image is {tuple(image_size)}")
        return cls.of_crops([(0, 0, mask.bool().cpu().numpy()) for mask in dense], image_size)

    @property
    def present(self) -> Tensor:
        """(M,) whether a mask has any pixel."""
        return self.window[:, 2] > 0

    def sample(self, index: Tensor, points: Tensor) -> Tensor:
        """The masks at points: the value of the pixel that a point lies in.

        Args:
            index: (P,) objects.
            points: (P, K, 2) x, y in [0, 1] of each object's image.

        Returns:
            (P, K) of 0 and 1, in the number type of ``points``.
        """
        parts = zip(index.split(_AT_ONCE), points.split(_AT_ONCE))
        return torch.cat([self._sample(some, at) for some, at in parts]) if len(index) else points[..., 0]

    def _sample(self, index: Tensor, points: Tensor) -> Tensor:
        size, window = self.size[index].to(torch.int32), self.window[index].to(torch.int32)

        def within(axis: int) -> tuple[Tensor, Tensor]:
            """(P, K) column or row of each point, counted from the window's, and whether the window has it."""
            sides = size[:, axis, None]
            place = (points[..., axis] * sides).to(torch.int32).minimum(sides - 1) - window[:, axis, None]
            return place, (place >= 0) & (place < window[:, axis + 2, None])

        (x, in_columns), (y, in_rows) = within(0), within(1)
        inside = in_columns & in_rows
        if not len(self.bits):  # no mask has a pixel
            return inside.to(points.dtype)
        place = (y * window[:, 2, None] + x) * inside  # 32 bits for one window, 64 for a batch
        place = (self.start[index][:, None] + place).clamp(max=8 * len(self.bits) - 1)
        bit = self.bits[place >> 3] >> (7 - (place & 7)).to(torch.uint8) & inside
        return bit.to(points.dtype)

    def dense(self) -> Tensor:
        """(M, H, W) bool of objects of one image, for tests and pictures."""
        if not len(self):
            return torch.zeros(0, 0, 0, dtype=torch.bool)
        width, height = self.size[0].tolist()
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centres = torch.stack([x / width, y / height], -1).view(1, -1, 2)
        values = self.sample(torch.arange(len(self)), centres.expand(len(self), -1, -1))
        return values.view(-1, height, width).bool()


def polygon_crop(polygons: Sequence[np.ndarray], image_size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """The union of polygons in pixels as x0, y0 and a bool piece of an image of (height, width), by COCO's rule."""
    points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons])
    last = np.array([image_size[1], image_size[0]])
    x0, y0 = np.clip(np.floor(points.min(0)) - 1, 0, last).astype(int)
    x1, y1 = np.clip(np.ceil(points.max(0)) + 1, 0, last).astype(int)
    if x1 <= x0 or y1 <= y0:
        return 0, 0, np.zeros((0, 0), dtype=bool)
    moved = [(np.asarray(p, dtype=np.float64).reshape(-1, 2) - (x0, y0)).ravel().tolist() for p in polygons]
    piece = rle.decode(rle.merge(rle.frPyObjects(moved, y1 - y0, x1 - x0)))
    return int(x0), int(y0), piece.astype(bool)
