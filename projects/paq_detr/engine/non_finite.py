# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What to say of a loss that is not finite: its terms, the images, and where the first such number comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import NonFiniteLossError


def non_finite_error(iteration: int, own: Mapping[str, float], batch: list[dict], where: str) -> NonFiniteLossError:
    """The error that tells all processes' infinite terms and their images; to be called on every process.

    Args:
        own: this process's losses by name.
        where: what :func:`first_non_finite` found.
    """
    terms = {name: value for name, value in own.items() if not math.isfinite(value)}
    sentences = []
    for rank, (found, files) in enumerate(comm.all_gather((terms, [x.get("file_name", "?") for x in batch]))):
        if found:
            process = f" on process {rank}" if comm.get_world_size() > 1 else ""
            listed = ", ".join(f"{name} = {value}" for name, value in found.items())
            sentences.append(f"{listed}{process} for the images {', '.join(files)}")
    return NonFiniteLossError(f"Training stopped at iteration {iteration}: {'; '.join(sentences)}{where}.")


def first_non_finite(model: nn.Module, batch: list[dict], autocast: Mapping[str, Any]) -> str:
    """Which weight or module the first infinite number comes from, found by one more forward pass."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f" (the parameter {name} itself is not finite)"
    found: list[str] = []

    def look(name: str):
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad(), torch.autocast(**autocast):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return f" (the first module whose output is not finite is {found[0]})" if found else ""
