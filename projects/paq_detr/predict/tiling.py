# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Large pictures in overlapping tiles, and their detections as one set.

What two tiles say about the part of the picture that both see is matched one to one: a detection has at most one
partner in another tile, and none in its own. So an object that two tiles see becomes one, and neighbours in a crowd,
which overlap as much as duplicates do, all stay.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..checks import check_range

Tile = tuple[int, int, int, int]  # x0, y0, x1, y1

MATCH_IOU = 0.5  # of two detections, in what both tiles see
COVERED = 0.8  # share of a cut-off piece in a whole detection of another tile
EDGE = 0.005  # of the tile's side: a box this near to an inner edge is cut off there


def tiles_of(height: int, width: int, size: int, overlap: float) -> list[Tile]:
    """Tiles of ``size`` pixels that cover the picture and overlap evenly by at least ``overlap`` of their side.

    Raises:
        UserError: a size below 16, or an overlap outside [0, 0.9].
    """
    check_range("tile", size, "[16, inf)")
    check_range("overlap", overlap, "[0, 0.9]")
    rows, columns = _starts(height, size, overlap), _starts(width, size, overlap)
    return [(x, y, min(x + size, width), min(y + size, height)) for y in rows for x in columns]


def _starts(length: int, size: int, overlap: float) -> list[int]:
    if length <= size:
        return [0]
    step = max(int(size * (1 - overlap)), 1)
    count = -(-(length - size) // step) + 1
    return np.linspace(0, length - size, count).round().astype(int).tolist()


def merge_tiles(
    tiles: list[Tile], tile_of: np.ndarray, boxes_xyxy: np.ndarray, scores: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One detection for each object.

    Of several of an object, one that no tile's edge cuts is taken, the one with the best score; where all are cut off,
    the box around them all. A piece without partner that a whole detection covers, and reaches beyond, is left out.

    Args:
        tiles: of the picture.
        tile_of: (D,) index of the tile that each detection comes from.
        boxes_xyxy: (D, 4) in pixels of the picture.
        scores, classes: (D,).

    Returns:
        Boxes (M, 4), scores, classes, and for each the index of the detection that it was taken from; best score first.
    """
    tile_of = tile_of.astype(np.int64)
    cut = _cut(tiles, tile_of, boxes_xyxy)
    groups = _groups(tiles, tile_of, boxes_xyxy, classes)
    merged = [_of_group(np.array(group), boxes_xyxy, scores, cut) for group in groups]
    boxes = np.array([box for box, _, _ in merged]).reshape(-1, 4)
    chosen = np.array([index for _, index, _ in merged], dtype=np.int64)
    found_by = [set(tile_of[group].tolist()) for group in groups]
    keep = np.ones(len(groups), dtype=bool)
    for place, (_, _, open_sides) in enumerate(merged):
        if open_sides.any():
            keep[place] = not _is_piece(place, open_sides, boxes, classes[chosen], found_by)
    boxes, chosen = boxes[keep], chosen[keep]
    order = np.argsort(-scores[chosen], kind="stable")
    boxes, chosen = boxes[order], chosen[order]
    return boxes, scores[chosen], classes[chosen], chosen


def _cut(tiles: list[Tile], tile_of: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(D, 4) whether the left, upper, right and lower side of a box lies at an edge where the picture goes on."""
    corners = np.array(tiles, dtype=np.float64)
    outer = np.concatenate([corners[:, :2].min(0), corners[:, 2:].max(0)])
    inner = corners != outer
    slack = np.maximum(np.tile(corners[:, 2:] - corners[:, :2], 2) * EDGE, 1.0)
    return inner[tile_of] & (np.abs(boxes - corners[tile_of]) <= slack[tile_of])


def _groups(tiles: list[Tile], tile_of: np.ndarray, boxes: np.ndarray, classes: np.ndarray) -> list[list[int]]:
    """Detections of the same object, by index; of each tile at most one."""
    members = {tile: np.flatnonzero(tile_of == tile) for tile in np.unique(tile_of).tolist()}
    pairs = []
    for first, second in combinations(members, 2):
        shared = _intersection(tiles[first], tiles[second])
        if shared[0] < shared[2] and shared[1] < shared[3]:
            pairs += _matches(members[first], members[second], boxes, classes, np.array(shared))
    group_of = {i: [i] for i in range(len(boxes))}
    for _, i, j in sorted(pairs, reverse=True):
        ours, theirs = group_of[i], group_of[j]
        if ours is not theirs and not set(tile_of[ours]) & set(tile_of[theirs]):
            ours += theirs
            group_of.update(dict.fromkeys(theirs, ours))
    return [group for i, group in group_of.items() if group[0] == i]


def _matches(
    first: np.ndarray, second: np.ndarray, boxes: np.ndarray, classes: np.ndarray, shared: np.ndarray
) -> list[tuple[float, int, int]]:
    """(IoU, i, j) of the detections that two tiles have of the same object, by what both tiles see of it."""
    ours, theirs = (_clip(boxes[part], shared) for part in (first, second))
    seen = [((part[:, 2:] - part[:, :2]) >= 1).all(1) for part in (ours, theirs)]
    first, ours, second, theirs = first[seen[0]], ours[seen[0]], second[seen[1]], theirs[seen[1]]
    iou = _iou(ours, theirs) * (classes[first][:, None] == classes[second])
    iou[iou < MATCH_IOU] = 0
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return [(iou[r, c], int(first[r]), int(second[c])) for r, c in zip(rows, columns) if iou[r, c] > 0]


def _of_group(
    group: np.ndarray, boxes: np.ndarray, scores: np.ndarray, cut: np.ndarray
) -> tuple[np.ndarray, int, np.ndarray]:
    """A group's box, the detection that stands for it, and (4,) the sides at which the box is still cut off."""
    whole = group[~cut[group].any(1)]
    if len(whole):
        best = whole[scores[whole].argmax()]
        return boxes[best], best, np.zeros(4, dtype=bool)
    around = np.concatenate([boxes[group, :2].min(0), boxes[group, 2:].max(0)])
    return around, group[scores[group].argmax()], (cut[group] & (boxes[group] == around)).any(0)


def _is_piece(
    place: int, open_sides: np.ndarray, boxes: np.ndarray, classes: np.ndarray, found_by: list[set[int]]
) -> bool:
    """Whether another box covers this one and goes on beyond the edge that cuts it off."""
    box, overlap = boxes[place], _clip(boxes, boxes[place])
    covered = np.clip(overlap[:, 2:] - overlap[:, :2], 0, None).prod(1) >= COVERED * (box[2:] - box[:2]).prod()
    beyond = np.concatenate([boxes[:, :2] < box[:2] - 1, boxes[:, 2:] > box[2:] + 1], 1) & open_sides
    for other in np.flatnonzero(covered & beyond.any(1) & (classes == classes[place])):
        # One that the same tile found as well is another object: that tile told the two apart.
        if other != place and not found_by[place] & found_by[other]:
            return True
    return False


def _intersection(first: Tile, second: Tile) -> Tile:
    return max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3])


def _clip(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    return np.concatenate([np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])], 1)


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    areas = [(part[:, 2:] - part[:, :2]).prod(1) for part in (first, second)]
    return overlap / np.maximum(areas[0][:, None] + areas[1] - overlap, 1e-9)
