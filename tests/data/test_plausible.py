# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Boxes that are hardly [x, y, width, height] in pixels get one counted sentence with the likely cause."""

import logging
import re

import numpy as np
import pytest

from paq_detr.data import register_coco_json
from paq_detr.data.plausible import doubt_about_areas, doubt_about_boxes

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
    "percents": (lambda b: 100 * b / np.tile(SIZE, 2), SIZE, "^60 of 60 boxes end within 100 pixels, .*Label Studio"),
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
    "a few in the corner": lambda b: b[:10] * 0.25,
    "all in the first 40 pixels": lambda b: b * 0.1,
}


@pytest.mark.parametrize("change", FINE.values(), ids=FINE)
def test_plausible_boxes_give_none(change):
    changed = change(boxes())
    assert doubt_about_boxes(changed, np.tile(SIZE, (len(changed), 1))) == ""


def test_to_end_outside_may_be_right_but_not_to_fit_as_corners():
    sizes = np.tile(SIZE, (60, 1))
    assert doubt_about_boxes(2 * boxes(), sizes, may_end_outside=True) == ""
    for change, message in ((corners, "probably corners"), (lambda b: b / np.tile(SIZE, 2), "probably fractions")):
        assert message in doubt_about_boxes(change(boxes()), sizes, may_end_outside=True)


AREAS = {
    "of the boxes": (lambda sides: sides, ""),
    "of outlines": (lambda sides: 0.4 * sides, ""),
    "some are 0": (lambda sides: np.where(np.arange(len(sides)) % 10 == 0, 0, sides), ""),
    "none given": (lambda sides: sides[:0], ""),
    "all are 0": (lambda sides: 0 * sides, "60 of 60 areas are 0, or not above 1: they are probably missing"),
    "fractions": (lambda sides: sides / SIZE.prod(), "60 of 60 areas are 0, or not above 1"),
    "of pictures twice as large": (lambda sides: 4 * sides, "60 of 60 areas are larger than their box"),
    "of the images": (lambda sides: 0 * sides + SIZE.prod(), r"\d+ of 60 areas are larger than their box"),
}


@pytest.mark.parametrize("change, message", AREAS.values(), ids=AREAS)
def test_areas_that_cannot_be_of_their_boxes_are_counted(change, message):
    areas = change(boxes()[:, 2:].prod(1))
    doubt = doubt_about_areas(areas, boxes()[: len(areas)])
    assert re.match(message, doubt) if message else doubt == ""


def test_a_dataset_tells_of_its_areas(content, save, caplog):
    for annotation in content["annotations"]:
        annotation["area"] = 0
    path, root = save(content)
    register_coco_json("cells", path, root)
    assert any(m.startswith(f"dataset 'cells' ({path}): 3 of 3 areas are 0") for m in caplog.messages)


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
