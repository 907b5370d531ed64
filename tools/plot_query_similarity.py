# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Do overlapping queries look alike? Cosine similarity of query pairs against their IoU (the evidence of DH-DETR).

    python tools/plot_query_similarity.py --config-file RUN/config.yaml --output OUT [--images 50] [--score 0.1] \
        MODEL.WEIGHTS RUN/model_final.pth [KEY VALUE ...]

For every decoder layer, the content that enters it and the content behind its query-to-query step: DH-DETR's generator,
or self-attention. Pairs are those of queries of one image that overlap and that both score above --score in the first
layer. Writes query_similarity.png and query_similarity.json into OUT; IoU bins with few pairs are in the numbers only.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

import matplotlib
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from paq_detr.data import DetrDatasetMapper
from paq_detr.data.json_file import write_json
from paq_detr.engine import run_cli, setup_config
from paq_detr.engine.evaluate import load_trained
from paq_detr.layers import boxes_cxcywh_to_xyxy
from paq_detr.output_paths import make_output_folder

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)

BINS = np.linspace(0, 1, 11)  # of IoU
MIN_PAIRS = 10  # of a bin that is drawn


def pair_similarity(content: Tensor, boxes: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """IoU and cosine of all pairs of (N, C) queries with (N, 4) boxes that overlap, each (P,)."""
    corners = boxes_cxcywh_to_xyxy(boxes.float())
    unit = F.normalize(content.float(), dim=-1)
    row, column = torch.triu_indices(len(boxes), len(boxes), offset=1, device=boxes.device)
    iou, cosine = box_iou(corners, corners)[row, column], (unit @ unit.T)[row, column]
    overlap = iou > 0
    return iou[overlap].cpu().numpy(), cosine[overlap].cpu().numpy()


@dataclass
class Pairs:
    """The pairs seen at one place of one layer."""

    iou: list[np.ndarray] = field(default_factory=list)
    cosine: list[np.ndarray] = field(default_factory=list)

    def add(self, content: Tensor, boxes: Tensor) -> None:
        iou, cosine = pair_similarity(content, boxes)
        self.iou.append(iou)
        self.cosine.append(cosine)

    def by_iou(self) -> list[dict[str, float]]:
        """Count, mean and standard deviation of the cosine for every IoU bin that has a pair."""
        iou, cosine = np.concatenate([*self.iou, []]), np.concatenate([*self.cosine, []])
        place = np.clip(np.digitize(iou, BINS) - 1, 0, len(BINS) - 2)
        rows = []
        for index in range(len(BINS) - 1):
            values = cosine[place == index]
            if len(values):
                middle = (BINS[index] + BINS[index + 1]) / 2
                statistics = {"pairs": len(values), "mean": float(values.mean()), "std": float(values.std())}
                rows.append({"iou": round(float(middle), 3), **statistics})
        return rows


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[list[dict]], score: float) -> list[dict[str, Pairs]]:
    """For every decoder layer of the main route the pairs "before" and "after" its query-to-query step."""
    model.eval()
    decoder = model.routes["main"].decoder
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []  # of each layer, for the present batch
    entered, scores = [], []

    def enter(layer, inputs):
        entered.append(inputs[0].content)

    def behind(cross_attention, inputs):
        state = inputs[0]
        seen.append((entered.pop(), state.content, state.reference, state.alive))

    def finish(decoder, inputs, outputs):
        scores.append(outputs[0].best_score())

    hooks = [decoder.register_forward_hook(finish)]
    for layer in decoder.layers:
        hooks += [layer.register_forward_pre_hook(enter), layer.cross_attention.register_forward_pre_hook(behind)]
    pairs = [{"before": Pairs(), "after": Pairs()} for _ in decoder.layers]
    try:
        for batch in batches:
            seen.clear()
            model(batch)
            confident = scores.pop() > score
            for (before, after, reference, valid), of_layer in zip(seen, pairs):
                chosen = confident if valid is None else confident & valid
                if reference.shape[-1] == 4:  # points do not overlap
                    for image, keep in enumerate(chosen):
                        of_layer["before"].add(before[image, keep], reference[image, keep])
                        of_layer["after"].add(after[image, keep], reference[image, keep])
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


def draw(path: str, layers: list[dict[str, list[dict[str, float]]]], title: str) -> None:
    """A panel per layer: mean cosine (band: one standard deviation) against IoU, before and after."""
    size = (4.5 * len(layers), 5)
    figure, axes = plt.subplots(1, len(layers), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for number, (axis, layer) in enumerate(zip(axes[0], layers), start=1):
        # Wide under narrow: where the step changes nothing, both lines are still seen.
        for place, color, width in (("before", "tab:orange", 5), ("after", "tab:blue", 1.5)):
            rows = [row for row in layer[place] if row["pairs"] >= MIN_PAIRS]
            iou, mean, std = (np.array([row[key] for row in rows]) for key in ("iou", "mean", "std"))
            axis.plot(iou, mean, color=color, marker="o", linewidth=width, label=f"{place} the query-to-query step")
            axis.fill_between(iou, mean - std, (mean + std).clip(max=1), color=color, alpha=0.2, linewidth=0)
            if place == "before" and not rows:  # as many pairs are seen after it
                reason = f"fewer than {MIN_PAIRS} pairs\nin every IoU bin" if layer[place] else "no pairs"
                axis.text(0.5, 0.5, reason, transform=axis.transAxes, ha="center", va="center")
        axis.set(xlim=(0, 1), xlabel="IoU of the pair", title=f"Decoder layer {number}")
        axis.grid(alpha=0.3)
    axes[0, 0].set(ylabel="cosine of the contents, mean ± std", ylim=(min(axes[0, 0].get_ylim()[0], -0.2), 1.05))
    figure.suptitle(title)
    about = "A blue line below the orange one: the step tells overlapping queries apart. At 1 they look alike."
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, title=about)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", required=True, help="folder for the picture and the numbers")
    parser.add_argument("--images", type=int, default=50, help="the first so many images of the test set")
    parser.add_argument("--score", type=float, default=0.1, help="both queries score higher in the first layer")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    args = parser.parse_args()
    args.eval_only = True
    if args.images < 1:
        parser.error(f"--images is {args.images}, must be at least 1")
    make_output_folder("--output", args.output)
    cfg = setup_config(args)
    model = load_trained(cfg)
    mapper = DetrDatasetMapper(cfg, False)
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])[: args.images]
    pairs = measure(model, ([mapper(record)] for record in records), args.score)
    layers = [{place: found.by_iou() for place, found in of_layer.items()} for of_layer in pairs]
    run = os.path.basename(os.path.dirname(os.path.abspath(cfg.MODEL.WEIGHTS)))
    title = f"{run}: pairs of queries that overlap and both score above {args.score:g}, on {len(records)} images"
    draw(os.path.join(args.output, "query_similarity.png"), layers, title)
    content = {"weights": cfg.MODEL.WEIGHTS, "images": len(records), "score": args.score, "layers": layers}
    write_json(content, os.path.join(args.output, "query_similarity.json"))
    for number, layer in enumerate(layers, start=1):
        for place, rows in layer.items():
            cells = "  ".join(f"{row['iou']:.2f}: {row['mean']:.3f}" for row in rows)
            sys.stdout.write(f"layer {number}, {place:6}  IoU: cosine  {cells or 'no pairs'}\n")


if __name__ == "__main__":
    sys.exit(run_cli(main, "plot_query_similarity"))
