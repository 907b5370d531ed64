# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The demo's two pictures: ground truth beside predictions, and how training went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)
from matplotlib.patches import Patch, Rectangle  # noqa: E402

PANEL = 6.5  # inches; with DPI the width of one image in the picture
DPI = 100
PAIRS = 2  # images beside each other, each with its ground truth and its predictions


@dataclass
class Labelled:
    """The boxes of one image, to draw."""

    boxes_xyxy: np.ndarray  # (N, 4) pixels
    classes: Sequence[int]
    scores: Sequence[float] | None = None  # None: ground truth
    ignored_xyxy: np.ndarray = ()  # (R, 4) ignore regions


def draw_predictions(
    path: str, images: Sequence[np.ndarray], truth: Sequence[Labelled], found: Sequence[Labelled], names: Sequence[str]
) -> None:
    """Write pairs of pictures to ``path``: an image's objects on the left, what was found in it on the right.

    Args:
        images: (H, W, 3) uint8 RGB.
    """
    height, width = images[0].shape[:2]
    rows = -(-len(images) // PAIRS)
    size = (2 * PAIRS * PANEL, PANEL * height / width * rows + 1.2)
    figure, axes = plt.subplots(rows, 2 * PAIRS, figsize=size, squeeze=False, layout="constrained")
    colors = [plt.get_cmap("tab10")(i % 10) for i in range(len(names))]
    for axis in axes.flat:
        axis.set_axis_off()
    panels = axes.reshape(-1, 2)
    for (first, second), image, left, right in zip(panels, images, truth, found, strict=False):
        for axis, labelled in ((first, left), (second, right)):
            axis.imshow(image, interpolation="nearest")
            _draw_boxes(axis, labelled, names, colors)
    for first, second in panels[:PAIRS]:
        first.set_title("Ground truth", fontsize=18)
        second.set_title("Predictions (score in percent)", fontsize=18)
    handles = [Patch(color=color, label=name) for name, color in zip(names, colors, strict=True)]
    handles.append(Patch(facecolor="none", edgecolor="white", hatch="///", label="ignore region"))
    legend = figure.legend(handles=handles[:11], loc="outside upper center", ncols=len(handles[:11]), fontsize=16)
    legend.get_frame().set_facecolor("lightgrey")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _draw_boxes(axis, labelled: Labelled, names: Sequence[str], colors: Sequence) -> None:
    for x0, y0, x1, y1 in labelled.ignored_xyxy:
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white", hatch="///", linewidth=1))
    for i, (x0, y0, x1, y1) in enumerate(labelled.boxes_xyxy):
        label = labelled.classes[i]
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colors[label], linewidth=2))
        text = names[label] if labelled.scores is None else f"{names[label]} {100 * labelled.scores[i]:.0f}"
        axis.text(
            *(max(x0, 0), max(y0, 0), text),
            fontsize=11,
            color="white",
            va="bottom" if y0 > 6 else "top",
            bbox={"facecolor": colors[label], "edgecolor": "none", "pad": 1, "alpha": 0.85},
            clip_on=True,
        )


def draw_losses(path: str, metrics_file: str, metric: str = "bbox/AP") -> None:
    """Write the curves of the losses and of ``metric`` from Detectron2's metrics.json (one json per line)."""
    with open(metrics_file) as file:
        lines = [json.loads(line) for line in file]
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5), layout="constrained")
    _curve(left, lines, "total_loss", linewidth=3, color="black")
    for name in ("loss_class", "loss_l1", "loss_giou"):
        _curve(left, lines, f"{name}/final", linewidth=1.5)
    left.set(xlabel="iteration", ylabel="loss (median of 20 iterations)", yscale="log")
    left.set_title("Training loss: all terms together, and the last decoder layer's")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)
    left.grid(alpha=0.3)
    for name in (metric, f"{metric}50"):
        _curve(right, lines, name, marker="o")
    right.set(xlabel="iteration", ylabel="percent", ylim=(0, 100), title="On held-out images")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    right.set_xlim(left.get_xlim())
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _curve(axis, lines: Sequence[dict], name: str, **style) -> None:
    points = [(line["iteration"], line[name]) for line in lines if name in line]
    if points:
        axis.plot(*zip(*points, strict=True), label=name, **style)
