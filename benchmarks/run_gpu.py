# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can show, in one call: correctness first, then memory checks, then times.

    python benchmarks/run_gpu.py --json benchmarks/results/h100.json [--minutes 9]

Runs the tests marked `gpu`, the operators under compute-sanitizer (memcheck and racecheck) where it is installed,
every benchmark on the device, beside whatever peers of peers.py are installed, and the kernels under Nsight Compute
where that is installed. A step that fails or runs out of time is recorded with the end of its output, and the next one
starts; times are taken only if the correctness tests passed. The JSON holds the machine's name and is meant to be
committed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Step:
    name: str
    command: list[str]
    seconds: int
    writes_json: bool = False


def steps() -> list[Step]:
    python = sys.executable
    tests = [python, "-m", "pytest", "-q", "-m", "gpu", "tests/ops"]
    plan = [Step("correctness", tests, 150)]
    if sanitizer := shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck"):
            checked = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", *tests]
            plan.append(Step(tool, [*checked, "-x"], 90))
    benches = {"ms_deform_attn": 240, "pair_quality": 90, "neighbor_difference": 60, "model": 60}
    for bench, seconds in benches.items():
        command = [python, f"benchmarks/bench_{bench}.py", "--device", "cuda", "--rounds", "5"]
        plan.append(Step(f"bench_{bench}", command, seconds, writes_json=True))
    if shutil.which("ncu"):
        plan.append(Step("profile", [python, "benchmarks/profile_gpu.py"], 60, writes_json=True))
    return plan


def run(step: Step, seconds: float) -> dict:
    """Exit code, wall time, the end of the output, and what the step wrote as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "out.json"
        command = [*step.command, "--json", str(written)] if step.writes_json else step.command
        start = time.monotonic()
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
            code, output = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired as error:
            code, output = 124, (error.stdout or b"").decode(errors="replace")
        result = {"exit_code": code, "seconds": round(time.monotonic() - start, 1), "output_end": output[-1500:]}
        if written.exists():
            result.update(json.loads(written.read_text()))
        return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps together")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("run_gpu: torch finds no CUDA device here", file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * args.minutes
    report = {"machine": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    correct = True
    for step in steps():
        left = end - time.monotonic()
        if left < 5 or (step.writes_json and not correct):
            report[step.name] = {"skipped": "no time left" if left < 5 else "the correctness tests failed"}
        else:
            report[step.name] = run(step, min(step.seconds, left))
            print(f"{step.name}: exit {report[step.name]['exit_code']}, {report[step.name]['seconds']} s", flush=True)
        if step.name == "correctness":
            correct = report[step.name].get("exit_code") == 0
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")  # after every step, so that nothing is lost
    return 0 if all(part.get("exit_code", 0) == 0 for part in report.values() if isinstance(part, dict)) else 1


if __name__ == "__main__":
    sys.exit(main())
