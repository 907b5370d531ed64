# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""``torch.compile`` for parts of a detector, where there is a compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch
from torch import nn

from ..errors import UserError

logger = logging.getLogger(__name__)

#: What ``MODEL.COMPILE`` may name: the modules of a detector whose forward passes are compiled.
PARTS: dict[str, Callable[[nn.Module], Iterable[nn.Module]]] = {
    "backbone": lambda model: [model.backbone],
    "encoder": lambda model: [model.encoder],
    "decoder": lambda model: model.routes["main"].decoder.layers,
}


def compile_parts(model: nn.Module, names: Iterable[str], device: torch.device) -> None:
    """Compile in place; names of parameters stay. Nothing is compiled yet, but in the first steps.

    Raises:
        UserError: the model has no such part.
    """
    names = list(names)
    if not names:
        return
    fault = compiler_fault(device)
    if fault:
        logger.warning("MODEL.COMPILE %s is left out, as torch.compile does not work here: %s", names, fault)
        return
    for name in names:
        try:
            modules = list(PARTS[name](model))
        except AttributeError:
            raise UserError(f"MODEL.COMPILE names {name}, which a {type(model).__name__} has not.") from None
        for module in modules:
            module.compile()


def compiler_fault(device: torch.device) -> str:
    """Why nothing can be compiled for ``device``, as a small trial shows; empty where it can."""
    try:
        torch.compile(_trial)(torch.zeros(8, device=device))
    except Exception as error:  # of the compiler, of Triton, of a platform
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ""


def _trial(x: torch.Tensor) -> torch.Tensor:
    return (x + 1).relu()
