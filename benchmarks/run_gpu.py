# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can show, in one call: correctness first, then counters and times, then memory checks.

    python benchmarks/run_gpu.py --json benchmarks/results/h100.json [--minutes 9] [--only correctness training]

`explain` must find the CUDA kernels and the tests marked `gpu` must pass before anything is timed (--go-on records a
failure and times all the same, where a GPU cannot be had again soon). Then: the kernels
under Nsight Compute and their times, for every build that --builds names; every benchmark on the device, beside the
peers of peers.py that are installed; memcheck and racecheck on a small selection; training steps; and a training with
--train CONFIG for the time that is left. A step that fails or runs out of time is recorded with the end of its output,
and the next one starts. The JSON is written after every step, holds the machine's name and is meant to be committed.

--builds FOLDER holds one folder per build of the native library (_C.abi3.so and _build_record.json); the first of
--order is the one that everything but the comparison uses. --dry-run shows on a CPU, with tiny sizes, that they run.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "projects" / "paq_detr"
PYTHON = sys.executable
EXPLAIN = """
import torch, paq_detr.ops as ops
found = [str(b) for b in ops.explain("fused_ms_deform_attn", torch.zeros(1, device="DEVICE"))]
print("\\n".join(found))
raise SystemExit(not found[INDEX].split(":")[1].startswith(" runs"))
"""
CHECKED = "points-torch.float32 or boxes-torch.bfloat16 or test_cuda_takes_slices"

# What a training step of each system costs; one of every mechanism comes first, for a session that ends early.
COSTED = (
    *("coco/deformable_detr_plusplus_r50_12ep", "coco/paq_deformable_detr_plusplus_r50_12ep"),
    *("coco/mr_detr_deformable_300_r50_12ep", "coco/dino_4scale_r50_12ep", "coco/sparse_rcnn_300_r50_36ep"),
    *("coco/adamixer_300_r50_36ep", "coco/asag_a_100_r50_12ep", "coco/deformable_detr_plusplus_mask_300_r50_12ep"),
    *("coco/ddq_detr_r50_12ep", "coco/align_deformable_detr_plusplus_r50_12ep", "crowdhuman/dh_detr_released_r50_54ep"),
    *("coco/dab_detr_r50_50ep", "coco/dn_deformable_detr_r50_50ep", "coco/paq_dino_r50_12ep"),
    *("coco/paq_dino_hybrid_r50_12ep", "coco/dino_5scale_r50_12ep", "coco/mr_detr_dino_r50_12ep"),
    *("coco/mr_detr_deformable_mask_300_r50_12ep", "coco/paq_deformable_detr_plusplus_mask_r50_12ep"),
)
COSTED_DRY = ("crowd/dab_paq", "crowd/mr", "crowd/dh", "crowd/sparse_rcnn", "crowd/adamixer", "crowd/asag_a")
COSTED_DRY += ("bccd/dino", "nuclei/baseline")
DRY_TRAINING = """
    SOLVER.MAX_ITER 2 SOLVER.STEPS (1,) SOLVER.IMS_PER_BATCH 1 SOLVER.AMP.ENABLED False TEST.EVAL_PERIOD 0
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 DATALOADER.NUM_WORKERS 0 DATASETS.TEST ()
""".split()


@dataclass(frozen=True)
class Step:
    name: str
    command: list[str]
    seconds: int
    writes_json: bool = False
    build: str | None = None  # None: the first
    environment: dict[str, str] = field(default_factory=dict)
    gates: bool = False  # if it fails, nothing after it runs


