# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Timing of rival functions side by side, and the table and JSON that come out of it."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads on CPU")
    parser.add_argument("--rounds", type=int, default=15, help="times every rival runs; the fastest counts")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, for a CPU that others use too (with --threads 1, as waiting threads count)",
    )
    parser.add_argument("--json", type=Path, help="write machine and rows there as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    return args


def machine(device: str, clock: str = "wall") -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "name": torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": clock,
        "torch": torch.__version__,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


@dataclass(frozen=True)
class Timing:
    """Milliseconds. What else runs on a machine only ever adds time, so the fastest round is the function's own."""

    best: float
    median: float


def time_ms(
    rivals: Mapping[str, Callable[[], object]], rounds: int, device: str, clock: str = "wall"
) -> dict[str, Timing]:
    """Times the rivals in turn, so that a busy machine disturbs all of them alike."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    now = time.process_time if clock == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for round_index in range(rounds + 2):
        for name, function in rivals.items():
            wait()
            start = now()
            function()
            wait()
            if round_index >= 2:  # the first two rounds warm up
                times[name].append((now() - start) * 1e3)
    return {name: Timing(min(values), statistics.median(values)) for name, values in times.items()}


def compared(timings: Mapping[str, Timing], ours: str = "ours") -> dict[str, object]:
    """Columns of a row: each rival's best time, and how many times faster ours is than the fastest other (and the
    same of the medians, for the record)."""
    row: dict[str, object] = {f"{name} ms": timing.best for name, timing in timings.items()}
    others = [timing for name, timing in timings.items() if name != ours]
    row["speed-up"] = round(min(t.best for t in others) / timings[ours].best, 1)
    row["of medians"] = round(min(t.median for t in others) / timings[ours].median, 1)
    return row


def report(rows: Sequence[Mapping[str, object]], args: argparse.Namespace) -> None:
    """Prints the rows as a table under the machine's name; every row has the same keys."""
    about = machine(args.device, args.clock)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    cells = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "rows": list(rows)}, indent=2) + "\n")


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
