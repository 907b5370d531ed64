# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The built-in crowd: people-like figures and other shapes that cover each other, drawn on the fly from a seed.

The same parameters give the same bytes on every machine and numpy version: random numbers come from
``numpy.random.RandomState``, whose stream is frozen, and the arithmetic is elementwise ``+ - * /`` and comparisons of
float64, which IEEE 754 rounds exactly (no sin, exp, float sums or foreign rasteriser). Image ``index`` depends on the
parameters, the split and ``index`` alone, so any worker can draw any image at any time.

Figures stand on a ground plane: the lower its feet, the larger and nearer a figure is, and the nearer covers the
farther. With probability ``occlusion`` a figure joins an earlier one, the closer the higher ``occlusion`` is; else it
takes the freest of some random places. A figure keeps its looks when only ``occlusion`` changes.

Coordinates are pixels, (x0, y0, x1, y1), with the far corner exclusive.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np

from .figures import CLASSES, class_size, paint, part_map

SCHEME = "synthetic-crowd"
SPLITS = ("train", "val")
# A figure of which less than this share of its pixels in the image is uncovered gets no label.
MIN_VISIBILITY = 0.1
CLASS_SHARES = (0.55, 0.15, 0.15, 0.15)
GROUPING = 0.9  # at occlusion 1 this share of the figures joins another one
PLACES_TRIED = 6  # by a figure that joins nobody

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class CrowdObject:
    """One labelled figure."""

    category: int  # index into CLASSES
    full_box: Box  # the whole figure; may reach outside the image
    visible_box: Box  # the pixels that nothing covers
    visibility: float  # uncovered share of the pixels that lie in the image


@dataclass(frozen=True)
class _Figure:
    category: int
    left: int
    top: int
    width: int
    height: int
    depth: float  # where it stands between horizon (0) and lower image edge (1); larger is nearer
    looks: np.ndarray  # uniform numbers that fix its pose, colours and texture

    @property
    def box(self) -> Box:
        return self.left, self.top, self.left + self.width, self.top + self.height


