# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Tiles, and what becomes of objects that several of them see."""

from functools import cache

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from paq_detr.data import SyntheticCrowd
from paq_detr.errors import UserError
from paq_detr.predict.tiling import merge_tiles, tiles_of


@pytest.mark.parametrize("height, width", [(3000, 4000), (800, 801), (799, 1440), (1, 2000), (500, 500)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.55])
def test_tiles_cover_the_picture_and_overlap_by_at_least_what_is_asked(height, width, overlap):
    tiles = tiles_of(height, width, 800, overlap)
    covered = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in tiles:
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert (x1 - x0, y1 - y0) == (min(800, width), min(800, height))
        covered[y0:y1, x0:x1] = True
    assert covered.all()
    starts = np.unique([tile[0] for tile in tiles])
    assert (np.diff(starts) <= 800 * (1 - overlap) + 1).all()


@pytest.mark.parametrize("size, overlap", [(8, 0.2), (800, 1.0), (800, -0.1)])
def test_impossible_tiles_are_one_sentence(size, overlap):
    with pytest.raises(UserError, match="tile is 8|overlap is"):
        tiles_of(100, 100, size, overlap)


TILES = [(0, 0, 100, 100), (60, 0, 160, 100)]  # both see 60 .. 100


def merge(*found, tiles=TILES):
    """Of (tile, box, score, class) entries: the boxes and scores that are left."""
    tile_of, boxes, scores, classes = zip(*found)
    boxes, scores, _, _ = merge_tiles(tiles, np.array(tile_of), np.array(boxes, float), np.array(scores),
                                      np.array(classes))  # fmt: skip
    return [(box.tolist(), score) for box, score in zip(boxes, scores)]


def test_an_object_that_two_tiles_see_becomes_one_with_the_better_score():
    assert merge((0, (70, 10, 90, 50), 0.8, 0), (1, (71, 10, 91, 50), 0.9, 0)) == [([71, 10, 91, 50], 0.9)]


def test_the_whole_box_counts_before_a_cut_one_of_a_better_score():
    assert merge((0, (80, 10, 100, 50), 0.9, 0), (1, (80, 10, 115, 50), 0.6, 0)) == [([80, 10, 115, 50], 0.6)]


def test_an_object_larger_than_the_overlap_is_put_together():
    left, right = (20, 10, 99.8, 60), (60.2, 10, 140, 61)
    assert merge((0, left, 0.7, 0), (1, right, 0.8, 0)) == [([20, 10, 140, 61], 0.8)]


def test_neighbours_of_one_tile_stay_however_they_overlap():
    near, behind = (70, 10, 90, 50), (72, 10, 92, 50)
    found = merge((0, near, 0.9, 0), (0, behind, 0.8, 0), (1, near, 0.85, 0), (1, behind, 0.7, 0))
    assert found == [([*near], 0.9), ([*behind], 0.8)]
    assert len(merge((0, near, 0.9, 0), (0, behind, 0.8, 0), (1, behind, 0.7, 0))) == 2


def test_other_classes_are_other_objects():
    assert len(merge((0, (70, 10, 90, 50), 0.9, 0), (1, (70, 10, 90, 50), 0.8, 1))) == 2


def test_a_piece_is_left_out_only_where_another_tile_saw_the_whole_and_this_one_no_other():
    whole, piece = (30, 10, 95, 90), (60, 40, 75, 60)  # the piece begins at the second tile's edge
    assert merge((0, whole, 0.9, 0), (1, piece, 0.5, 0)) == [([*whole], 0.9)]
    inside = (62, 40, 77, 60)  # no edge cuts this one: it is an object before the other
    assert len(merge((0, whole, 0.9, 0), (1, inside, 0.5, 0))) == 2
    told_apart = (60, 12, 95, 90)
    assert len(merge((0, whole, 0.9, 0), (1, told_apart, 0.8, 0), (1, piece, 0.5, 0))) == 2


def test_no_detections_stay_none():
    boxes, scores, classes, chosen = merge_tiles(TILES, *(np.zeros(s) for s in (0, (0, 4), 0, 0)))
    assert boxes.shape == (0, 4) and len(scores) == len(classes) == len(chosen) == 0


def oracle(objects, tile, random):
    """What a good detector of whole boxes says of a tile: boxes within it, a pixel or so off, of what shows enough."""
    boxes, classes = objects
    clipped = np.concatenate([np.maximum(boxes[:, :2], tile[:2]), np.minimum(boxes[:, 2:], tile[2:])], 1)
    area = np.clip(clipped[:, 2:] - clipped[:, :2], 0, None).prod(1)
    share = area / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    seen = share > 0.25
    clipped = clipped[seen] + random.uniform(-1, 1, (seen.sum(), 4))
    clipped = np.concatenate([np.maximum(clipped[:, :2], tile[:2]), np.minimum(clipped[:, 2:], tile[2:])], 1)
    return clipped, 0.5 + 0.4 * share[seen] + random.uniform(-0.05, 0.05, seen.sum()), classes[seen]


def iou(a, b):
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    area = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return overlap / (area[0][:, None] + area[1] - overlap)


@cache
def figures(index):
    return SyntheticCrowd(seed=3, height=375, width=333, density=110, occlusion=0.9, ignore=0).label("val", index)[0]


def crowd(size):
    """(N, 4) boxes and (N,) classes of 24 crowds beside one another in 4000 x 3000 pixels.

    Figures of a small picture, their places twice as far from each other and they themselves ``size`` times as large.
    """
    boxes, classes = [], []
    for index in range(24):
        row, column = divmod(index, 6)
        for figure in figures(index % 8):
            x0, y0, x1, y1 = figure.full_box
            x, y = 2 * x0 + 667 * column, 2 * y0 + 750 * row
            boxes.append((x, y, x + size * (x1 - x0), y + size * (y1 - y0)))
            classes.append(figure.category)
    boxes = np.clip(np.array(boxes, dtype=np.float64), 0, [4000, 3000, 4000, 3000])
    fits = ((boxes[:, 2:] - boxes[:, :2]) > 8).all(1)
    return boxes[fits], np.array(classes)[fits]


@pytest.mark.parametrize("size, neighbours", [(1.0, 40), (2.5, 200)])
def test_a_tiled_crowd_of_4000_x_3000_is_the_untiled_truth(size, neighbours):
    boxes, classes = objects = crowd(size)
    alike = (iou(boxes, boxes) > 0.5) & (classes[:, None] == classes)
    assert len(boxes) > 1200 and np.triu(alike, 1).sum() > neighbours  # which suppression would eat
    tiles, random = tiles_of(3000, 4000, 800, 0.2), np.random.RandomState(0)
    parts = [oracle(objects, np.array(tile), random) for tile in tiles]
    tile_of = np.repeat(np.arange(len(tiles)), [len(part[1]) for part in parts])
    found, scores, labels, _ = merge_tiles(tiles, tile_of, *(np.concatenate(p) for p in zip(*parts)))
    overlap = iou(found, boxes) * (labels[:, None] == classes)
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    assert len(found) == len(boxes) and (overlap[rows, columns] > 0.75).all()
    assert (np.diff(scores) <= 0).all()
