# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What ASAG's probing of finer levels finds, and what it takes: P3 to P6, P4 to P6, P5 and P6 alone (ASAG's table 2).

    python tools/anchor_levels.py --runs output/bccd/asag_a output/bccd/adamixer --output output/levels [KEY VALUE ...]

Every RUN holds what training wrote (config.yaml, model_final.pth). Its test images are evaluated one by one; runs of
detectors without ASAG's anchors have one row, for comparison. Writes anchor_levels.md and anchor_levels.json: AP, and
means of an image's queries, its probed patches (of stride 16 and of stride 8) and milliseconds, on a CPU of the
processor. Time with OMP_NUM_THREADS=1 where others use the CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from query_count import clock, configured
from torch import nn

from paq_detr.data.json_file import write_json
from paq_detr.engine import Trainer, run_cli
from paq_detr.engine.evaluate import load_trained
from paq_detr.output_paths import make_output_folder
from paq_detr.papers.asag import AdaptiveSparseAnchors

LEVELS = {"P3 to P6": 2, "P4 to P6": 1, "P5, P6": 0}
COLUMNS = ("AP", "AP50", "queries", "stride 16", "stride 8", "ms")


class Watch:
    """What a model does with each image."""

    def __init__(self, model: nn.Module):
        self.ms: list[float] = []
        self.queries: list[int] = []
        self.patches: dict[int, int] = {16: 0, 8: 0}
        self.now = clock(next(model.parameters()).device)
        source = model.sources["main"]
        model.register_forward_pre_hook(lambda *_: self.ms.append(-1e3 * self.now()))
        model.register_forward_hook(self.stop)
        source.register_forward_hook(self.count)
        if isinstance(source, AdaptiveSparseAnchors):
            source.probe = self.counting(source.probe)

    def stop(self, *_) -> None:
        self.ms[-1] += 1e3 * self.now()

    def count(self, source: nn.Module, inputs: tuple, queries) -> None:
        self.queries.append(queries.reference.shape[1] if queries.valid is None else int(queries.valid.sum()))

    def counting(self, probe: Callable) -> Callable:
        def counted(number, patches, memory):
            self.patches[patches.stride] += len(patches)
            return probe(number, patches, memory)

        return counted


def evaluate(run: Path, levels: int | None, options: list[str]) -> dict[str, float]:
    """What ``COLUMNS`` say; ``levels``: how many are probed (None: as the run's config has it)."""
    opts = ["MODEL.WEIGHTS", run / "model_final.pth", "OUTPUT_DIR", run / "anchor_levels"]
    opts += [] if levels is None else ["MODEL.DETR.ASAG.TEST_LEVELS", levels]
    cfg = configured(run, [*opts, *options])
    model = load_trained(cfg)
    watch = Watch(model)
    found = Trainer.test(cfg, model)["bbox"]
    images = len(watch.ms)
    row = {"AP": found["AP"], "AP50": found["AP50"], "queries": mean(watch.queries), "ms": mean(watch.ms)}
    if levels is not None:
        row |= {f"stride {stride}": count / images for stride, count in watch.patches.items()}
    return row


def has_anchors(run: Path) -> bool:
    return configured(run, []).MODEL.DETR.QUERIES.NAME == "AdaptiveSparseAnchors"


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = ["| run | levels | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for run, rows in results.items():
        for levels, row in rows.items():
            cells = (f"{row[name]:.1f}" if name in row else "-" for name in COLUMNS)
            lines.append(f"| {run} | {levels} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every evaluation")
    args = parser.parse_args()
    make_output_folder("--output", args.output)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for run in args.runs:
        levels = LEVELS if has_anchors(run) else {"all": None}
        results[run.name] = {name: evaluate(run, number, args.options) for name, number in levels.items()}
    write_json(results, args.output / "anchor_levels.json")
    (args.output / "anchor_levels.md").write_text(table(results) + "\n")
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    sys.exit(run_cli(main, "anchor_levels"))
