# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads drawn values back from figures, so that a picture is tested by what it shows."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved during the test, by the file's name; each file is a picture of the figure's size."""
    saved = {}
    save = Figure.savefig

    def keep(figure, path, **options):
        save(figure, path, **options)
        width, height = figure.get_size_inches() * options["dpi"]
        assert plt.imread(path).shape[:2] == pytest.approx((height, width), abs=1)
        saved[Path(path).name] = figure

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def curves(axis):
    """``{label: ([x, ...], [y, ...])}`` of an axis' lines."""
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axis.lines}


def rectangles(axis):
    """The patches of an axis as x0, y0, x1, y1."""
    return [(p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in axis.patches]


def texts(axis):
    return [text.get_text() for text in axis.texts]
