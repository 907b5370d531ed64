# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The values of detection files as numbers, fast where all are numbers, entry by entry where some are not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np

from ...data.json_values import Unfit, absent, as_number, shown
from ...data.odgt import tag_of

_NUMBERS = {int, float}


def entries_of(record: dict, key: str, where: str) -> list[dict]:
    """The list of objects under ``key``; null stands for none."""
    entries = [] if absent(record[key]) else record[key]
    if not isinstance(entries, list):
        raise ValueError(f"{where}: {key!r} is {shown(entries)}, must be a list of objects")
    for place, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: entry {place} of {key!r} is {shown(entry)}, must be an object")
    return entries


def boxes_xyxy_of(entries: list[dict], key: str, where: str) -> np.ndarray:
    """(D, 4) float64 corners of entries that hold [x, y, w, h] under ``key``.

    Raises:
        ValueError: an entry has no such box, or it is not four finite numbers.
    """
    boxes = [entry.get(key) for entry in entries]
    if set(map(type, boxes)) <= {list} and set(map(len, boxes)) <= {4} and _plain(chain.from_iterable(boxes)):
        result = _array(boxes)
    else:
        result = None
    if result is None:
        result = np.array([_converted(_box, entry, key, i, where) for i, entry in enumerate(entries, start=1)])
    result = result.reshape(-1, 4)
    result[:, 2:] += result[:, :2]
    return result


def scores_of(entries: list[dict], where: str) -> np.ndarray:
    """(D,) float64 scores; a ``ValueError`` where one is missing or no finite number."""
    scores = [entry.get("score") for entry in entries]
    result = _array(scores) if _plain(scores) else None
    if result is None:
        rows = [_converted(as_number, entry, "score", i, where) for i, entry in enumerate(entries, start=1)]
        result = np.array(rows, dtype=np.float64)
    return result


def tags_of(entries: list[dict], kind: str, where: str) -> np.ndarray:
    """(G,) int8 tags of a dump's ground truth: 1, 0 and -1 as they stand, or by name as in an odgt file."""
    tags = []
    for place, entry in enumerate(entries, start=1):
        try:
            tag = as_number(entry.get("tag"))
        except Unfit:
            tag = tag_of(entry, kind, where)
        if tag not in (1, 0, -1):
            raise ValueError(f"{where}: the tag of entry {place} is {entry['tag']!r}, must be 1 (person), -1 (ignored) "
                             "or a name")  # fmt: skip
        tags.append(tag)
    return np.array(tags, dtype=np.int8)


def _plain(values: Any) -> bool:
    return set(map(type, values)) <= _NUMBERS


def _array(values: list) -> np.ndarray | None:
    """The values, all of them numbers, as float64; None where one is not finite."""
    try:
        array = np.array(values, dtype=np.float64)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return array if np.isfinite(array).all() else None


def _converted(convert: Callable[[Any], Any], entry: dict, key: str, place: int, where: str) -> Any:
    if key not in entry:
        raise ValueError(f"{where}: entry {place} has no {key!r}: {shown(entry)}")
    try:
        return convert(entry[key])
    except Unfit as error:
        raise ValueError(f"{where}: the {key!r} of entry {place} is {error}") from None


def _box(value: Any) -> list[float]:
    if not isinstance(value, list) or len(value) != 4:
        raise Unfit(f"{shown(value)}, must be four numbers, [x, y, width, height]")
    try:
        return [as_number(number) for number in value]
    except Unfit:
        raise Unfit(f"{shown(value)}, must be four finite numbers, [x, y, width, height]") from None
