# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What systems cost: parameters, FLOPs, memory and time of a training step, images per second.

    python tools/cost.py --configs configs/coco/dino_4scale_r50_12ep.yaml configs/coco/paq_dino_r50_12ep.yaml \
        [--size 800 1333] [--classes 80] [--objects 10] [--batch 1] [--device cuda] [--rounds 3] [KEY VALUE ...]

Each config runs in a process of its own, so that its peak memory is its own: on a CPU the largest resident set less
that before the first image, on a GPU torch's count. FLOPs are fvcore's (one multiply-add is one) of one image at
inference, with operators that fvcore does not know: attention products, five multiply-adds per sample and channel of
deformable attention, and DH-DETR's differences as if all neighbour slots were taken. Weights are random.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances, PolygonMasks
from fvcore.nn import FlopCountAnalysis
from torch import nn

from paq_detr import add_paq_detr_config
from paq_detr.engine import build_detector, run_cli
from paq_detr.engine.merge import merge_file
from paq_detr.output_paths import check_output_file

COLUMNS = {
    "parameters": "parameters (M)",
    "inference_parameters": "at inference (M)",
    "gflops": "GFLOPs",
    "step_memory": "memory of a training step (GiB)",
    "step_seconds": "training step (s)",
    "images_per_second": "images/s",
}


class Raw(nn.Module):
    """An image (3, H, W) to what the last layer predicts: tensors alone, for fvcore's tracing."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        model = self.model
        memory = model.encode(model.preprocess([{"image": image}]))
        route = model.routes["main"]
        output = route(model.sources[route.source](memory), memory)[-1]
        return output.logits, output.boxes


def _sizes(value) -> list[int]:
    """Shape of a value of the traced graph; of what is no tensor, nothing."""
    return (value.type().sizes() or []) if value.type().isSubtypeOf(torch._C.TensorType.get()) else []


def attention_flops(inputs, outputs) -> int:
    """Of ``softmax(q k) v`` with q (..., N, D), k (..., M, D), v (..., M, E)."""
    (*lead, queries, width), keys, values = _sizes(inputs[0]), _sizes(inputs[1])[-2], _sizes(inputs[2])[-1]
    return math.prod(lead) * queries * keys * (width + values)


def sampling_flops(inputs, outputs) -> int:
    """Four corners and a weight for each sample of D channels; values (B, S, H, D) come first, the samples' places are
    (B, N, H, L, P, 2)."""
    channels = _sizes(inputs[0])[-1]
    places = next(_sizes(value) for value in inputs if len(_sizes(value)) == 6)
    return 5 * channels * math.prod(places[:-1])


def difference_flops(inputs, outputs) -> int:
    """A matrix (D, C) for each slot of (B, N, K)."""
    return math.prod(_sizes(inputs[1])) * math.prod(_sizes(inputs[4]))


def gflops(model: nn.Module, image: torch.Tensor) -> float:
    analysis = FlopCountAnalysis(Raw(model).eval(), image)
    analysis.set_op_handle("aten::scaled_dot_product_attention", attention_flops)
    analysis.set_op_handle("paq_detr::neighbor_difference", difference_flops)
    for name in ("fused_ms_deform_attn", "ms_deform_attn"):
        analysis.set_op_handle(f"paq_detr::{name}", sampling_flops)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return analysis.total() / 1e9


def training_image(height: int, width: int, objects: int, classes: int, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    corner = torch.rand(objects, 2, generator=generator) * torch.tensor([width, height]) * 0.8
    side = torch.rand(objects, 2, generator=generator) * torch.tensor([width, height]) * 0.15 + 8
    instances.gt_boxes = Boxes(torch.cat([corner, corner + side], 1))
    rectangles = instances.gt_boxes.tensor[:, [0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()
    instances.gt_masks = PolygonMasks([[rectangle] for rectangle in rectangles])
    instances.gt_classes = torch.randint(classes, (objects,), generator=generator)
    image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": image, "instances": instances}


class Peak:
    """The most memory in use since its making, in GiB."""

    def __init__(self, device: str):
        self.cuda = device.startswith("cuda")
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            self.start = self._resident("VmRSS")

    def __call__(self) -> float:
        end = torch.cuda.max_memory_allocated() if self.cuda else self._resident("VmHWM")
        return (end - self.start) / 2**30

    @staticmethod
    def _resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024


def fastest(run, args: argparse.Namespace) -> float:
    """Seconds of the fastest of ``args.rounds`` runs behind a first one that does not count."""
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[args.clock]
    times = []
    for _ in range(args.rounds + 1):
        start = clock()
        run()
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times[1:])


def measure(config: Path, args: argparse.Namespace) -> dict[str, float]:
    """All figures of one config, in this process."""
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    merge_file(cfg, str(config))
    cfg.merge_from_list(["MODEL.DEVICE", args.device, *args.options])
    cfg.MODEL.DETR.CLASS_NAMES = [str(i) for i in range(args.classes)]
    model = build_detector(cfg)
    batch = [training_image(*args.size, args.objects, args.classes, seed) for seed in range(args.batch)]
    found = {"parameters": sum(p.numel() for p in model.parameters()) / 1e6}

    def step() -> None:
        model.zero_grad()
        sum(model.train()(batch).values()).backward()

    peak = Peak(args.device)
    found["step_seconds"] = fastest(step, args)
    found["step_memory"] = peak()
    model.zero_grad()
    model.drop_training_parts()
    model.eval()
    found["inference_parameters"] = sum(p.numel() for p in model.parameters()) / 1e6
    with torch.inference_mode():
        found["images_per_second"] = 1 / fastest(lambda: model([batch[0]]), args)
    with torch.no_grad():
        found["gflops"] = gflops(model, batch[0]["image"].to(args.device))
    return found


def machine(device: str) -> str:
    processor = platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"


def table(rows: dict[str, dict[str, float]]) -> str:
    lines = ["| config | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, found in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{found[column]:.4g}" for column in COLUMNS) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", type=Path, required=True)
    parser.add_argument("--size", nargs=2, type=int, default=[800, 1333], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--objects", type=int, default=10, help="objects of each training image")
    parser.add_argument("--batch", type=int, default=1, help="images of a training step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each measurement; the fastest counts")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, for a CPU that others use too (with OMP_NUM_THREADS=1, as waiting threads count)",
    )
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every config")
    args = parser.parse_args()
    missing = [str(path) for path in args.configs if not path.is_file()]
    if missing:
        parser.error(f"no such config: {', '.join(missing)}")
    if args.json:
        check_output_file("--json", args.json)
    if args.one:
        print(json.dumps(measure(args.configs[0], args)))
        return
    rows = {}
    for config in args.configs:
        at = sys.argv.index("--configs")
        rest = sys.argv[1:at] + sys.argv[at + 1 + len(args.configs) :]
        command = [sys.executable, __file__, "--one", "--configs", str(config), *rest]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            sys.exit(f"{config} failed:\n{result.stderr[-3000:]}")
        rows[config.stem] = json.loads(result.stdout.splitlines()[-1])
        print(table({config.stem: rows[config.stem]}).splitlines()[-1], flush=True)
    height, width = args.size
    images = f"{args.batch} images of {height} x {width}, {args.objects} objects each"
    about = f"{images}; {args.clock} time, {machine(args.device)}."
    print(f"\n{table(rows)}\n\n{about}")
    if args.json:
        args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_cli(main, "cost"))
