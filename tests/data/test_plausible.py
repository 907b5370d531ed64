# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Boxes that are hardly [x, y, width, height] in pixels get one counted sentence with the likely cause."""

import logging
import re

import numpy as np
import pytest

from paq_detr.data import register_coco_json
from paq_detr.data.plausible import doubt_about_boxes

SIZE = np.array([400.0, 300.0])  # width, height


def boxes(count=60):
    """Plausible boxes of many sizes that lie in the image, some of which end at its edge."""
    random = np.random.default_rng(0)
    extent = random.uniform(0.02, 0.5, (count, 2)) * SIZE
    start = random.uniform(0, 1, (count, 2)) * (SIZE - extent)
    start[::7] = (SIZE - extent)[::7]
    return np.concatenate([start, extent], 1)


def corners(b):
    return np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], 1)


def centres(b):
    return np.concatenate([b[:, :2] + b[:, 2:] / 2, b[:, 2:]], 1)


DOUBTS = {
    "corners": (corners, SIZE, "probably corners"),
    "rounded corners": (lambda b: corners(b).round(), SIZE, "probably corners"),
    "centres": (centres, SIZE, "probably the centre"),
    "fractions": (lambda b: b / np.tile(SIZE, 2), SIZE, "^60 of 60 boxes .*probably fractions"),
    "fractions as corners": (lambda b: corners(b) / np.tile(SIZE, 2), SIZE, "probably fractions"),
    "the image's sides swapped": (lambda b: b, SIZE[::-1], "width and height of the images are probably swapped"),
    "x and y swapped": (lambda b: b[:, [1, 0, 3, 2]], SIZE, "swapped"),
    "of pictures twice as large": (lambda b: 2 * b, SIZE, "probably of pictures of another size"),
}


@pytest.mark.parametrize("change, size, message", DOUBTS.values(), ids=DOUBTS)
def test_the_likely_cause_is_named(change, size, message):
    changed = change(boxes())
    doubt = doubt_about_boxes(changed, np.tile(size, (len(changed), 1)))
    assert re.search(message, doubt) and re.match(r"\d+ of 60 boxes", doubt) and "\n" not in doubt


FINE = {
    "as they are": lambda b: b,
    "large ones": lambda b: np.tile([0, 0, *SIZE], (9, 1)),
    "tiny ones": lambda b: b * [1, 1, 0.001, 0.001],
    "a few reach far outside": lambda b: np.where(np.arange(len(b))[:, None] % 10 == 0, b * [1, 1, 4, 4], b),
    "rounded outwards": lambda b: np.concatenate([np.floor(b[:, :2]), np.ceil(b[:, 2:]) + 1], 1),
    "none": lambda b: b[:0],
}


@pytest.mark.parametrize("change", FINE.values(), ids=FINE)
def test_plausible_boxes_give_none(change):
    changed = change(boxes())
    assert doubt_about_boxes(changed, np.tile(SIZE, (len(changed), 1))) == ""


def test_a_dataset_warns_once_with_its_file(content, save, caplog):
    content["annotations"][0]["bbox"] = [20, 10, 39, 29]
    content["annotations"][1]["bbox"] = [25, 5, 35, 25]
    content["annotations"][2]["bbox"] = [3, 4, 30, 30]
    path, root = save(content)
    register_coco_json("cells", path, root)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    text = "3 of 3 boxes reach far outside their image: they are probably corners (XYXY"
    assert warnings[0].startswith(f"dataset 'cells' ({path}): {text}")


def test_negative_sizes_are_counted(content, save):
    content["annotations"][1]["bbox"][2] = content["annotations"][2]["bbox"][3] = -4
    path, root = save(content)
    with pytest.raises(ValueError, match="bbox of annotation 2 has a negative size: .*, as have 2 of 3; a bbox is"):
        register_coco_json("cells", path, root)
