# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Draw who sees whom in self-attention when denoising queries stand in front of the others.

    python tools/plot_denoising_mask.py [--output docs/images/denoising_mask.png]

One image with three objects, two groups of contrastive denoising (positives, then negatives), eight matching queries.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from paq_detr.engine import run_cli
from paq_detr.output_paths import check_output_file
from paq_detr.papers.denoising import group_mask

OBJECTS, GROUPS, MATCHING = 3, 2, 8
SEEN = ("cannot be seen", "own group", "matching queries")


def kinds(mask: torch.Tensor, denoising: int) -> torch.Tensor:
    """(P + N, P + N): index into ``SEEN`` of what a row sees in a column."""
    seen = (~mask).long()
    seen[:, denoising:] *= 2
    return seen


def draw(path: Path) -> None:
    size = 2 * OBJECTS
    denoising = GROUPS * size
    mask = group_mask(GROUPS, size, torch.zeros(MATCHING, MATCHING, dtype=torch.bool))
    colors = ListedColormap(["#e8e8e8", "#d9772b", "#2f6fb0"])
    figure, axes = plt.subplots(figsize=(6.4, 5.4), dpi=130)
    axes.imshow(kinds(mask, denoising), cmap=colors, vmin=0, vmax=2)
    total = len(mask)
    for edge in range(total + 1):
        axes.axhline(edge - 0.5, color="white", linewidth=0.6)
        axes.axvline(edge - 0.5, color="white", linewidth=0.6)
    middles, names = [], []
    for group in range(GROUPS):
        for kind, name in enumerate(("positive", "negative")):
            middles.append(group * size + kind * OBJECTS + (OBJECTS - 1) / 2)
            names.append(f"group {group + 1}\n{name}")
    middles.append(denoising + (MATCHING - 1) / 2)
    names.append("matching")
    axes.set_xticks(middles, names, fontsize=8)
    axes.set_yticks(middles, names, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel("query that is seen")
    axes.set_ylabel("query that looks")
    axes.set_title("Contrastive denoising: who sees whom", fontsize=11)
    handles = [Patch(color=colors(index), label=name) for index, name in enumerate(SEEN)]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3, frameon=False, fontsize=9)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/images/denoising_mask.png"))
    path = parser.parse_args().output
    check_output_file("--output", path)
    draw(path)


if __name__ == "__main__":
    sys.exit(run_cli(main, "plot_denoising_mask"))