@dataclass(frozen=True)
class SyntheticCrowd:
    """The parameters of the synthetic crowd, and its images and labels.

    Args:
        seed: 0 .. 2**32 - 1.
        height, width: of every image, 32 to 8192 pixels.
        density: mean number of figures in an image. Counts are binomial (nearly Poisson: variance 0.75 to 0.8 of the
            mean). Figures that are nearly all covered (``MIN_VISIBILITY``) are drawn but not labelled.
        occlusion: in [0, 1]; 0 spreads the figures out, towards 1 they stand in tight groups.
        ignore: probability that an image has an ignore region, a far-away blurred crowd.
    """

    seed: int = 1
    height: int = 160
    width: int = 208
    density: float = 8.0
    occlusion: float = 0.4
    ignore: float = 0.1

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", "in 0 .. 2**32 - 1", self.seed)
        _require(32 <= self.height <= 8192, "height", "in 32 .. 8192", self.height)
        _require(32 <= self.width <= 8192, "width", "in 32 .. 8192", self.width)
        _require(0 <= self.density <= 500, "density", "in [0, 500]", self.density)
        _require(0 <= self.occlusion <= 1, "occlusion", "in [0, 1]", self.occlusion)
        _require(0 <= self.ignore <= 1, "ignore", "in [0, 1]", self.ignore)

    def url(self, split: str, index: int) -> str:
        """A file name that holds all that ``read_url`` needs to draw the image, in any process."""
        return f"{SCHEME}://{split}/{index}?{urlencode(asdict(self))}"

    def draw(self, split: str, index: int) -> np.ndarray:
        """The image, (height, width, 3) uint8 RGB."""
        random, horizon = self._start(split, index)
        crowd_box, crowd = self._far_crowd(random, horizon)
        figures = self._figures(random, horizon)
        image = self._background(random, horizon)
        if crowd_box is not None:
            x0, y0, x1, y1 = crowd_box
            image[:, y0:y1, x0:x1] = crowd
        for figure in figures:
            parts = part_map(figure.category, figure.height, figure.width, figure.looks)
            window, cut = self._overlap(figure)
            colors = paint(figure.category, parts, figure.looks)
            for plane, color in zip(image, colors, strict=True):
                np.copyto(plane[window], color[cut], where=parts[cut] > 0)
        image += random.random_sample((self.height, self.width)) * 16 - 8  # grain
        return np.clip(image, 0, 255, out=image).astype(np.uint8).transpose(1, 2, 0).copy()

    def label(self, split: str, index: int) -> tuple[list[CrowdObject], list[Box]]:
        """The labelled figures, far to near, and the ignore regions. Costs less than drawing the image."""
        random, horizon = self._start(split, index)
        crowd_box, _ = self._far_crowd(random, horizon)
        figures = self._figures(random, horizon)
        masks = [part_map(figure.category, figure.height, figure.width, figure.looks) > 0 for figure in figures]
        owner = np.zeros((self.height, self.width), dtype=np.int16)
        for number, (figure, mask) in enumerate(zip(figures, masks, strict=True), start=1):
            window, cut = self._overlap(figure)
            owner[window][mask[cut]] = number
        objects = []
        for number, (figure, mask) in enumerate(zip(figures, masks, strict=True), start=1):
            window, cut = self._overlap(figure)
            visible = owner[window] == number
            drawn, seen = int(np.count_nonzero(mask[cut])), int(np.count_nonzero(visible))
            if seen == 0 or seen < MIN_VISIBILITY * drawn:
                continue
            full_box = _tight_box(mask, figure.left, figure.top)
            visible_box = _tight_box(visible, window[1].start, window[0].start)
            objects.append(CrowdObject(figure.category, full_box, visible_box, seen / drawn))
        return objects, [] if crowd_box is None else [crowd_box]

    def _start(self, split: str, index: int) -> tuple[np.random.RandomState, float]:
        """The image's own random numbers, and the horizon, which all else needs."""
        if split not in SPLITS:
            raise ValueError(f"the synthetic crowd has the splits {' and '.join(SPLITS)}, not {split!r}")
        random = np.random.RandomState([self.seed, SPLITS.index(split), index])
        return random, self.height * (0.2 + 0.15 * random.rand())

    def _figures(self, random: np.random.RandomState, horizon: float) -> list[_Figure]:
        """The figures of an image, far to near."""
        trials = 4 * math.ceil(self.density) + 1
        count = np.count_nonzero(random.random_sample(trials) < self.density / trials)
        figures: list[_Figure] = []
        for _ in range(count):
            looks, places = random.random_sample(32), random.random_sample((PLACES_TRIED, 3)).tolist()
            category, choice, partner, size = random.random_sample(4).tolist()
            stand = partial(self._stand, category=_pick_class(category), size=size, looks=looks, horizon=horizon)
            if figures and choice < GROUPING * self.occlusion:
                figures.append(stand(*self._beside(figures[int(partner * len(figures))], places[0])))
            else:
                tried = [stand(x * self.width, 0.05 + 1.05 * depth, lift) for x, depth, lift in places]
                figures.append(min(tried, key=lambda figure: _crowding(figure, figures)))
        return sorted(figures, key=lambda figure: figure.depth)

    def _beside(self, near: _Figure, place: list[float]) -> tuple[float, float, float]:
        """Centre x, depth and lift of a figure that covers some of ``near`` or is covered by it."""
        side, depth, lift = place
        gap = (0.4 + 0.6 * (1 - self.occlusion)) * (0.7 + 0.6 * abs(2 * side - 1))
        x = near.left + near.width * (0.5 + (gap if side < 0.5 else -gap))
        return min(max(x, 0.0), float(self.width)), min(max(near.depth + 0.16 * (depth - 0.5), 0.05), 1.1), lift

    def _stand(
        self, x: float, depth: float, lift: float, *, category: int, size: float, looks: np.ndarray, horizon: float
    ) -> _Figure:
        """A figure with its centre at ``x`` whose feet are at ``depth``; ``lift`` is how high it floats, if it does."""
        person = self.height * (0.13 + 0.37 * depth) * (0.8 + 0.4 * size)  # a person's height at this depth
        height, width = class_size(category, person, looks)
        bottom = horizon + depth * (self.height - horizon)
        if CLASSES[category] == "balloon":
            bottom = max(bottom - lift * person * 1.5, 0.6 * height)
        return _Figure(category, int(x) - width // 2, int(bottom) - height, width, height, depth, looks)

    def _overlap(self, figure: _Figure) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where a figure lies in the image, and which part of the figure that is."""
        x0, y0, x1, y1 = _intersection(figure.box, (0, 0, self.width, self.height))
        window = slice(y0, y1), slice(x0, x1)
        cut = slice(y0 - figure.top, y1 - figure.top), slice(x0 - figure.left, x1 - figure.left)
        return window, cut

    def _background(self, random: np.random.RandomState, horizon: float) -> np.ndarray:
        """(3, height, width) float64: wall and ground, some clutter, bricks or tiles, and clouds of light."""
        edge = int(horizon)
        wall, ground = 70 + 110 * random.random_sample((2, 1)) + 60 * random.random_sample((2, 3)) - 30
        image = np.empty((3, self.height, self.width))
        image[:, :edge], image[:, edge:] = wall[:, None, None], ground[:, None, None]
        for _ in range(6):  # doors, posters, patches of grass: nothing that has a label
            x, y, w, h = random.random_sample(4).tolist()
            top, left = int(1.3 * edge * y), int(self.width * x)
            patch = image[:, top : top + int((0.1 + 0.5 * h) * edge), left : left + int(0.2 * self.width * w)]
            patch += 80 * random.random_sample((3, 1, 1)) - 40
        light = _clouds(random, self.height, self.width, self.height // 6)
        light += 0.6 * _clouds(random, self.height, self.width, self.height // 24 + 1)
        light = 0.7 + 0.4 * light
        period, contrast = 4 + int(random.rand() * 12), random.rand() * 0.3 - 0.15
        joints = np.ones((2 * period, 2 * period))  # two courses of bricks
        joints[::period] = joints[:period, 0] = joints[period:, period] = 1 - contrast
        repeats = self.height // (2 * period) + 1, self.width // (2 * period) + 1
        light *= np.tile(joints, repeats)[: self.height, : self.width]
        image *= light
        return image

    def _far_crowd(self, random: np.random.RandomState, horizon: float) -> tuple[Box | None, np.ndarray]:
        """Box, if there is any, and (3, h, w) pixels of rows of tiny blurred people on the horizon."""
        chance, x, columns, rows, shade = random.random_sample(5).tolist()
        cell = max(self.height // 80, 3)  # width of the tiny people; each row covers the legs of the one behind
        columns = max(int(self.width * (0.25 + 0.25 * columns)) // cell, 1)
        rows, shade = max(int(self.height * (0.08 + 0.06 * rows)) // cell, 1), 40 + 60 * shade
        clothes = shade + 70 * random.random_sample((rows, columns)) + 60 * random.random_sample((3, rows, columns))
        skin = shade + 60 * random.random_sample((rows, columns)) + np.array([40.0, 15.0, 0.0])[:, None, None]
        tiny = np.empty((3, rows, cell, columns, cell))
        tiny[:] = clothes[:, :, None, :, None] - 20
        tiny[:, :, : cell // 3] = skin[:, :, None, :, None]  # heads
        tiny[:, :, :, :, : cell // 3] *= 0.5  # gaps between neighbours
        height, width = rows * cell, columns * cell
        crowd = tiny.reshape(3, height, width)
        crowd = np.pad(crowd, ((0, 0), (1, 1), (1, 1)), mode="edge")
        crowd = (crowd[:, :-2] + crowd[:, 1:-1] * 2 + crowd[:, 2:]) / 4
        crowd = (crowd[:, :, :-2] + crowd[:, :, 1:-1] * 2 + crowd[:, :, 2:]) / 4
        left, top = int(x * (self.width - width)), int(horizon) - height // 2
        return (left, top, left + width, top + height) if chance < self.ignore else None, crowd


def _clouds(random: np.random.RandomState, height: int, width: int, cell: int) -> np.ndarray:
    """(height, width) smooth noise in [0, 1]: random values on a grid of ``cell`` pixels, bilinear in between."""
    grid = random.random_sample((height // cell + 2, width // cell + 2))
    row, part = np.divmod(np.arange(height), cell)
    part = part[:, None] / cell
    grid = grid[row] * (1 - part) + grid[row + 1] * part
    column, part = np.divmod(np.arange(width), cell)
    part = part / cell
    return grid[:, column] * (1 - part) + grid[:, column + 1] * part


def _pick_class(number: float) -> int:
    """The class in whose share of [0, 1) ``number`` lies."""
    for category, share in enumerate(CLASS_SHARES[:-1]):
        if number < share:
            return category
        number -= share
    return len(CLASS_SHARES) - 1


def _intersection(first: Box, second: Box) -> Box:
    return max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3])


def _crowding(figure: _Figure, others: list[_Figure]) -> float:
    """The largest intersection of a figure with another one, in shares of the smaller of the two."""
    largest = 0.0
    for other in others:
        x0, y0, x1, y1 = _intersection(figure.box, other.box)
        if x1 > x0 and y1 > y0:
            smaller = min(figure.width * figure.height, other.width * other.height)
            largest = max(largest, (x1 - x0) * (y1 - y0) / smaller)
    return largest


def _tight_box(mask: np.ndarray, left: int, top: int) -> Box:
    """The box of a mask's pixels, shifted by (left, top)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


def _require(holds: bool, name: str, allowed: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} of the synthetic crowd must be {allowed}, got {value}")


@lru_cache(maxsize=64)
def _parse(url: str) -> tuple[SyntheticCrowd, str, int]:
    parts = urlsplit(url)
    query = {key: values[0] for key, values in parse_qs(parts.query, strict_parsing=True).items()}
    types = {name: type(value) for name, value in asdict(SyntheticCrowd()).items()}
    crowd = SyntheticCrowd(**{name: types[name](value) for name, value in query.items()})
    return crowd, parts.netloc, int(parts.path.lstrip("/"))


def is_synthetic(file_name: str) -> bool:
    """Whether a file name is a ``SyntheticCrowd.url``."""
    return file_name.startswith(SCHEME + "://")


def read_url(url: str) -> np.ndarray:
    """The image that a ``SyntheticCrowd.url`` stands for, (height, width, 3) uint8 RGB."""
    try:
        crowd, split, index = _parse(url)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{url!r} is no address of a synthetic image: {error}") from error
    return crowd.draw(split, index)
