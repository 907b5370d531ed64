# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading weight files without running any code that they may hold."""

from __future__ import annotations

import os
import pickle
import re
from typing import Any

import numpy as np
import torch

from ..errors import UserError

# Where the usual ImageNet backbones come from, by a part of their file names.
SOURCES = {
    "R-50": "detectron2://ImageNetPretrained/torchvision/R-50.pkl (as MODEL.WEIGHTS, Detectron2 downloads it)",
    "R-101": "detectron2://ImageNetPretrained/torchvision/R-101.pkl (as MODEL.WEIGHTS, Detectron2 downloads it)",
    "resnet50": "torchvision.models.resnet50(weights='IMAGENET1K_V1'), whose state_dict saved by torch.save fits",
    "resnet101": "torchvision.models.resnet101(weights='IMAGENET1K_V1'), whose state_dict saved by torch.save fits",
}


def missing_file(path: str) -> UserError:
    """The sentence for a weight file that is not there."""
    name = os.path.basename(path).lower()
    hints = [f"; it can be had from {source}" for part, source in SOURCES.items() if part.lower() in name]
    return UserError(f"Weight file {path} does not exist{''.join(hints[:1])}.")


def read_weights(path: str) -> dict[str, Any]:
    """The content of a .pth (tensors, plain containers), a .safetensors, or a Detectron2 .pkl (numpy arrays) file.

    Raises:
        UserError: if the file is damaged or holds anything else.
    """
    readers = {".pkl": _read_pickle, ".safetensors": _read_safetensors}
    try:
        content = readers.get(os.path.splitext(path)[1], _read_torch)(path)
    except UserError:
        raise
    except Exception as error:  # a file that is none of these fails in any way
        wanted = re.search(r"GLOBAL (\S+)", str(error))  # in the midst of torch's advice on how to load it unsafely
        reason = f"it asks for {wanted[1]}" if wanted else str(error).split("\n")[0]
        raise UserError(
            f"Weight file {path} was not loaded: it is damaged or holds more than plain arrays ({reason})."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"Weight file {path} holds a {type(content).__name__}, not a dict of named tensors.")
    return content


def _read_torch(path: str) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: str) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"Weight file {path} needs the package safetensors: pip install safetensors.") from error
    return load_file(path)


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what numpy arrays are rebuilt from, and nothing else."""

    ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.empty(0))[0],
        ("numpy._core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.empty(0))[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.ALLOWED[module, name]
