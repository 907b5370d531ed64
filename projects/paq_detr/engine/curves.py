# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""How a training went, as a picture: its losses and those over the test data, and what evaluation found."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError

logger = logging.getLogger(__name__)

DPI = 100
TERMS = ("total_loss", "loss_class/final", "loss_l1/final", "loss_giou/final")
Lines = Sequence[Mapping[str, Any]]  # of metrics.json


def read_metrics(path: str) -> list[dict[str, Any]]:
    """The lines of a metrics.json.

    Raises:
        UserError: it is missing, or a line is no json object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.strip()]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is no metrics.json of a training: {error}.") from error
    if not all(isinstance(line, dict) and isinstance(line.get("iteration"), int) for line in lines):
        raise UserError(f"{path} is no metrics.json of a training: a line is no object with an iteration.")
    return lines


def draw_curves(path: str, lines: Lines, metric: str = "bbox/AP") -> None:
    """Write a picture to ``path``: losses of training (solid) and over the test data (dashed, points; TEST.LOSS) on the
    left, ``metric`` and its value at an IoU of 0.5 on the right."""
    from matplotlib.figure import Figure  # here, as it takes half a second; without pyplot, which chooses a backend

    figure = Figure(figsize=(14, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, name in enumerate(TERMS):
        style = {"color": "black", "linewidth": 3} if not number else {"color": f"C{number - 1}", "linewidth": 1.5}
        _curve(left, lines, name, name, **style)
        for found in _named(lines, f"validation/{name}"):
            _curve(left, lines, found, found, **style, linestyle="--", marker="o", markersize=4)
    left.set(xlabel="iteration", ylabel="loss (training: median of 20 iterations)", yscale="log")
    left.set_title("Losses: all terms together, and the last decoder layer's")
    for name in (metric, f"{metric}50"):
        for found in _named(lines, name):
            _curve(right, lines, found, found, marker="o")
    right.set(xlabel="iteration", ylabel="percent", ylim=(0, 100), title="On held-out images", xlim=left.get_xlim())
    for axis in (left, right):
        if axis.get_lines():  # matplotlib warns of a legend of nothing
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)


def _named(lines: Lines, name: str) -> list[str]:
    """Where several datasets are evaluated, names of results begin with theirs."""
    return sorted({key for line in lines for key in line if key == name or key.endswith(f"/{name}")})


def _curve(axis: Any, lines: Lines, name: str, label: str, **style: Any) -> None:
    points = [(line["iteration"], line[name]) for line in lines if line.get(name) is not None]
    if points:
        axis.plot(*zip(*points, strict=True), label=label, **style)


def draw_at_end(folder: str) -> None:
    """As :func:`draw_run`, of a training that is done: what goes wrong is a warning."""
    try:
        path = draw_run(folder)
    except (UserError, OSError) as error:
        logger.warning("The curves were not drawn: %s", error)
        return
    if path:
        logger.info("The curves of the losses and of the evaluations are in %s", path)
    else:
        logger.info(
            "No curves are drawn: %s holds fewer than two points of the loss", os.path.join(folder, "metrics.json")
        )


def draw_run(folder: str) -> str:
    """Draw the metrics.json of a run into its folder; returns the picture's path, "" where there is nothing to draw."""
    lines = read_metrics(os.path.join(folder, "metrics.json"))
    if sum("total_loss" in line for line in lines) < 2:
        return ""
    path = os.path.join(folder, "curves.png")
    draw_curves(path, lines)
    return path
