# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""COCO's two forms of a mask, checked and made compact: polygons, and run-length codes, compressed or not.

Format: https://cocodataset.org/#format-data. pycocotools, which reads run lengths without looking, gets none that it
could not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as rle

from .json_values import Unfit, absent, shown

#: Polygons, (2 n,) float64 x, y, x, y, ... in pixels each, whose union is the mask; or run lengths, pycocotools'
#: {"size": [height, width], "counts": bytes}.
Segmentation = list[np.ndarray] | dict[str, Any]

_FORMS = "must be a list of polygons, or size and counts"


def as_segmentation(value: Any) -> Segmentation:
    """An annotation's ``segmentation``.

    Raises:
        Unfit: it is neither polygons of three corners or more, nor run lengths that fill their size.
    """
    if isinstance(value, dict):
        return _run_lengths(value)
    if isinstance(value, list) and value and all(type(x) in (int, float) for x in value):
        value = [value]  # one polygon, without the list of polygons around it
    if not isinstance(value, list) or not value:
        raise Unfit(f"{shown(value)}, {_FORMS}")
    return [_polygon(polygon) for polygon in value]


def no_segmentation(value: Any) -> bool:
    """Whether an annotation holds nothing where its ``segmentation`` stands, as exports of boxes do."""
    return absent(value) or (isinstance(value, (list, dict)) and not value)


def check_mask_size(segmentation: Segmentation, height: int, width: int) -> None:
    """Raises ``Unfit`` for run lengths of another size than their image's."""
    if isinstance(segmentation, dict) and segmentation["size"] != [height, width]:
        high, wide = segmentation["size"]
        raise Unfit(f"{high} x {wide} (height x width), its image is {height} x {width}")


def to_run_lengths(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Either form as compressed run lengths of an image."""
    if isinstance(segmentation, dict):
        return segmentation
    return rle.merge(rle.frPyObjects([polygon.tolist() for polygon in segmentation], height, width))


def _polygon(value: Any) -> np.ndarray:
    try:
        polygon = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise Unfit(f"{shown(value)}, must be numbers x, y, x, y, ... of a polygon") from None
    if polygon.ndim != 1 or isinstance(value, str):
        raise Unfit(f"{shown(value)}, {_FORMS}")
    if len(polygon) < 6 or len(polygon) % 2:
        raise Unfit(f"{shown(value)}: {len(polygon)} numbers, must be x, y of three corners or more")
    if not np.isfinite(polygon).all():
        raise Unfit(f"{shown(value)}, which is not finite")
    return polygon


def _run_lengths(value: dict) -> dict[str, Any]:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(type(x) is int and x > 0 for x in size):
        raise Unfit(f"{shown(value)}: its size is {shown(size)}, must be [height, width]")
    size = list(size)
    if isinstance(counts, list):
        runs = _integers(counts)
    elif isinstance(counts, (str, bytes)):
        counts = counts.encode() if isinstance(counts, str) else counts
        runs = _uncompressed(np.frombuffer(counts, dtype=np.uint8))
    else:
        runs = None
    if runs is None or (runs < 0).any():
        raise Unfit(f"{shown(value)}: its counts are no run lengths")
    if runs.sum() != size[0] * size[1]:
        raise Unfit(f"{shown(value)}: its run lengths add up to {runs.sum()} pixels of {size[0]} x {size[1]}")
    if isinstance(counts, list):
        return rle.frPyObjects({"size": size, "counts": runs.tolist()}, *size)
    return {"size": size, "counts": counts}


def _integers(counts: list) -> np.ndarray | None:
    if not counts or not set(map(type, counts)) <= {int}:
        return None
    try:
        return np.array(counts, dtype=np.int64)
    except OverflowError:
        return None


def _uncompressed(code: np.ndarray) -> np.ndarray | None:
    """Run lengths of COCO's text: numbers of 5-bit digits, lowest first, a sixth bit where one more follows, the last
    digit's fifth bit the sign; from the fourth number on they are differences to the last but one. None where the text
    is no such code."""
    digits = code.astype(np.int64) - 48
    if not len(digits) or ((digits < 0) | (digits > 63)).any() or digits[-1] & 32:
        return None
    last = (digits & 32) == 0
    number = np.concatenate([[0], np.cumsum(last)[:-1]])  # that each digit belongs to
    first = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = np.arange(len(digits)) - first[number]
    if place.max() > 6:  # no image has 2^35 pixels
        return None
    values = np.bincount(number, weights=((digits & 31) << (5 * place)).astype(np.float64)).astype(np.int64)
    values -= ((digits[last] & 16) > 0) * (1 << (5 * (place[last] + 1)))
    runs = values.copy()
    runs[1::2], runs[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return runs
