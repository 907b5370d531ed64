# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What is probably wrong with boxes and areas that a file gives, told from their numbers alone."""

from __future__ import annotations

import numpy as np

_SLACK = 0.02  # of the image's side: rounding, and labels that end a little outside
_SHARE = 0.2  # of the boxes: so many are odd only where something is wrong
_MANY, _LARGE = 20, 250  # boxes and sides of images from which on it is no chance that all lie within 100 pixels


def doubt_about_boxes(boxes_xywh: np.ndarray, sizes: np.ndarray, may_end_outside: bool = False) -> str:
    """One counted sentence on boxes that are hardly x, y, width, height in pixels; empty where nothing is odd.

    Args:
        boxes_xywh: (N, 4) as read, sizes not negative.
        sizes: (N, 2) width and height of each box's image in pixels.
        may_end_outside: whether that alone is not odd, as for CrowdHuman's full bodies.
    """
    count = len(boxes_xywh)
    if not count:
        return ""
    ends = boxes_xywh[:, :2] + boxes_xywh[:, 2:]
    in_unit = ((boxes_xywh >= 0) & (boxes_xywh <= 1)).all(1) & (sizes > 4).all(1)
    if in_unit.sum() > count / 2:
        return (
            f"{in_unit.sum()} of {count} boxes hold no number above 1: they are probably fractions of the image, "
            "and must be pixels"
        )
    if count >= _MANY and (sizes >= _LARGE).all() and (boxes_xywh >= 0).all() and 50 < ends.max() <= 101:
        return (
            f"{count} of {count} boxes end within 100 pixels, though every image is larger: they are probably percents "
            "of the image, as Label Studio writes them, and must be pixels"
        )
    outside = (ends > (1 + _SLACK) * sizes + 1).any(1)
    if outside.sum() <= _SHARE * count:
        return ""
    cause = _cause(boxes_xywh, sizes)
    if may_end_outside and not cause:
        return ""
    cause = cause or (
        "they are probably of pictures of another size, or not [x, y, width, height]; if objects are meant to end "
        "outside, as full bodies do, this is right"
    )
    return f"{outside.sum()} of {count} boxes reach far outside their image: {cause}"


def leaves_or_vanishes(boxes_xywh: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) whether a box reaches more than a pixel outside its image, or has a side below a pixel.

    Args:
        boxes_xywh: (N, 4) in pixels.
        sizes: (N, 2) width and height of each box's image in pixels.
    """
    starts, ends = boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]
    return (starts < -1).any(1) | (ends > sizes + 1).any(1) | (boxes_xywh[:, 2:] < 1).any(1)


def doubt_about_areas(areas: np.ndarray, boxes_xywh: np.ndarray) -> str:
    """One counted sentence on areas (N,) that cannot be those of what lies in the boxes (N, 4); empty where they can.

    Areas decide only which objects count as small, medium and large.
    """
    sides = boxes_xywh[:, 2] * boxes_xywh[:, 3]
    large, none = areas > 1.05 * sides + 1, (areas <= 1) & (sides > 4)
    for odd, what, cause in (
        (large, "are larger than their box", "of pictures of another size"),
        (none, "are 0, or not above 1", "missing, or fractions of the image"),
    ):
        if odd.sum() > _SHARE * len(areas):
            return (
                f"{odd.sum()} of {len(areas)} areas {what}: they are probably {cause}, and AP by object size goes by "
                "them; without 'area' it goes by the boxes"
            )
    return ""


def _cause(boxes: np.ndarray, sizes: np.ndarray) -> str:
    """Another reading that makes all boxes fit; empty where none does."""

    def fit(starts: np.ndarray, ends: np.ndarray, sizes: np.ndarray = sizes) -> bool:
        room = _SLACK * sizes + 1
        return bool(((starts >= -room) & (ends <= sizes + room)).all())

    start, other = boxes[:, :2], boxes[:, 2:]
    if (other >= start).all() and fit(start, other):
        return "they are probably corners (XYXY: x0, y0, x1, y1), and must be [x, y, width, height]"
    if fit(start - other / 2, start + other / 2):
        return "their x, y are probably the centre, and must be the upper left corner"
    if fit(start, start + other, sizes[:, ::-1]):
        return "width and height of the images are probably swapped"
    if fit(start[:, ::-1], (start + other)[:, ::-1]):
        return "x and y are probably swapped"
    return ""
