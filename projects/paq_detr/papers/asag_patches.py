# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Patches of ASAG's anchor generator: where they lie, and what they cut out of a feature map.

A patch is a window of ``size`` x ``size`` cells of one level. Which patches a step has is decided on the host, for the
whole batch at once: they are a handful of boxes, and their number must be known there anyway. An exported program has
a fixed number and a mask. Windows and boxes in cells or pixels are (x, y); a level's maps are (y, x).

Shape legend beside structures.py's: P patches of the batch, n boxes of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from ..layers import boxes_cxcywh_to_xyxy, boxes_xyxy_to_cxcywh
from ..ops.export_forms import kept_apart
from ..structures import Grid, Memory


@dataclass
class Patches:
    """Windows of one level, those of an image one behind the other."""

    stride: int
    size: int  # cells of a side
    image: Tensor  # (P,) int64, ascending
    corner: Tensor  # (P, 2) int64 top left cell (x, y)
    leads_on: Tensor  # (P,) bool, whether its anchors count; those of the others are only supervised
    each: int | None = None  # patches of every image, where that is one number (an exported program)

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def of_images(
        cls, stride: int, size: int, corners: Sequence[Tensor], leading: Sequence[int] | None = None
    ) -> Patches:
        """
        Args:
            corners: (n, 2) of each image.
            leading: how many of each image's patches, which stand first, lead on; None: all.
        """
        counts = [len(c) for c in corners]
        leads_on = [torch.arange(n) < m for n, m in zip(counts, counts if leading is None else leading)]
        image = torch.arange(len(corners)).repeat_interleave(torch.tensor(counts))
        return cls(stride, size, image, torch.cat(list(corners)).long(), torch.cat(leads_on))

    def to(self, device: torch.device) -> Patches:
        """On ``device``, in one copy."""
        packed = torch.cat([self.image[:, None], self.corner, self.leads_on[:, None].long()], 1).to(device)
        return Patches(self.stride, self.size, packed[:, 0], packed[:, 1:3], packed[:, 3] > 0, self.each)

    def windows(self, image_scale: Tensor) -> Tensor:
        """(P, 4) corners x, y, x, y in shares of the un-padded image; ``image_scale`` as of ``Grid``, (B, 1, 4)."""
        cells = torch.cat([self.corner, self.corner + self.size], 1)
        return cells * self.stride / image_scale[self.image, 0]

    def leading_rows(self, num_images: int) -> Tensor:
        """(B, K) number of each image's patches that lead on, K of the image that has most; -1 where it has fewer.
        On the host, but of an exported program."""
        if self.each is not None:
            rows = torch.arange(num_images * self.each, device=self.image.device)
            return torch.where(self.leads_on, rows, -1).unflatten(0, (num_images, self.each))
        leading = self.leads_on.nonzero()[:, 0]
        image = self.image[leading]
        place = torch.arange(len(image)) - torch.searchsorted(image, image)
        rows = torch.full((num_images, int(place.max()) + 1 if len(place) else 0), -1)
        rows[image, place] = leading
        return rows


def quadrants(num_images: int) -> tuple[Tensor, Tensor]:
    """(4 B,) image and (4 B, 4) window, in shares of the image, of the quadrants TL, TR, BL, BR of every image."""
    low = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5]])
    windows = torch.cat([low, low + 0.5], 1)
    return torch.arange(num_images).repeat_interleave(4), windows.repeat(num_images, 1)


def to_image(boxes: Tensor, windows: Tensor) -> Tensor:
    """(..., 4) boxes in shares of their window, to shares of the image; ``windows`` (..., 4) x, y, x, y."""
    low, high = windows.chunk(2, -1)
    size = high - low
    return torch.cat([low + boxes[..., :2] * size, boxes[..., 2:] * size], -1)


def to_window(boxes: Tensor, windows: Tensor) -> Tensor:
    """The inverse of :func:`to_image`."""
    low, high = windows.chunk(2, -1)
    size = high - low
    return torch.cat([(boxes[..., :2] - low) / size, boxes[..., 2:] / size], -1)


