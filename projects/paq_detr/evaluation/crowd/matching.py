# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Overlaps and matchings of persons and detections for the CrowdHuman metrics.

An image is reduced to the few pairs that overlap by half; the matchings then work on the pairs of many images at once.
All arithmetic is float64: overlaps in float32 flip cases near 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .protocols import LONE_SLACK

EPS = 1e-6  # in the denominators of overlaps and of JI


def clip_boxes(boxes_xyxy: np.ndarray, size: tuple[float, float] | None) -> np.ndarray:
    """Boxes cut to an image of (height, width): the first corner to W - 1, H - 1, the second to W, H.

    The difference leaves a strip of one pixel of a box that lies right of or below the image, as published.
    """
    if size is None:
        return boxes_xyxy
    height, width = size
    first, second = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    first = np.minimum(np.maximum(first, 0), (width - 1, height - 1))
    second = np.maximum(np.minimum(second, (width, height)), 0)
    return np.concatenate([first, second], 1)


def _intersections(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    width = np.minimum(rows[:, 2, None], columns[:, 2]) - np.maximum(rows[:, 0, None], columns[:, 0])
    height = np.minimum(rows[:, 3, None], columns[:, 3]) - np.maximum(rows[:, 1, None], columns[:, 1])
    return np.maximum(width, 0, out=width) * np.maximum(height, 0, out=height)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_iou(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """IoU (R, C) of xyxy boxes; ``EPS`` in the denominator keeps an exact half below 0.5."""
    intersections = _intersections(rows, columns)
    return intersections / (_areas(rows)[:, None] + _areas(columns) - intersections + EPS)


def covered_by_one(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """(D,) bool: more than half of a box's own area lies in a single region."""
    return (_intersections(regions, boxes) / (_areas(boxes) + EPS) > 0.5).any(0)


@dataclass
class Pairs:
    """Which persons and detections overlap by half: of one image, or of many with running numbers."""

    person: np.ndarray  # (P,) number of the person
    detection: np.ndarray  # (P,) number of the detection
    iou: np.ndarray  # (P,) at least 0.5 less the slack
    detection_covered: np.ndarray  # (D,) bool: lies in an ignore region
    person_covered: np.ndarray  # (Q,) bool


def find_pairs(persons: np.ndarray, regions: np.ndarray, boxes: np.ndarray) -> Pairs:
    """The pairs of one image that any protocol may take; persons, regions and detections are clipped xyxy boxes."""
    iou = box_iou(persons, boxes)
    person, detection = np.nonzero(iou > 0.5 - LONE_SLACK)
    covered, person_covered = covered_by_one(boxes, regions), covered_by_one(persons, regions)
    return Pairs(person, detection, iou[person, detection], covered, person_covered)


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Pairs of many images, persons and detections numbered through."""
    persons = np.cumsum([0] + [len(part.person_covered) for part in parts])
    detections = np.cumsum([0] + [len(part.detection_covered) for part in parts])
    if not parts:
        nobody, no = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        return Pairs(nobody, nobody, np.zeros(0), no, no)
    return Pairs(
        np.concatenate([part.person + start for part, start in zip(parts, persons)]),
        np.concatenate([part.detection + start for part, start in zip(parts, detections)]),
        np.concatenate([part.iou for part in parts]),
        np.concatenate([part.detection_covered for part in parts]),
        np.concatenate([part.person_covered for part in parts]),
    )


def match_greedily(pairs: Pairs) -> np.ndarray:
    """(D,) person of each detection, -1 for none: in score order each takes its best free person.

    Detections are numbered by descending score in their image. Of equal overlaps the first person wins.
    """
    strict = pairs.iou > 0.5
    detection, person = pairs.detection[strict], pairs.person[strict]
    order = np.lexsort((-pairs.iou[strict], detection))
    partner = np.full(len(pairs.detection_covered), -1)
    taken, settled = bytearray(len(pairs.person_covered)), bytearray(len(partner))
    for d, p in zip(detection[order].tolist(), person[order].tolist()):
        if not settled[d] and not taken[p]:
            settled[d] = taken[p] = 1
            partner[d] = p
    return partner


def match_by_weight(person: np.ndarray, detection: np.ndarray, weight: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Indices of the pairs of a maximum-weight bipartite matching.

    Pairs that some optimum must hold are peeled off first: the heaviest pair of a person whose detection overlaps
    nobody else, and the other way round. What is left goes to an exact solver, image by image.

    Args:
        person, detection: (P,) partners of each pair, numbered through all images.
        weight: (P,) positive, heaviest first.
        image: (P,) image of each pair, ascending with the numbers of persons and detections.
    """
    left = np.arange(len(weight))
    chosen = []
    while len(left):
        p, d = person[left], detection[left]
        lone_p, lone_d = np.bincount(p)[p] == 1, np.bincount(d)[d] == 1
        sure = (lone_d & _is_first(p)) | (lone_p & _is_first(d))
        if not sure.any():
            break
        chosen.append(left[sure])
        left = left[~(_is_member(p, p[sure]) | _is_member(d, d[sure]))]
    chosen += _solve_exactly(person, detection, weight, image, left)
    return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)


def _is_first(values: np.ndarray) -> np.ndarray:
    """True at the first occurrence of each value."""
    places = np.arange(len(values))
    first = np.empty(values.max() + 1, dtype=np.int64)
    first[values[::-1]] = places[::-1]
    return first[values] == places


def _is_member(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    flags = np.zeros(values.max() + 1, dtype=bool)
    flags[members] = True
    return flags[values]


def _solve_exactly(person, detection, weight, image, pairs: np.ndarray) -> list[np.ndarray]:
    """The chosen ones of ``pairs``, one array per image."""
    if not len(pairs):
        return []
    pairs = pairs[np.argsort(image[pairs], kind="stable")]
    starts = np.flatnonzero(np.diff(image[pairs], prepend=-1))
    lengths = np.diff(starts, append=len(pairs))
    rows, heights = _number_locally(person[pairs], starts, lengths)
    columns, widths = _number_locally(detection[pairs], starts, lengths)
    chosen = []
    for start, length, shape in zip(starts.tolist(), lengths.tolist(), zip(heights.tolist(), widths.tolist())):
        here = slice(start, start + length)
        matrix, name = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        matrix[rows[here], columns[here]] = weight[pairs[here]]
        name[rows[here], columns[here]] = pairs[here] + 1
        solved = name[linear_sum_assignment(matrix, maximize=True)]
        chosen.append(solved[solved > 0] - 1)
    return chosen


def _number_locally(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values as numbers from 0 within each image, whose values are greater than the image's before; and how many."""
    numbers = np.unique(values, return_inverse=True)[1]
    first, last = np.minimum.reduceat(numbers, starts), np.maximum.reduceat(numbers, starts)
    return numbers - np.repeat(first, lengths), last - first + 1
