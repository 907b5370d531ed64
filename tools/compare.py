# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Train several configs over several seeds with the same budget, and tabulate mean and spread.

    python tools/compare.py --configs configs/bccd/baseline.yaml configs/bccd/paq.yaml --seeds 1 2 3 \
        --output output/compare_bccd [--jobs 2] [KEY VALUE ...]

Every run is `train_net.py` in a process of its own, in OUTPUT/NAME_seedN; a run that is already finished there is not
repeated, so a comparison that was cut off goes on. KEY VALUE pairs at the end go to every run. The table (markdown and
json) names the machine, the command and every run's own figures.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from detectron2.config import get_cfg

from paq_detr import add_paq_detr_config
from paq_detr.data.json_file import write_json
from paq_detr.engine import build_detector, run_cli
from paq_detr.engine.merge import merge_file
from paq_detr.output_paths import make_output_folder

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    *("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50", "crowd/AP", "crowd/MR", "crowd/JI"),
    *("query_use/gini@0.3", "query_use/active_slots@0.3"),
    *("parameters", "seconds"),
)


def train(config: Path, seed: int, folder: Path, threads: int, options: list[str]) -> dict[str, float | None]:
    """Final metrics of one run (None: not defined): the last evaluation in its metrics.json, and its wall time."""
    metrics_file, done, recipe = folder / "metrics.json", folder / "seconds.txt", folder / "recipe.txt"
    wanted = shlex.join([str(config), str(seed), *options])
    if done.exists() and recipe.read_text() != wanted:
        raise SystemExit(
            f"compare: {folder} holds a run of {recipe.read_text()}, not of {wanted}; choose another --output"
        )
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        metrics_file.unlink(missing_ok=True)
        command = [sys.executable, ROOT / "train_net.py", "--config-file", config, *options]
        command += ["OUTPUT_DIR", folder, "SEED", str(seed)]
        start = time.monotonic()
        with open(folder / "stdout.txt", "w") as log:
            environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
        if code:
            raise SystemExit(f"compare: the run in {folder} ended with {code}; its output is in {folder}/stdout.txt")
        recipe.write_text(wanted)
        done.write_text(f"{time.monotonic() - start:.0f}\n")
    lines = [json.loads(line, parse_constant=lambda _: None) for line in metrics_file.read_text().splitlines()]
    final = [line for line in lines if any(metric_of(name) == "bbox/AP" for name in line)][-1]
    found = {name: value for name, value in final.items() if metric_of(name) in COLUMNS}
    return {**found, "parameters": count_parameters(folder / "config.yaml"), "seconds": float(done.read_text())}


def metric_of(name: str) -> str:
    """The metric's own name, of "mot20_val/bbox/AP" as well, as it is called where a run has several test sets."""
    return "/".join(name.split("/")[-2:])


def count_parameters(config: Path) -> float:
    """Millions of parameters of the model that a run's config.yaml describes, training-only parts left out."""
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    merge_file(cfg, str(config))
    cfg.MODEL.DEVICE = "cpu"
    model = build_detector(cfg)
    model.drop_training_parts()
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def table(results: dict[str, dict[int, dict[str, float | None]]], decimals: int = 2) -> str:
    """Markdown: a row per config, mean +- sample standard deviation over the seeds."""
    measured = {name for runs in results.values() for run in runs.values() for name in run}
    names = sorted(measured, key=lambda name: (name[: -len(metric_of(name))], COLUMNS.index(metric_of(name))))
    lines = ["| config | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for config, runs in results.items():
        cells = []
        for name in names:
            values = [run[name] for run in runs.values() if run.get(name) is not None]
            cell = f"{statistics.mean(values):.{decimals}f}" if values else "-"
            cell += f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
            cells.append(cell + (f" ({len(values)} of {len(runs)} seeds)" if len(values) < len(runs) else ""))
        lines.append(f"| {config} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", type=Path, required=True, help="yaml files of different names")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs and the table")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, which share the processors (or OMP_NUM_THREADS)"
    )
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every run")
    args = parser.parse_args()
    missing = [str(path) for path in args.configs if not path.is_file()]
    if missing or len({path.stem for path in args.configs}) < len(args.configs):
        parser.error(f"no such config: {', '.join(missing)}" if missing else "two configs have the same file name")
    if args.jobs < 1:
        parser.error(f"--jobs is {args.jobs}, must be at least 1")
    make_output_folder("--output", args.output)
    threads = max((os.cpu_count() or 1) // args.jobs, 1)
    # Seed by seed, so that a comparison that is cut off still holds whole seeds.
    runs = [(config, seed) for seed in args.seeds for config in args.configs]

    def run(job: tuple[Path, int]) -> dict[str, float | None]:
        config, seed = job
        return train(config, seed, args.output / f"{config.stem}_seed{seed}", threads, args.options)

    with ThreadPoolExecutor(args.jobs) as pool:
        figures = list(pool.map(run, runs))
    results: dict[str, dict[int, dict[str, float | None]]] = {config.stem: {} for config in args.configs}
    for (config, seed), metrics in zip(runs, figures):
        results[config.stem][seed] = metrics
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, " + (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    )
    report = {"command": shlex.join(sys.argv), "machine": machine, "results": results}
    write_json(report, args.output / "comparison.json")
    about = f"Seeds {args.seeds}, mean ± sample standard deviation; parameters in millions; seconds of wall clock with "
    text = f"{table(results)}\n\n{about}{args.jobs} runs at a time; {machine}.\n"
    (args.output / "comparison.md").write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(run_cli(main, "compare"))
