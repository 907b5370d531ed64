# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Write a trained detector as ONNX, ExportedProgram, TorchScript or OpenVINO, and hold the file against the model."""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Sequence

from ..engine.cli import run_cli
from ..engine.run_folder import find_run
from ..errors import UserError
from ..ops.export_forms import FORMS
from .check import Tolerance, compare, read_inputs
from .run import default_size, load_run, trial_images
from .wrapper import Shape, stride_of
from .write import FORMATS, check_output, check_packages, export_model, open_file, size_on_disk

PROGRAM = "paq-detr export"
TOLERANCE, HALF_TOLERANCE = (0.05, 0.001), (2.0, 0.05)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.split("\n")[0])
    parser.add_argument("run", metavar="RUN", help="a training's output folder, or its weights")
    parser.add_argument("--format", choices=FORMATS, default="onnx")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size", nargs=2, type=int, metavar=("H", "W"),
                      help="multiples of the coarsest stride (default: a square of INPUT.MIN_SIZE_TEST)")  # fmt: skip
    size.add_argument("--dynamic", action="store_true", help="any batch, height and width, and padding as an input")
    parser.add_argument("--half", action="store_true", help="fp16 layers; boxes and scores stay fp32")
    parser.add_argument("--msda", choices=FORMS, default="gridsample",
                        help="deformable attention: ONNX's GridSample, or TensorRT's plugin")  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="default: RUN/model.onnx, .pt2, .pt or .xml")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")
    parser.add_argument("--images", nargs="+", default=["4"], metavar="N|FILE",
                        help="compare on N images of the test set, or on these files; 0: do not compare")  # fmt: skip
    parser.add_argument("--tolerance", nargs=2, type=float, metavar=("PIXELS", "SCORE"),
                        help=f"largest differences (default: {TOLERANCE}, with --half {HALF_TOLERANCE})")  # fmt: skip
    return parser.parse_args(arguments)


def export(options: argparse.Namespace) -> int:
    """Export and compare; the file stays where the comparison fails, and the error says so."""
    check_packages(options.format)
    run = find_run(options.run)
    path = options.output or os.path.join(run.folder, f"model{FORMATS[options.format].ending}")
    check_output(path, options.overwrite)
    cfg, model = load_run(run)
    stride = stride_of(model)
    size = tuple(options.size) if options.size else default_size(cfg, stride)
    shape = Shape(size, options.dynamic, options.half)
    start = time.perf_counter()
    metadata = export_model(model, path, format=options.format, shape=shape, msda=options.msda)
    sizes = f"multiples of {stride}" if shape.dynamic else f"{size[0]} x {size[1]}"
    print(f"{path}: {size_on_disk(path) / 2**20:.1f} MiB, {sizes} (height x width), "
          f"{len(metadata['names'])} classes, {time.perf_counter() - start:.0f} s")  # fmt: skip
    if model.routes["main"].mask_head is not None:
        print("its masks are not in the file, which holds boxes, labels and scores alone")
    for note in filter(None, (getattr(part, "export_note", None) for part in model.modules())):
        print(note)
    if options.images == ["0"]:
        print("not compared with the model (--images 0)")
        return 0
    tolerance = Tolerance(*(options.tolerance or (HALF_TOLERANCE if options.half else TOLERANCE)))
    files, what = trial_images(cfg, options.images)
    inputs = read_inputs(files, metadata["channels"], size, stride, shape.dynamic)
    found = compare(model, open_file(path, options.format), inputs, tolerance)
    print(f"on {what}: boxes differ by at most {found.box:.2g} pixels, scores by {found.score:.2g}; "
          f"{found.alone} of {found.total} detections have no partner")  # fmt: skip
    if not found.within():
        raise UserError(
            f"{path} was written, but finds other things than the model: {found.alone} of {found.total} detections "
            f"differ by more than {tolerance.box:g} pixels or {tolerance.score:g} in score; --tolerance widens that."
        )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code, 2 for wrong input and for a file that differs from its model."""
    options = parse(arguments)
    for name in ("torch.onnx", "onnxscript", "torch.export"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return run_cli(lambda: export(options), PROGRAM)
