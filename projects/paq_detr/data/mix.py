# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Augmentations that put several pictures together: mosaic, mixup, and a copy-paste in which objects cover each other
as they do in crowds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from detectron2.config import CfgNode

from ..checks import check_range
from ..registry import adds_config
from .augment import AUGMENTATIONS, Mix, interval, probability
from .sample import Sample, areas, cut, filling, overlaid, piece_of, pixels_of, resized

_SEEN = 0.7  # of its box, the least of an object that is copied: of what is hidden, nothing can be copied
_CENTRE = 0.25, 0.75  # where the four pictures of a mosaic meet, in shares of its sides
# A pasted object that stands beside another one, its partner:
_HEIGHT = 0.8, 1.25  # its height, in heights of the partner
_ASIDE = 0.3, 1.0  # between their centres, in means of the two widths: they overlap, at most by 0.7
_IN_FRONT = 0.0, 0.1  # of its lower edge below the partner's, in heights of the partner: it is nearer, and covers

Draw = Callable[[], Sample]


@adds_config
def add_mix_config(cfg: CfgNode) -> None:
    """Add the keys of mosaic, mixup and copy-paste, in place."""
    # "mosaic": four pictures meet at a random point of one of the first picture's size (YOLOv4). Each fills its
    # quarter, magnified ZOOM times from the least size that does.
    cfg.INPUT.MOSAIC = M = CfgNode()
    M.PROB = 0.5
    M.ZOOM = [1.0, 1.5]
    # "mixup": the sum of two pictures, WEIGHT of it the first, with the objects of both (Zhang et al. 2019).
    cfg.INPUT.MIXUP = M = CfgNode()
    M.PROB = 0.5
    M.WEIGHT = [0.4, 0.6]
    # "copy_paste": up to MAX_OBJECTS objects of another picture, resized by a factor in SCALE. The share BESIDE of them
    # stands in front of an object of this picture, about as large as that, the others anywhere.
    cfg.INPUT.COPY_PASTE = M = CfgNode()
    M.PROB = 0.5
    M.MAX_OBJECTS = 5
    M.SCALE = [0.5, 2.0]
    M.BESIDE = 0.5


class Mosaic(Mix):
    """Four pictures that meet at a random point.

    Args:
        least: as in ``sample.cut``.
    """

    def __init__(self, prob: float, zoom: tuple[float, float], least: float) -> None:
        self.prob, self.zoom, self.least = prob, zoom, least

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        height, width = sample.size
        if np.random.rand() >= self.prob or min(height, width) < 2:
            return sample
        y, x = (min(max(round(side * np.random.uniform(*_CENTRE)), 1), side - 1) for side in (height, width))
        tiles = []
        for number, (left, top, right, bottom) in enumerate(
            ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
        ):
            whole = draw() if number else sample  # one at a time
            tile = filling(whole, bottom - top, right - left, np.random.uniform(*self.zoom), self.least)
            tiles.append((tile, None, left, top))
        return overlaid(replace(sample.take([]), image=np.zeros_like(sample.image)), tiles, self.least)


class Mixup(Mix):
    """The weighted sum of two pictures, with the objects of both."""

    def __init__(self, prob: float, weight: tuple[float, float], least: float) -> None:
        self.prob, self.weight, self.least = prob, weight, least

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if np.random.rand() >= self.prob:
            return sample
        other = filling(draw(), *sample.size, 1.0, self.least)
        weight = np.float32(np.random.uniform(*self.weight))
        image = (sample.image * weight + other.image * (1 - weight)).round().astype(np.uint8)
        return replace(sample.with_objects_of([other]), image=image)


