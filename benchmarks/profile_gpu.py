# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What the deformable attention kernels do on a GPU, counted by Nsight Compute, beside the floor of the memory.

    python benchmarks/profile_gpu.py [--bandwidth 3.0] [--json result.json]

Runs itself under `ncu`: one forward and one backward per type at the encoder's shape (22,223 queries, sigma 2). For
every kernel of ours: microseconds, warp instructions per query and head, bytes of DRAM and of L2, and the achieved
bandwidth of DRAM. The floor is the time that the bytes which a direction must read and write take at --bandwidth TB/s
(an H100 SXM reaches about 3.0) with float32 values; 16-bit values need less.
"""

import argparse
import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from bench_ms_deform_attn import CASES, GPU_TYPES, HEADS, LEVELS, make_inputs
from measure import report

from paq_detr.ops import fused_ms_deform_attn

CASE, OFFSETS = "encoder, 22223 queries", "sigma 2"
METRICS = {
    "gpu__time_duration.sum": "nanoseconds",
    "smsp__inst_executed.sum": "instructions",
    "dram__bytes.sum": "DRAM bytes",
    "lts__t_bytes.sum": "L2 bytes",
}
MORE_METRICS = {  # asked for first; a release of ncu that lacks one of them is asked again without
    "l1tex__t_sector_hit_rate.pct": "L1 hits, %",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "bank conflicts",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps, % of peak",
    "lts__t_sectors_op_red.sum": "L2 reduction sectors",
}
NAME = re.compile(r"\w+(<.*>)?(?=\([^()]*\)$)")  # without namespaces and arguments


def run_once():
    for dtype in GPU_TYPES:
        value, levels, *rest = make_inputs(CASES[CASE], OFFSETS, getattr(torch, dtype), "cuda")
        leaves = [tensor.requires_grad_() for tensor in (value, *rest)]
        out = fused_ms_deform_attn(leaves[0], levels, *leaves[1:])
        torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
        torch.use_deterministic_algorithms(True)
        torch.autograd.grad(out, leaves, torch.ones_like(out))
        torch.use_deterministic_algorithms(False)


def ncu_output() -> str:
    """ncu's table: one line per kernel and metric."""
    ncu = shutil.which("ncu")
    if not ncu:
        sys.exit("profile_gpu: Nsight Compute (ncu) is not on the path")
    options = [
        "--csv",
        "--target-processes",
        "all",
        "--print-units",
        "base",
        "--clock-control",
        "none",
        "--kernel-name-base",
        "demangled",
    ]
    options += ["--kernel-name", "regex:paq_detr"]
    for metrics in (METRICS | MORE_METRICS, METRICS):
        command = [ncu, *options, "--metrics", ",".join(metrics), sys.executable, __file__, "--once"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            break
    else:
        sys.exit(f"profile_gpu: ncu exits with {done.returncode}: {(done.stdout + done.stderr)[-800:]}")
    return done.stdout


def kernels_of(output: str) -> list[dict[str, object]]:
    """One row per launch, in the order of the launches; counters in base units (bytes, nanoseconds)."""
    lines = output.splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if header is None:
        sys.exit(f"profile_gpu: ncu counted no kernel of ours: {output[-800:]}")
    rows: dict[str, dict[str, object]] = {}
    for line in csv.DictReader(lines[header:]):
        row = rows.setdefault(line["ID"], {"kernel": short_name(line["Kernel Name"])})
        name = line["Metric Name"]
        try:
            row[(METRICS | MORE_METRICS)[name]] = float(line["Metric Value"].replace(",", ""))
        except ValueError:  # "n/a"
            if name in METRICS:
                raise
    return list(rows.values())


def short_name(kernel: str) -> str:
    found = NAME.search(kernel)
    return found.group() if found else kernel


def described(row: dict[str, object], floors: dict[str, float]) -> dict[str, object]:
    query_heads = HEADS * sum(height * width for height, width in LEVELS)
    direction = "backward" if "backward" in row["kernel"] else "forward"
    microseconds, dram = row["nanoseconds"] / 1e3, row["DRAM bytes"] / 1e6
    return {
        "kernel": row["kernel"],
        "us": microseconds,
        "floor of float32, us": floors[direction],
        "instructions per query and head": row["instructions"] / query_heads,
        "DRAM MB": dram,
        "L2 MB": row["L2 bytes"] / 1e6,
        "DRAM GB/s": dram / microseconds * 1e3,
        **{name: row[name] for name in MORE_METRICS.values() if name in row},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bandwidth", type=float, default=3.0, help="TB/s that the DRAM reaches")
    parser.add_argument("--json", type=Path, help="write machine and rows there as well")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        return run_once()
    inputs = make_inputs(CASES[CASE], OFFSETS, torch.float32, "cpu")
    moved = sum(tensor.nbytes for tensor in inputs if isinstance(tensor, torch.Tensor)) + inputs[0].nbytes  # + out
    floors = {"forward": moved / args.bandwidth / 1e6, "backward": 2 * moved / args.bandwidth / 1e6}
    args.device, args.clock, args.cold = "cuda", "ncu", False
    report([described(row, floors) for row in kernels_of(ncu_output())], args)


if __name__ == "__main__":
    main()