def plan(args: argparse.Namespace, builds: list[str | None]) -> list[Step]:
    dry = args.dry_run
    device = "cpu" if dry else "cuda"
    explain = EXPLAIN.replace("DEVICE", device).replace("INDEX", "1" if dry else "0")
    steps = [Step("explain", [PYTHON, "-c", explain], 60, gates=True)]
    tests = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/ops"]
    parallel = ["-n", "6"] if _has("xdist") and not dry else []
    all_tests = [*tests, *parallel, *(["-k", "opcheck"] if dry else [])]
    steps.append(Step("correctness", all_tests, 150, gates=not args.go_on))
    for build in builds[1:]:
        steps.append(Step(f"correctness {build}", [*all_tests, "-k", "cuda_equals"], 60, build=build))

    def bench(name: str, seconds: int, *options: str, rounds: int = 5, label: str = "", build: str | None = None):
        tiny = ["--tiny", "--rounds", "1"] if dry else ["--rounds", str(rounds)]
        command = [PYTHON, f"benchmarks/bench_{name}.py", "--device", device, *tiny, *options]
        steps.append(Step(f"{name}{label}", command, seconds, writes_json=True, build=build))

    if shutil.which("ncu") and not dry:
        for build in builds:
            profile = [PYTHON, "benchmarks/profile_gpu.py"]
            steps.append(Step(f"counters {build or ''}".strip(), profile, 60, writes_json=True, build=build))
    if len(builds) > 1:
        for build in builds:
            encoder = ["--only-ours", "--cases", "encoder, batch 2"]
            bench("ms_deform_attn", 75, *encoder, label=f" encoder {build}", build=build)
            decoder = ["--only-ours", "--offsets", "sigma 2", "--cases", "decoder"]
            bench("ms_deform_attn", 45, *decoder, label=f" sigma 2 {build}", build=build)
    bench("ms_deform_attn", 110, "--offsets", "sigma 2", "--cases", "batch 2", label=" peers", rounds=3)
    bench("pair_quality", 70)
    bench("neighbor_difference", 40)
    if sanitizer := shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck"):
            checked = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", *tests]
            # torch's allocator hands out parts of large blocks, in which an overrun would not be seen
            no_pool = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            steps.append(Step(tool, [*checked, "-k", CHECKED], 60, environment=no_pool))
    if args.detectron2 or _has("detectron2"):
        bench("training", 100, *(["--steps", "1", "--warm-up", "1"] if dry else ["--steps", "15"]))
        if _has("transformers"):
            bench("model", 240 if dry else 60)
        small = ["--size", "64", "96", "--rounds", "1"] if dry else ["--batch", "2"]
        for name in COSTED_DRY if dry else COSTED:
            command = [PYTHON, "tools/cost.py", "--device", device, *small, "--configs", f"configs/{name}.yaml"]
            steps.append(Step(f"cost {name}", command, 300 if dry else 45, writes_json=True))
        if args.train:
            command = [PYTHON, "train_net.py", "--config-file", str(args.train), "MODEL.DEVICE", device]
            command += ["OUTPUT_DIR", str(args.json.parent / "training"), *args.train_options]
            if dry:
                command += DRY_TRAINING
            steps.append(Step("real training", command, 600))
    return steps


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def package_with(build: Path | None, folder: Path) -> Path:
    """A folder for PYTHONPATH whose paq_detr has that build's library; projects/ itself where none is named."""
    if build is None:
        return PACKAGE.parent
    target = folder / build.name
    shutil.copytree(
        PACKAGE, target / "paq_detr", ignore=shutil.ignore_patterns("_C*.so", "_build_record.json", "__py*")
    )
    for file in build.iterdir():
        shutil.copy2(file, target / "paq_detr")
    return target


def run(step: Step, seconds: float, package: Path, log: Path) -> dict:
    """Exit code, wall time, the end of the output, and what the step wrote as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "out.json"
        command = [*step.command, "--json", str(written)] if step.writes_json else step.command
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **step.environment}
        start = time.monotonic()
        output = Path(folder) / "output"
        with output.open("wb") as sink:
            # A session of its own: what the step started (a profiler's child, test workers) is killed with it, and
            # does not disturb the times of the next step.
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                code = 124
            finally:
                _kill_group(process)
        text = output.read_text(errors="replace")
        with log.open("a") as all_output:
            all_output.write(f"\n===== {step.name}: exit {code}\n{text[-200_000:]}")
        result = {"exit_code": code, "seconds": round(time.monotonic() - start, 1), "output_end": text[-1500:]}
        if written.exists():
            result.update(json.loads(written.read_text()))
        return result


def _kill_group(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps together")
    parser.add_argument("--builds", type=Path, help="folder of builds of the native library to compare")
    parser.add_argument("--order", nargs="+", help="names of the builds, the one to use first; default: by name")
    parser.add_argument("--only", nargs="+", help="run only steps whose names start with one of these")
    parser.add_argument("--skip", nargs="+", default=[], help="leave out steps whose names start with one of these")
    parser.add_argument("--go-on", action="store_true", help="time also what failed the correctness tests")
    parser.add_argument("--train", type=Path, help="config of a training for the rest of the time")
    parser.add_argument("--train-options", nargs="*", default=[], help="KEY VALUE pairs for it")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU")
    args = parser.parse_args()
    args.detectron2 = _has("detectron2")
    if not args.dry_run and not torch.cuda.is_available():
        print("run_gpu: torch finds no CUDA device here", file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * args.minutes
    os.environ["PAQ_DETR_REQUIRE_EXT"] = "1"  # no twin may be tested or timed as ours
    args.json = args.json.resolve()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    log = args.json.with_suffix(".log")
    name = "dry run on a CPU" if args.dry_run else torch.cuda.get_device_name()
    report = {"machine": name, "torch": torch.__version__, "cuda": torch.version.cuda}
    builds = args.order or (sorted(p.name for p in args.builds.iterdir()) if args.builds else [None])
    stopped = None
    with tempfile.TemporaryDirectory() as folder:
        paths = {build: args.builds / build if build else None for build in builds}
        packages = {build: package_with(path, Path(folder)) for build, path in paths.items()}
        for step in plan(args, builds):
            if args.only and not step.name.startswith(tuple(args.only)) or step.name.startswith(tuple(args.skip)):
                continue
            left = end - time.monotonic()
            if stopped or left < 5:
                report[step.name] = {"skipped": f"{stopped} failed" if stopped else "no time left"}
            else:
                report[step.name] = run(step, min(step.seconds, left), packages[step.build or builds[0]], log)
                code = report[step.name]["exit_code"]
                print(f"{step.name}: exit {code}, {report[step.name]['seconds']} s", flush=True)
                if step.gates and code:
                    stopped = step.name
            args.json.write_text(json.dumps(report, indent=1) + "\n")  # after every step, so that nothing is lost
    return 0 if all(part.get("exit_code", 0) == 0 for part in report.values() if isinstance(part, dict)) else 1


if __name__ == "__main__":
    sys.exit(main())
