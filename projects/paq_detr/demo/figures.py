# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The demo's picture: ground truth beside predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np

from ..drawing import blend_masks, largest_first

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)
from matplotlib.patches import Patch, Rectangle  # noqa: E402

PANEL = 6.5  # inches; with DPI the width of one image in the picture
DPI = 100
PAIRS = 2  # images beside each other, each with its ground truth and its predictions


@dataclass
class Labelled:
    """The objects of one image, to draw."""

    boxes_xyxy: np.ndarray  # (N, 4) pixels
    classes: Sequence[int]
    scores: Sequence[float] | None = None  # None: ground truth
    ignored_xyxy: np.ndarray = ()  # (R, 4) ignore regions
    masks: Sequence = ()  # N of them, (H, W) bool each, or none


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
            axis.imshow(_with_masks(image, labelled, colors), interpolation="nearest")
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


def _with_masks(image: np.ndarray, labelled: Labelled, colors: Sequence) -> np.ndarray:
    if not len(labelled.masks):
        return image
    image, bytes_of = image.copy(), [tuple(round(255 * part) for part in color[:3]) for color in colors]
    colors_of_masks = [bytes_of[label] for label in labelled.classes]
    blend_masks(image, labelled.masks, colors_of_masks, largest_first(labelled.boxes_xyxy))
    return image


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
