# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Where ASAG looks, and what it finds: patches, anchors, proposals and detections of one image (ASAG's figure C-2).

    python tools/plot_anchors.py --config-file RUN/config.yaml --output anchors.png [--image 0] [--score 0.3] \
        MODEL.WEIGHTS RUN/model_final.pth [KEY VALUE ...]

The image is number --image of DATASETS.TEST. Patches have a colour for each level that is probed; the fixed patches,
the whole image and its quadrants, are not drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from torch import Tensor, nn

from paq_detr.data import DetrDatasetMapper
from paq_detr.engine import UserError, run_cli, setup_config
from paq_detr.engine.evaluate import load_trained
from paq_detr.layers import boxes_cxcywh_to_xyxy
from paq_detr.output_paths import check_output_file
from paq_detr.papers.asag import AdaptiveSparseAnchors, host_scale

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)
from matplotlib.patches import Rectangle  # noqa: E402

COLORS = {16: "tab:orange", 8: "tab:cyan"}  # of the probed levels, by stride


@dataclass
class Seen:
    """What a detector with ASAG's anchors saw in an image; boxes are (N, 4) xyxy in its pixels."""

    patches: Mapping[int, np.ndarray]  # by stride
    anchors: np.ndarray
    proposals: np.ndarray
    detections: np.ndarray
    scores: np.ndarray  # of the detections


@torch.no_grad()
def look(model: nn.Module, image: dict) -> Seen:
    """Run ``model`` on one input dict.

    Raises:
        UserError: its queries are no anchors of ASAG.
    """
    source, route = model.sources["main"], model.routes["main"]
    if not isinstance(source, AdaptiveSparseAnchors):
        raise UserError("The model has no anchors of ASAG to draw (MODEL.DETR.QUERIES.NAME AdaptiveSparseAnchors)")
    model.eval()
    memory = model.encode(model.preprocess([image]))
    scale, chosen = host_scale(memory.grid)[0], []

    def pixels(boxes: Tensor) -> np.ndarray:
        return (boxes_cxcywh_to_xyxy(boxes.cpu()) * scale).numpy()

    def choose(*args):
        chosen.append(type(source).chosen_patches(source, *args))
        return chosen[-1]

    source.chosen_patches = choose
    try:
        queries = source(memory)
    finally:
        del source.chosen_patches
    outputs = route(queries, memory)
    (found,) = route.read_out(outputs, memory)
    return Seen(
        patches={p.stride: p.windows(host_scale(memory.grid)[:, None]).mul(scale).numpy() for p in chosen},
        anchors=pixels(queries.reference[0]),
        proposals=pixels(outputs[0].boxes[0]),
        detections=found.pred_boxes.tensor.cpu().numpy(),
        scores=found.scores.cpu().numpy(),
    )


def draw(path: str, picture: np.ndarray, seen: Seen, score: float) -> None:
    """Write the four panels of an (H, W, 3) uint8 RGB picture to ``path``."""
    height, width = picture.shape[:2]
    figure, axes = plt.subplots(2, 2, figsize=(14, 14 * height / width + 1), layout="constrained")
    found = seen.detections[seen.scores > score]
    total = sum(len(boxes) for boxes in seen.patches.values())
    titles = {
        f"{total} probed patches": [(boxes, COLORS[stride]) for stride, boxes in seen.patches.items()],
        f"{len(seen.anchors)} anchors": [(seen.anchors, "tab:red")],
        f"{len(seen.proposals)} proposals": [(seen.proposals, "tab:green")],
        f"{len(found)} detections above {score:g}": [(found, "yellow")],
    }
    for axis, (title, layers) in zip(axes.flat, titles.items(), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
        for boxes, color in layers:
            for x0, y0, x1, y1 in boxes.tolist():
                axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=1))
    for stride in seen.patches:
        axes[0, 0].plot([], [], color=COLORS[stride], label=f"stride {stride}")
    if seen.patches:
        axes[0, 0].legend(loc="lower right")
    for axis in axes.flat:  # patches may reach beyond the image
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", required=True, help="the picture to write")
    parser.add_argument("--image", type=int, default=0, help="number of the image in the test set")
    parser.add_argument("--score", type=float, default=0.3, help="detections that score higher are drawn")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    args = parser.parse_args()
    args.eval_only = True
    check_output_file("--output", args.output)
    cfg = setup_config(args)
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    if not 0 <= args.image < len(records):
        parser.error(f"--image is {args.image}, the images of {cfg.DATASETS.TEST[0]} are 0 to {len(records) - 1}")
    model = load_trained(cfg)
    image = DetrDatasetMapper(cfg, False)(records[args.image])
    picture = image["image"].permute(1, 2, 0).numpy()
    seen = look(model, image)
    draw(args.output, picture if cfg.INPUT.FORMAT == "RGB" else picture[..., ::-1], seen, args.score)
    sys.stdout.write(f"{len(seen.anchors)} anchors, {sum(map(len, seen.patches.values()))} probed patches\n")


if __name__ == "__main__":
    sys.exit(run_cli(main, "plot_anchors"))