class CopyPaste(Mix):
    """Objects of one other picture, laid onto this one (Ghiasi et al. 2021; the places are ours): by their mask where
    they have one, else by the box in which they are seen, with what else is seen in it."""

    def __init__(self, prob: float, max_objects: int, scale: tuple[float, float], beside: float, least: float) -> None:
        self.prob, self.max_objects, self.scale = prob, max_objects, scale
        self.beside, self.least = beside, least

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if np.random.rand() >= self.prob:
            return sample
        source = draw()
        shown = np.hstack([np.maximum(source.boxes, source.seen)[:, :2], np.minimum(source.boxes, source.seen)[:, 2:]])
        shares = areas(shown) / np.maximum(areas(source.boxes), 1e-9)
        fit = np.flatnonzero(~source.ignore & (shares >= _SEEN))
        count = min(np.random.randint(self.max_objects) + 1, len(fit))
        chosen = np.random.choice(fit, count, replace=False) if len(fit) else []
        parts = [part for part in (self._part(sample, source, int(i)) for i in chosen) if part is not None]
        return overlaid(sample, parts, self.least)

    def _part(self, sample: Sample, source: Sample, index: int) -> tuple[Sample, np.ndarray | None, int, int] | None:
        """An object of the source as ``overlaid`` takes it; None where its mask has no pixel."""
        masked = source.masks is not None and source.masks[index] is not None
        others = [] if masked else [i for i in range(len(source)) if i != index]
        window = pixels_of(source.seen[index], source.size)
        if masked:
            x0, y0, pixels = piece_of(source.masks[index], source.size)
            window = x0, y0, x0 + pixels.shape[1], y0 + pixels.shape[0]
            if not pixels.size:
                return None
        part = cut(source.take([index, *others]), window, self.least)
        if not len(part):  # its box and its mask are not in one place
            return None
        if source.amodal[index]:  # it is covered by what is cut away
            part.boxes[0] = source.boxes[index] - np.tile(window[:2], 2)
        height, width = part.size
        partner = self._partner(sample)
        factor = np.random.uniform(*self.scale)
        if partner is not None:
            own = max(part.boxes[0, 3] - part.boxes[0, 1], 1)
            factor = np.random.uniform(*_HEIGHT) * (partner[3] - partner[1]) / own
        factor = float(np.clip(factor, *self.scale))
        factor = min(factor, sample.size[0] / height, sample.size[1] / width)
        part = resized(part, max(round(height * factor), 1), max(round(width * factor), 1))
        x, y = self._place(part, partner, sample.size)
        shape = _shape(part) if masked else None
        return None if masked and not shape.any() else (part, shape, x, y)

    def _partner(self, sample: Sample) -> np.ndarray | None:
        """The box that a part is to stand beside; None: it may stand anywhere."""
        objects = np.flatnonzero(~sample.ignore)
        if np.random.rand() >= self.beside or not len(objects):
            return None
        return sample.boxes[np.random.choice(objects)]

    def _place(self, part: Sample, partner: np.ndarray | None, size: tuple[int, int]) -> tuple[int, int]:
        """x and y of a part's upper left corner, so that all of it lies inside."""
        room = size[1] - part.size[1], size[0] - part.size[0]
        if partner is None:
            return np.random.randint(room[0] + 1), np.random.randint(room[1] + 1)
        x0, _, x1, y1 = part.boxes[0]
        side = np.random.choice([-1, 1]) * np.random.uniform(*_ASIDE)
        x = (partner[0] + partner[2] - x0 - x1) / 2 + side * (partner[2] - partner[0] + x1 - x0) / 2
        y = partner[3] - y1 + np.random.uniform(*_IN_FRONT) * (partner[3] - partner[1])
        return min(max(round(x), 0), room[0]), min(max(round(y), 0), room[1])


def _shape(part: Sample) -> np.ndarray:
    """(H, W) bool mask of a part's only object."""
    x, y, pixels = piece_of(part.masks[0], part.size)
    shape = np.zeros(part.size, dtype=bool)
    shape[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return shape


@AUGMENTATIONS.register("mosaic")
def build_mosaic(cfg: CfgNode) -> Mosaic:
    zoom = interval("INPUT.MOSAIC.ZOOM", cfg.INPUT.MOSAIC.ZOOM, "[1, inf)")
    return Mosaic(probability(cfg, "MOSAIC"), zoom, cfg.INPUT.MIN_VISIBLE)


@AUGMENTATIONS.register("mixup")
def build_mixup(cfg: CfgNode) -> Mixup:
    weight = interval("INPUT.MIXUP.WEIGHT", cfg.INPUT.MIXUP.WEIGHT, "[0, 1]")
    return Mixup(probability(cfg, "MIXUP"), weight, cfg.INPUT.MIN_VISIBLE)


@AUGMENTATIONS.register("copy_paste")
def build_copy_paste(cfg: CfgNode) -> CopyPaste:
    keys = cfg.INPUT.COPY_PASTE
    return CopyPaste(
        prob=probability(cfg, "COPY_PASTE"),
        max_objects=check_range("INPUT.COPY_PASTE.MAX_OBJECTS", keys.MAX_OBJECTS, "[1, 60000]"),
        scale=interval("INPUT.COPY_PASTE.SCALE", keys.SCALE, "(0, inf)"),
        beside=check_range("INPUT.COPY_PASTE.BESIDE", keys.BESIDE, "[0, 1]"),
        least=cfg.INPUT.MIN_VISIBLE,
    )
