# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Drawn detections: seen where they are, in the colour of their class, and their labels never one over the other."""

import numpy as np
import pytest
from PIL import ImageDraw

from paq_detr import drawing
from paq_detr.drawing import draw_detections

GREY = np.full((300, 400, 3), 90, np.uint8)


def draw(boxes, classes=None, names=("cat", "dog"), scores=None, image=GREY, **options):
    classes = np.array([0] * len(boxes) if classes is None else classes)
    scores = np.ones(len(boxes)) if scores is None else np.array(scores)
    return draw_detections(image, np.array(boxes, float).reshape(-1, 4), classes, scores, names, **options)


@pytest.fixture
def written(monkeypatch):
    """The texts that are drawn, and the rectangles below them."""
    texts, grounds = [], []
    rectangle, text = ImageDraw.ImageDraw.rectangle, ImageDraw.ImageDraw.text

    def draw_rectangle(self, box, **options):
        grounds.append(box)
        rectangle(self, box, **options)

    def draw_text(self, place, words, **options):
        texts.append(words)
        text(self, place, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", draw_rectangle)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", draw_text)
    return texts, grounds


def test_lines_run_along_the_box_and_the_rest_of_the_picture_stays():
    drawn = np.asarray(draw([(50, 60, 150, 160)], labels="off"))
    changed = np.argwhere((drawn != GREY).any(-1))
    assert (changed.min(0) >= [59, 49]).all() and (changed.max(0) <= [160, 150]).all()
    assert (drawn[70:150, 60:140] == GREY[70:150, 60:140]).all()
    assert (GREY == 90).all()  # the given picture


def test_a_class_has_one_colour_and_of_a_single_class_neighbours_differ():
    boxes = [(10 + 60 * i, 50, 60 + 60 * i, 100) for i in range(4)]

    def colors(classes, names):
        return drawing._colors(np.array(boxes, float), np.array(classes), len(names))

    first, second, third, fourth = colors([0, 1, 0, 1], ("cat", "dog"))
    assert first == third and second == fourth and first != second
    assert len(set(colors([0, 0, 0, 0], ("cat",)))) == 4


def test_labels_never_stand_one_over_the_other(written):
    random = np.random.RandomState(0)
    corners = random.randint(0, 200, (60, 2))
    draw(np.concatenate([corners, corners + 40], 1), labels="on", show_scores=True)
    texts, grounds = written
    *labels, legend = grounds  # some found no place, so that a legend counts them
    assert 5 < len(labels) < 60 and texts[0] == "cat 1.00" and texts[-1] == "cat: 60"
    for i, a in enumerate(labels):
        assert a[0] >= 0 and a[1] >= 0 and a[2] < 400 and a[3] < 300
        assert not any(a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3] for b in labels[:i])


@pytest.mark.parametrize("count, labels, expected", [
    (2, "auto", ["cat", "cat"]),
    (2, "off", []),
    (40, "auto", ["cat: 40"]),
    (40, "off", []),
    (0, "on", []),
])  # fmt: skip
def test_many_detections_are_counted_in_place_of_labels(written, count, labels, expected):
    boxes = [(20 + 45 * (i % 8), 30 + 50 * (i // 8), 55 + 45 * (i % 8), 60 + 50 * (i // 8)) for i in range(count)]
    draw(boxes, labels=labels)
    assert written[0] == expected


def test_hundreds_of_boxes_have_thin_lines_without_edges():
    boxes = [(10 + 8 * (i % 40), 40 + 60 * (i // 40), 16 + 8 * (i % 40), 80 + 60 * (i // 40)) for i in range(160)]
    drawn = np.asarray(draw(boxes, labels="off"))
    assert (drawn[60, 9] == 90).all() and (drawn[60, 10] != 90).any() and (drawn[60, 11] == 90).all()


@pytest.mark.parametrize("box", [(-50, -50, 1000, 1000), (399, 299, 400, 300), (5, 5, 5, 5), (0.2, 0.2, 0.6, 0.4)])
def test_boxes_at_and_beyond_the_edge_are_drawn(box):
    assert draw([box], labels="on").size == (400, 300)
    assert draw([box], image=np.zeros((1, 1, 3), np.uint8)).size == (1, 1)