def clipped(boxes: Tensor, windows: Tensor) -> Tensor:
    """(..., 4) boxes cut off at the borders of (..., 4) windows, both in shares of the image."""
    low, high = windows.chunk(2, -1)
    corners = boxes_cxcywh_to_xyxy(boxes).clamp(torch.cat([low, low], -1), torch.cat([high, high], -1))
    return boxes_xyxy_to_cxcywh(corners)


# ----------------------------------------------------------------------------------------------------------------------
# Which patches, of one image and level, on the host


@dataclass(frozen=True)
class Window:
    """What all patches of an image and level share."""

    stride: int
    size: int  # cells of a side
    image_size: tuple[int, int]  # un-padded (height, width) in pixels

    @property
    def side(self) -> int:
        """Pixels of a side."""
        return self.stride * self.size

    @property
    def cells(self) -> Tensor:
        """(2,) columns and rows of the image."""
        height, width = self.image_size
        return torch.tensor([-(-width // self.stride), -(-height // self.stride)])

    def inside(self, corner: Tensor) -> Tensor:
        """(n, 2) corners as of ``moved_inside``."""
        return moved_inside(corner, self.cells, self.size)


def moved_inside(corner: Tensor, cells: Tensor, size: int) -> Tensor:
    """(..., 2) corners moved up and left until the patch lies in the image of so many (columns, rows), but never beyond
    its top and left."""
    return torch.minimum(corner, cells - size).clamp(min=0)


def around(window: Window, centers: Tensor, scores: Tensor, max_iou: float, most: int = 0) -> Tensor:
    """(P, 2) corners of patches around (n, 2) centres in pixels, best score first.

    Patches that overlap a better one by more than ``max_iou`` are left out, and all but the ``most`` best (0: none).
    """
    half = window.side / 2
    best = nms(torch.cat([centers - half, centers + half], 1), scores, max_iou)
    best = best[:most] if most else best
    return window.inside((centers[best] / window.stride - window.size / 2).floor())


def as_mask(
    centers: Tensor, scores: Tensor, selected: Tensor, grid: Grid, *, stride: int, size: int, max_iou: float, most: int
) -> Patches:
    """What :func:`around` chooses in all images of a batch, on the device: ``most`` patches of every image, of which
    those lead on that are chosen.

    Args:
        centers: (B, T, 2) in pixels.
        scores: (B, T).
        selected: (B, T) whose patches are wanted.
    """
    batch, candidates = scores.shape
    order = scores.masked_fill(~selected, -1.0).topk(candidates).indices
    selected, centers = selected.gather(1, order), centers.gather(1, order[..., None].expand(-1, -1, 2))
    squares = torch.cat([centers, torch.full_like(centers, stride * size)], -1)
    kept = kept_apart(squares, selected, max_iou)
    place = torch.arange(candidates, device=scores.device) + candidates * ~kept  # those that are kept come first
    best = place.topk(min(most, candidates), largest=False).indices
    corner = (centers.gather(1, best[..., None].expand(-1, -1, 2)) / stride - size / 2).floor()
    cells = (grid.image_scale[..., :2] / stride).ceil()  # (B, 1, 2)
    corner = moved_inside(corner, cells, size).long()
    each = best.shape[1]
    image = torch.arange(batch, device=scores.device)[:, None].expand(-1, each).flatten()
    return Patches(stride, size, image, corner.flatten(0, 1), kept.gather(1, best).flatten(), each)


def upon_objects(window: Window, boxes: Tensor, max_iou: float) -> Tensor:
    """(P, 2) corners of patches that each hold one of the (n, 4) objects, cxcywh in pixels, at a random place; at its
    right and bottom less than a cell may be missing.

    Objects of half a patch or more are left out, and so are those that overlap another one by more than ``max_iou``; of
    these the one stays that is nearer to all others.
    """
    boxes = boxes[(boxes[:, 2:] < window.side / 2).all(1)]
    centers = boxes[:, :2]
    apart = (centers[:, None] - centers).square().sum((1, 2))
    corners = boxes_cxcywh_to_xyxy(boxes)
    corners = corners[nms(corners, -apart, max_iou)] / window.stride
    start = torch.minimum(corners[:, :2].floor(), window.cells - window.size)
    slack = (start + window.size - corners[:, 2:]).clamp(min=0)
    return (start - torch.rand_like(slack) * slack).floor().clamp(min=0)


def anywhere(window: Window, count: int) -> Tensor:
    """(count, 2) random corners."""
    free = (window.cells - window.size).clamp(min=1)
    return (torch.rand(count, 2) * free).floor()


def for_training(
    window: Window, generated: Tensor, objects: Tensor, *, count: int, by_objects: bool, max_iou: float
) -> tuple[Tensor, int]:
    """(P, 2) corners that one image trains on, and how many of them, which stand first, lead on.

    The generated ones, filled up to ``count`` by patches upon randomly chosen objects, and then by patches anywhere.
    ``by_objects`` (the first epoch): all patches upon objects take the place of the generated ones.

    Args:
        generated: (n, 2) corners.
        objects: (m, 4) of the image, cxcywh in pixels.
    """
    held = upon_objects(window, objects, max_iou)
    if by_objects:
        corners, leading = held, len(held)
    else:
        missing = max(count - len(generated), 0)
        corners, leading = torch.cat([generated, held[torch.randperm(len(held))[:missing]]]), len(generated)
    return torch.cat([corners, anywhere(window, max(count - len(corners), 0))]), leading


# ----------------------------------------------------------------------------------------------------------------------
# What is in a patch


def cut_out(memory: Memory, level: int, patches: Patches, margin: int = 0) -> tuple[Tensor, Tensor]:
    """The map of a level in every patch and ``margin`` cells around it, in one gather.

    Returns:
        (P, C, s, s) with s = size + 2 margin, and (P, 1, s, s) 1 in the image and 0 beyond it. Beyond the image the
        map is not zero, but that of the nearest cell.
    """
    grid = memory.grid
    (height, width), start = grid.shapes[level], sum(grid.level_sizes[:level])
    steps = torch.arange(-margin, patches.size + margin, device=grid.device)
    x, y = (patches.corner[:, axis, None] + steps for axis in (0, 1))  # (P, s)
    rows, columns = grid.valid_shapes[patches.image, level, :, None].unbind(1)  # (P, 1)
    inside = ((y >= 0) & (y < rows))[:, :, None] & ((x >= 0) & (x < columns))[:, None]
    cell = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None]
    token = patches.image[:, None, None] * memory.tokens.shape[1] + start + cell
    features = memory.tokens.flatten(0, 1).index_select(0, token.flatten()).view(*token.shape, -1)
    return features.permute(0, 3, 1, 2), inside[:, None].to(features.dtype)


def resized(maps: Tensor, grid: Grid, level: int, size: int) -> Tensor:
    """(B, C, size, size): what of (B, C, H, W) maps of a level is no padding, resized (bilinear, half-pixel rule)."""

    def weights(valid: Tensor, cells: int) -> Tensor:
        """(B, size, cells) how much each cell of an axis, of which (B,) are ``valid``, counts at each place."""
        steps = torch.arange(size, device=valid.device) + 0.5
        at = torch.minimum((steps * valid[:, None] / size - 0.5).clamp(min=0), valid[:, None] - 1)
        return (1 - (at[..., None] - torch.arange(cells, device=valid.device)).abs()).clamp(min=0)

    rows, columns = grid.valid_shapes[:, level].unbind(1)
    y, x = (weights(*axis).to(maps.dtype) for axis in ((rows, maps.shape[-2]), (columns, maps.shape[-1])))
    return y[:, None] @ maps @ x[:, None].transpose(-1, -2)
