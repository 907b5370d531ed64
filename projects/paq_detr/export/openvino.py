# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's two files, from an ONNX file."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

import numpy as np
import torch

from .metadata import plain_keys
from .onnx import write_onnx
from .wrapper import OUTPUTS


def write_openvino(program: torch.export.ExportedProgram, path: str, metadata: dict[str, Any]) -> None:
    """Write ``path`` (.xml) and its weights beside it (.bin); in fp16 where the metadata say half."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.onnx")
        write_onnx(program, file, metadata)
        model = openvino.Core().read_model(file)
        for key, value in {"paq_detr": json.dumps(metadata), **plain_keys(metadata)}.items():
            model.set_rt_info(value, [key])
        openvino.save_model(model, path, compress_to_fp16=metadata["half"])


class OpenVINORunner:
    """On the CPU in fp32, whatever the weights are stored in: bf16, its default on some CPUs, moves boxes."""

    def __init__(self, path: str):
        import openvino

        self.compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        results = self.compiled(list(inputs))
        return [results[name] for name in OUTPUTS]
