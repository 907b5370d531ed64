# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""One key of many json objects as an array: fast where all values are numbers, entry by entry where some are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from .json_values import Unfit, as_number, shown

_NUMBERS = {int, float}


def boxes_xyxy_of(entries: Sequence[dict], key: str, where: str) -> np.ndarray:
    """(D, 4) float64 corners, not clipped, of entries that hold [x, y, w, h] under ``key``.

    Raises:
        ValueError: an entry has no such box, or it is not four finite numbers.
    """
    result = plain_boxes([entry.get(key) for entry in entries])
    if result is None:
        result = np.array([_converted(_box, entry, key, i, where) for i, entry in enumerate(entries, start=1)])
    result[:, 2:] += result[:, :2]
    return result


def numbers_of(entries: Sequence[dict], key: str, where: str) -> np.ndarray:
    """(D,) float64 values under ``key``; a ``ValueError`` where one is missing or no finite number."""
    result = plain_numbers([entry.get(key) for entry in entries])
    if result is None:
        rows = [_converted(as_number, entry, key, i, where) for i, entry in enumerate(entries, start=1)]
        result = np.array(rows, dtype=np.float64)
    return result


def plain_boxes(boxes: list) -> np.ndarray | None:
    """(D, 4) float64 of lists of four finite numbers each; None where one is anything else."""
    if not set(map(type, boxes)) <= {list} or not set(map(len, boxes)) <= {4}:
        return None
    if not _plain(chain.from_iterable(boxes)):
        return None
    return _finite(boxes, (-1, 4))


def plain_numbers(values: list) -> np.ndarray | None:
    """(D,) float64 of finite numbers; None where one is anything else."""
    return _finite(values, (-1,)) if _plain(values) else None


def _plain(values: Iterable) -> bool:
    return set(map(type, values)) <= _NUMBERS


def _finite(values: list, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        array = np.array(values, dtype=np.float64).reshape(shape)
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
