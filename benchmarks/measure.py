# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Timing of rival functions side by side, and the table and JSON that come out of it."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


def parser_of(description: str) -> argparse.ArgumentParser:
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
    parser.add_argument(
        "--cold",
        action="store_true",
        help="single calls, each after the caches were emptied, instead of one call after the other",
    )
    parser.add_argument("--json", type=Path, help="write machine and rows there as well, row by row")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that the script runs")
    return parser


def arguments(description: str, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    args = (parser or parser_of(description)).parse_args()
    torch.set_num_threads(args.threads)
    return args


def machine(device: str) -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "name": torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


@dataclass(frozen=True)
class Timing:
    """Milliseconds. What else runs on a machine only ever adds time, so the fastest round is the function's own."""

    best: float
    median: float


BLOCK_MS, MOST_CALLS = 10.0, 100


def time_ms(rivals: Mapping[str, Callable[[], object]], args: argparse.Namespace) -> dict[str, Timing]:
    """Times the rivals in turn, so that a busy machine disturbs all of them alike.

    A turn is a block of calls one after the other, and its mean counts: as in a model, where what an operator reads was
    just written, a call finds its inputs in the cache if they fit there. ``args.cold`` times single calls instead, each
    after the caches were emptied.
    """
    times: dict[str, list[float]] = {name: [] for name in rivals}
    empty_caches = _cache_emptier(args.device) if args.cold else None
    for round_index in range(args.rounds + 2):
        for name, function in rivals.items():
            if empty_caches:
                empty_caches()
            value = _calls_ms(function, 1, args)
            calls = min(MOST_CALLS, int(BLOCK_MS / value))
            if calls > 1 and not empty_caches:
                value = _calls_ms(function, calls, args)
            if round_index >= 2:  # the first two rounds warm up
                times[name].append(value)
    return {name: Timing(min(values), statistics.median(values)) for name, values in times.items()}


def _calls_ms(function: Callable[[], object], calls: int, args: argparse.Namespace) -> float:
    wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    now = time.process_time if args.clock == "cpu" else time.perf_counter
    wait()
    start = now()
    for _ in range(calls):
        function()
    wait()
    return (now() - start) * 1e3 / calls


def _cache_emptier(device: str) -> Callable[[], object]:
    other = torch.zeros(1 << 28, dtype=torch.uint8, device=device)  # 256 MiB, more than any cache
    return lambda: other.add_(1)


def compared(timings: Mapping[str, Timing], ours: str = "ours") -> dict[str, object]:
    """Columns of a row: each rival's best time, and how many times faster ours is than the fastest other (and the
    same of the medians, for the record)."""
    row: dict[str, object] = {f"{name} ms": timing.best for name, timing in timings.items()}
    others = [timing for name, timing in timings.items() if name != ours]
    if not others:
        return row
    row["speed-up"] = round(min(t.best for t in others) / timings[ours].best, 1)
    row["of medians"] = round(min(t.median for t in others) / timings[ours].median, 1)
    return row


def report(rows: Iterable[Mapping[str, object]], args: argparse.Namespace) -> None:
    """Prints the rows as a table under the machine's name; a row may lack columns that another one has. The JSON is
    written anew with every row, so that a run that is cut off keeps what it measured."""
    about = machine(args.device) | {"clock": args.clock, "caches": "cold" if args.cold else "warm"}
    made: list[Mapping[str, object]] = []
    for row in rows:
        made.append(row)
        if args.json:
            args.json.write_text(json.dumps({"machine": about, "rows": made}, indent=2) + "\n")
    rows = made
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[_text(row.get(name, "-")) for name in names] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
