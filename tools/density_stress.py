# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""How models trained on the synthetic crowd bear crowds denser than those they were trained on.

    python tools/density_stress.py --runs output/crowd/baseline output/crowd/dh --densities 4 8 16 32 \
        --output output/density [KEY VALUE ...]

Every RUN holds what training wrote (config.yaml, model_final.pth). It is evaluated on synthetic crowds of every density
(mean number of figures in an image); KEY VALUE pairs at the end go to every evaluation. Writes density.md, density.json
and density.png: AP, MR-2, JI, recall, and duplicates per object (further detections of it above the score of the best
JI), in all and by the object's largest IoU with another. The picture takes NAME_seed1, NAME_seed2 ... for seeds of one
config.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np

from paq_detr.data.json_file import write_json
from paq_detr.engine import Trainer, run_cli, setup_config
from paq_detr.engine.evaluate import load_trained
from paq_detr.output_paths import make_output_folder

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)

METRICS = ("AP", "MR", "JI", "Recall", "duplicates")
TITLES = {
    "AP": "AP (%), higher is better",
    "MR": "MR-2 (%), lower is better",
    "JI": "JI (%), higher is better",
    "Recall": "recall (%), higher is better",
    "duplicates": "duplicates per object, lower is better",
}


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
    results = Trainer.test(cfg, load_trained(cfg))["crowd"]
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


def by_config(results: dict[str, dict[float, dict]]) -> dict[str, list[dict[float, dict]]]:
    """The runs by the name of their config: NAME_seed1 and NAME_seed2 are seeds of NAME."""
    found: dict[str, list[dict[float, dict]]] = {}
    for run, rows in results.items():
        found.setdefault(re.sub(r"_seed\d+$", "", run), []).append(rows)
    return found


def draw(path: Path, results: dict[str, dict[float, dict]]) -> None:
    """A panel per metric against density, and one of duplicates against crowdedness at the highest density.

    All percentages share one axis, and so do the duplicates. Of several seeds the mean is drawn in a band from the
    least value to the largest.
    """
    figure, grid = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    axes, densest = grid.flat, max(density for rows in results.values() for density in rows)
    for config, seeds in by_config(results).items():
        for axis, name in zip(axes, METRICS):
            _line(axis, config, [{density: row[name] for density, row in rows.items()} for rows in seeds])
        crowds = [rows[densest]["duplicates_by_crowdedness"] for rows in seeds if densest in rows]
        _line(axes[-1], config, [{float(key.rstrip("+")): value for key, value in crowd.items()} for crowd in crowds])
    for axis, name in zip(axes, METRICS):
        axis.set(title=TITLES[name], xlabel="figures drawn in an image")
        if name != "duplicates":
            axis.set(ylim=(0, 100))
    axes[-1].set(
        title=f"duplicates at density {densest:g}, lower is better", xlabel="object's largest IoU with another"
    )
    top = max(axis.get_ylim()[1] for axis in axes[-2:])
    for axis in axes[-2:]:
        axis.set(ylim=(0, top))
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend()
    most = max(map(len, by_config(results).values()))
    spread = f"lines: mean of up to {most} seeds, bands: least to largest" if most > 1 else "one seed each: no spread"
    figure.supxlabel(f"The further right, the denser the crowd; {spread}.", fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _line(axis: plt.Axes, label: str, seeds: list[dict[float, float]]) -> None:
    """The mean of the seeds that have a value there, and the band of all."""
    places = sorted({place for values in seeds for place in values})
    columns = [[values[place] for values in seeds if place in values] for place in places]
    (line,) = axis.plot(places, [np.mean(column) for column in columns], marker="o", label=label)
    if len(seeds) > 1:
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        axis.fill_between(places, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, required=True)
    parser.add_argument("--densities", nargs="+", type=float, default=[4, 8, 16, 32])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every evaluation")
    args = parser.parse_args()
    if len({run.name for run in args.runs}) < len(args.runs):
        parser.error("two runs have the same folder name, which labels their rows")
    make_output_folder("--output", args.output)
    results = {
        run.name: {density: evaluate(run, density, args.output, args.options) for density in args.densities}
        for run in args.runs
    }
    write_json(results, args.output / "density.json")
    (args.output / "density.md").write_text(table(results) + "\n")
    draw(args.output / "density.png", results)
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    sys.exit(run_cli(main, "density_stress"))
