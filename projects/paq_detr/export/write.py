# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From a detector to a file of one of the formats."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ..checks import check_choice
from ..errors import UserError
from ..ops.export_forms import FORMS
from ..output_paths import check_output_file
from .check import Runner
from .metadata import describe
from .onnx import OnnxRunner, check_plugin, write_onnx
from .openvino import OpenVINORunner, write_openvino
from .torch_formats import TorchRunner, write_torch_export, write_torchscript
from .wrapper import LARGEST_SIDE, DetectionProgram, Shape, capture, stride_of


@dataclass(frozen=True)
class Format:
    """A kind of file: its ending, how it is written and run, and the packages that takes."""

    ending: str
    write: Callable[..., None]
    open: Callable[[str], Runner]
    packages: tuple[str, ...] = ()
    half_weights_only: bool = False  # fp16 is how weights are stored, not how they are computed with
    one_size: bool = False


FORMATS = {
    "onnx": Format(".onnx", write_onnx, OnnxRunner, ("onnx", "onnxscript", "onnxruntime")),
    "torch_export": Format(".pt2", write_torch_export, partial(TorchRunner, script=False)),
    "torchscript": Format(".pt", write_torchscript, partial(TorchRunner, script=True), one_size=True),
    "openvino": Format(
        ".xml", write_openvino, OpenVINORunner, ("onnx", "onnxscript", "openvino"), half_weights_only=True
    ),
}


def export_model(
    model: nn.Module, path: str, *, format: str = "onnx", shape: Shape, msda: str = "gridsample"
) -> dict[str, Any]:
    """Write ``model`` in evaluation mode to ``path``; returns the metadata that stand in the file.

    Args:
        model: a ``QueryDetector``; it is not changed.
        format: one of ``FORMATS``.
        shape: which sizes the file takes.
        msda: "gridsample", or "plugin": deformable attention as nodes of TensorRT's plugin (ONNX alone).

    Raises:
        UserError: the format, size or model does not fit; one sentence. Nothing is written then.
    """
    kind = FORMATS[check_choice("--format", format, FORMATS)]
    check_choice("--msda", msda, FORMS)
    check_packages(format)
    if msda == "plugin" and format != "onnx":
        raise UserError(f"--msda plugin is for TensorRT, which reads ONNX; --format is {format}.")
    if shape.dynamic and kind.one_size:
        raise UserError(
            f"--format {format} takes one size, because a trace holds sizes as constants; leave --dynamic out."
        )
    _check_size(shape, stride_of(model))
    program = DetectionProgram(model, half=shape.half and not kind.half_weights_only)
    metadata = describe(program, shape, msda)
    captured = capture(program, shape, FORMS[msda])
    try:
        with torch.no_grad():  # as captured: attention whose mask has a gradient is computed another way
            kind.write(captured, path, metadata)
        if msda == "plugin":
            check_plugin(path)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}.") from error
    return metadata


def open_file(path: str, format: str) -> Runner:
    """The exported file, ready to be called with arrays."""
    return FORMATS[format].open(path)


def check_output(path: str, overwrite: bool) -> None:
    """Raises a UserError where a file would be replaced that is not to be, or where none can be written."""
    check_output_file("--output", path)
    taken = next(filter(os.path.exists, (path, weights_beside(path))), None)
    if taken and not overwrite:
        raise UserError(f"{taken} exists; name another file by --output, or add --overwrite.")


def check_packages(format: str) -> None:
    """Raises a UserError that says how to install what the format needs, where it is missing."""
    missing = [name for name in FORMATS[format].packages if find_spec(name) is None]
    if missing:
        raise UserError(f"--format {format} needs {' and '.join(missing)}: pip install 'paq_detr[export]'.")


def _check_size(shape: Shape, stride: int) -> None:
    for name, side in zip(("height", "width"), shape.size):
        if side < 1 or side % stride:
            near = max(round(side / stride), 1) * stride
            raise UserError(f"--size: the {name} {side} is no multiple of {stride}, the model's coarsest stride; "
                            f"{near} is the next one.")  # fmt: skip
        if shape.dynamic and side > LARGEST_SIDE:
            raise UserError(f"--size: the {name} {side} is more than {LARGEST_SIDE}, the most of a dynamic file.")


def size_on_disk(path: str) -> int:
    """Bytes of the file, with the weights beside it."""
    return os.path.getsize(path) + (os.path.getsize(weights_beside(path)) if path.endswith(".xml") else 0)


def weights_beside(path: str) -> str:
    """Where OpenVINO has the weights of an .xml; the path itself of other files."""
    return path.removesuffix(".xml") + ".bin" if path.endswith(".xml") else path
