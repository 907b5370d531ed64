# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What a config's model computes, number by number: the losses of three training steps and the detections of one image.

    python tools/record_training.py --output before.json [configs/crowd/dh.yaml ...]     # all configs by default
    python tools/record_training.py --compare before.json after.json

Parameters are filled by name, so that a record does not depend on the order in which parts are built; `--renamed FILE`
is a JSON list of [pattern, replacement] that gives today's parameter names as the record's. Images are small and
random. For a change that must not change what is computed: record before, record after, compare. Numbers are written
as hexadecimal floats; on one machine equal means equal bit for bit.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from paq_detr import add_paq_detr_config
from paq_detr.engine.cli import run_cli
from paq_detr.engine.merge import merge_file
from paq_detr.output_paths import check_output_file

ROOT = Path(__file__).resolve().parents[1]
STEPS = 3
CLASSES = ["cat", "dog", "owl"]


def fill_by_name(model: nn.Module, renamed: Sequence[tuple[str, str]] = ()) -> None:
    """Gives every parameter numbers that follow from its name alone; norms and biases stay near 1 and 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for pattern, replacement in renamed:
                name = re.sub(pattern, replacement, name)
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            if parameter.dim() > 1:
                parameter.copy_(noise / max(parameter[0].numel(), 1) ** 0.5)
            else:
                parameter.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))


def example(height: int, width: int, boxes: Sequence[Sequence[float]], labels: Sequence[int], seed: int) -> dict:
    """One input dict; the last of ``boxes`` (xyxy, pixels) is an ignore region."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.gt_classes = torch.tensor(labels)
    instances.gt_ignore = torch.arange(len(boxes)) == len(boxes) - 1
    pixels = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 255
    return {"image": pixels.to(torch.uint8), "instances": instances, "height": height, "width": width}


def batch() -> list[dict]:
    return [
        example(64, 96, [[4, 6, 40, 50], [30, 8, 90, 60], [28, 10, 84, 58], [70, 2, 95, 20]], [0, 2, 2, 0], 1),
        example(50, 120, [[10, 10, 100, 40], [0, 0, 12, 12]], [1, 0], 2),
    ]


def record(path: Path, renamed: Sequence[tuple[str, str]] = ()) -> dict:
    """Losses of each step and the detections afterwards, floats in hexadecimal."""
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    merge_file(cfg, str(path))
    cfg.MODEL.DETR.CLASS_NAMES = CLASSES
    cfg.MODEL.DEVICE, cfg.DATASETS.TEST = "cpu", ()
    torch.manual_seed(0)
    model = build_model(cfg).train()
    fill_by_name(model, renamed)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    steps = []
    for _ in range(STEPS):
        losses = model(batch())
        steps.append({name: float(value.detach()).hex() for name, value in sorted(losses.items())})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad():
        instances = model.eval()(batch()[:1])[0]["instances"]
    return {
        "losses": steps,
        "scores": [float(score).hex() for score in instances.scores[:20]],
        "boxes": [[float(edge).hex() for edge in box] for box in instances.pred_boxes.tensor[:20]],
        "classes": instances.pred_classes[:20].tolist(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def differences(before: dict, after: dict) -> list[str]:
    """One line for every number that is not the same."""
    lines = []

    def walk(path: str, a: object, b: object) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(a.keys() | b.keys()):
                walk(f"{path}/{key}", a.get(key), b.get(key))
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for index, (x, y) in enumerate(zip(a, b)):
                walk(f"{path}[{index}]", x, y)
        elif a != b:
            numbers = [float.fromhex(x) if isinstance(x, str) else x for x in (a, b)]
            lines.append(f"{path}: {numbers[0]} -> {numbers[1]}")

    walk("", before, after)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, help="all that the project has, by default")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--renamed", type=Path)
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    args = parser.parse_args()
    if args.compare:
        lines = differences(*(json.loads(path.read_text()) for path in args.compare))
        print("\n".join(lines) or "no difference")
        return 1 if lines else 0
    if args.output is None:
        parser.error("--output is missing: the file to write")
    check_output_file("--output", args.output)
    torch.set_num_threads(1)
    renamed = json.loads(args.renamed.read_text()) if args.renamed else ()
    configs = args.configs or sorted(p for p in (ROOT / "configs").rglob("*.yaml") if not p.stem.startswith("Base"))
    records = {}
    for path in configs:
        name = str(path.resolve().relative_to(ROOT / "configs"))
        records[name] = record(path, renamed)
        print(name, len(records[name]["losses"][0]), "losses", flush=True)
        args.output.write_text(json.dumps(records, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main, "record_training"))
