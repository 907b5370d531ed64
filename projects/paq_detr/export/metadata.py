# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What an exported file says of itself: enough to feed it and to read what it gives."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from .. import __version__
from .wrapper import INPUTS, OUTPUTS, DetectionProgram, Shape, stride_of

SCHEMA = 1


def describe(program: DetectionProgram, shape: Shape, msda: str) -> dict[str, Any]:
    """The metadata; plain numbers, texts, lists."""
    model: nn.Module = program.model
    channels = len(program.mean)
    return {
        "schema": SCHEMA,
        "version": __version__,
        "names": list(model.class_names),
        "inputs": list(INPUTS if shape.dynamic else INPUTS[:1]),
        "outputs": list(OUTPUTS),
        "shape": [1, channels, *shape.size],
        "dynamic": shape.dynamic,
        "stride": stride_of(model),
        "channels": "L" if channels == 1 else "RGB",
        "range": [0.0, 1.0],
        "normalisation": "inside",
        "mean": [float(x) for x in program.mean.flatten()],  # inside, in 0..255 and the order of trained_on
        "std": [float(x) for x in program.std.flatten()],
        "trained_on": model.input_format,
        "resize": "stretch",
        "boxes": "xyxy in pixels of the input",
        "detections": program.read_out.top_k,
        "half": shape.half,
        "msda": msda,
    }


def plain_keys(metadata: dict[str, Any]) -> dict[str, str]:
    """The keys that other tools look for, as texts."""
    return {
        "task": "detect",
        "names": json.dumps(dict(enumerate(metadata["names"]))),
        "stride": str(metadata["stride"]),
        "imgsz": json.dumps(metadata["shape"][2:]),
        "version": metadata["version"],
    }
