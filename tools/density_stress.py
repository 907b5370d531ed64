# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""How models trained on the synthetic crowd bear crowds denser than those they were trained on.

    python tools/density_stress.py --runs output/crowd/baseline output/crowd/dh --densities 4 8 16 32 \
        --output output/density [KEY VALUE ...]

Every RUN holds what training wrote (config.yaml, model_final.pth). It is evaluated on synthetic crowds of every density
(mean number of figures in an image); KEY VALUE pairs at the end go to every evaluation. Writes density.md, density.json
and density.png: AP, MR-2, JI, recall, and duplicates per object (further detections of it above the score of the best
JI), in all and by the object's largest IoU with another.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import matplotlib

from paq_detr.data.json_file import write_json
from paq_detr.engine import DetrCheckpointer, Trainer, build_detector, run_cli, setup_config

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)

METRICS = ("AP", "MR", "JI", "Recall", "duplicates")


def duplicates(metrics_file: Path) -> dict[str, float]:
    """Duplicates per object by the object's crowdedness (``""``: of all), over all classes of a crowd_metrics.json."""
    found: dict[str, float] = {}
    objects: dict[str, int] = {}
    for summary in json.loads(metrics_file.read_text())["classes"].values():
        for bucket, row in summary["by_person_crowdedness"].items():
            for key in ("", bucket):
                found[key] = found.get(key, 0.0) + row["duplicates"] * row["persons"]
                objects[key] = objects.get(key, 0) + row["persons"]
    return {key: found[key] / objects[key] for key in sorted(found)}


def evaluate(run: Path, density: float, output: Path, options: list[str]) -> dict[str, float | dict[str, float]]:
    """The metrics of one run at one density; AP, MR, JI and Recall in percent."""
    folder = output / f"{run.name}_density{density:g}"
    settings = {
        "MODEL.WEIGHTS": run / "model_final.pth",
        "OUTPUT_DIR": folder,
        "DATASETS.TEST": ("synthetic_crowd_val",),
        "DATASETS.SYNTHETIC_CROWD.DENSITY": density,
        "TEST.CROWD.ENABLED": True,
    }
    opts = [str(part) for setting in settings.items() for part in setting]
    cfg = setup_config(argparse.Namespace(config_file=str(run / "config.yaml"), opts=[*opts, *options], eval_only=True))
    model = build_detector(cfg)
    DetrCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model.eval())["crowd"]
    of_objects = duplicates(folder / "inference" / "synthetic_crowd_val" / "crowd_metrics.json")
    row = {name: results[name] for name in METRICS if name in results}
    return {**row, "duplicates": of_objects.pop("", float("nan")), "duplicates_by_crowdedness": of_objects}


def table(results: dict[str, dict[float, dict]]) -> str:
    lines = ["| run | density | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 2) + "|"]
    for run, rows in results.items():
        for density, row in rows.items():
            cells = [f"{row[name]:.3f}" if name == "duplicates" else f"{row[name]:.2f}" for name in METRICS]
            lines.append(f"| {run} | {density:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: Path, results: dict[str, dict[float, dict]]) -> None:
    """A panel per metric against density, and one of duplicates against crowdedness at the highest density."""
    figure, grid = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    axes = grid.flat
    for run, rows in results.items():
        for axis, name in zip(axes, METRICS):
            axis.plot(list(rows), [row[name] for row in rows.values()], marker="o", label=run)
        buckets = rows[max(rows)]["duplicates_by_crowdedness"]
        axes[-1].plot([float(name.rstrip("+")) for name in buckets], list(buckets.values()), marker="o", label=run)
    for axis, name in zip(axes, METRICS):
        title = "duplicates per object" if name == "duplicates" else f"{name} (%)"
        axis.set(title=title, xlabel="figures drawn in an image")
    axes[-1].set(title=f"duplicates per object at density {max(rows):g}", xlabel="object's largest IoU with another")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, required=True)
    parser.add_argument("--densities", nargs="+", type=float, default=[4, 8, 16, 32])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every evaluation")
    args = parser.parse_args()
    if len({run.name for run in args.runs}) < len(args.runs):
        parser.error("two runs have the same folder name, which labels their rows")
    results = {
        run.name: {density: evaluate(run, density, args.output, args.options) for density in args.densities}
        for run in args.runs
    }
    os.makedirs(args.output, exist_ok=True)
    write_json(results, args.output / "density.json")
    (args.output / "density.md").write_text(table(results) + "\n")
    draw(args.output / "density.png", results)
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    sys.exit(run_cli(main, "density_stress"))
