# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Where a training step of a config spends its time, part by part.

    python benchmarks/bench_step.py [--config-file configs/demo.yaml] [--steps 30] [--json out.json] [KEY VALUE ...]

Parts are timed by hooks on a running training step, the device waited for at every border: the sum is a little longer
than a step without them. "losses" is everything from the predictions to the sum but the matching.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import torch

from paq_detr.engine import Trainer, setup_config
from paq_detr.modeling import objective

PARTS = ("data", "backbone", "neck", "encoder", "sources", "decoder", "matching", "losses", "backward", "optimiser")


class Clock:
    """Seconds by part of the present step."""

    def __init__(self, device: torch.device):
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.seconds: dict[str, float] = defaultdict(float)
        self._starts: list[float] = []

    def start(self, *_) -> None:
        self.wait()
        self._starts.append(time.perf_counter())

    def stop(self, part: str) -> None:
        self.wait()
        self.seconds[part] += time.perf_counter() - self._starts.pop()

    @contextmanager
    def part(self, name: str):
        self.start()
        yield
        self.stop(name)

    def watch(self, module: torch.nn.Module, part: str) -> None:
        module.register_forward_pre_hook(self.start)
        module.register_forward_hook(lambda *_: self.stop(part))


def measure(cfg, steps: int, warm_up: int = 3) -> dict[str, float]:
    """Median milliseconds of each part, and of the whole step."""
    trainer = Trainer(cfg)
    model, optimizer = trainer.checkpointer.model, trainer.optimizer
    clock = Clock(model.device)
    for part in ("backbone", "neck", "encoder"):
        clock.watch(getattr(model, part), part)
    for source in model.sources.values():
        clock.watch(source, "sources")
    for route in model.routes.values():
        clock.watch(route.decoder, "decoder")
    assign = objective.assign

    def timed_assign(*args):
        with clock.part("matching"):
            return assign(*args)

    objective.assign = timed_assign
    data, rows = iter(trainer.data_loader), []
    parameters = [p for p in model.parameters() if p.requires_grad]
    for _ in range(steps + warm_up):
        clock.seconds.clear()
        with clock.part("step"):
            with clock.part("data"):
                batch = next(data)
            with clock.part("forward"):
                loss = sum(model(batch).values())
            with clock.part("backward"):
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            with clock.part("optimiser"):
                torch.nn.utils.clip_grad_norm_(parameters, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE)
                optimizer.step()
        inner = ("backbone", "neck", "encoder", "sources", "decoder", "matching")
        clock.seconds["losses"] = clock.seconds["forward"] - sum(clock.seconds[part] for part in inner)
        rows.append(dict(clock.seconds))
    objective.assign = assign
    return {part: 1e3 * statistics.median(row[part] for row in rows[warm_up:]) for part in (*PARTS, "step")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="configs/demo.yaml")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        opts = [*args.opts, "OUTPUT_DIR", folder]
        times = measure(setup_config(Namespace(config_file=args.config_file, opts=opts, num_gpus=1)), args.steps)
    for part, milliseconds in times.items():
        print(f"{part:10} {milliseconds:8.1f} ms  {milliseconds / times['step']:6.1%}")
    if args.json:
        args.json.write_text(json.dumps({"config": args.config_file, "ms": times}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
