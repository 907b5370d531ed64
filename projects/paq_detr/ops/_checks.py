# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What all operators check of their arguments."""

from torch import Tensor


def check_tensors(**arguments: Tensor) -> None:
    """Raises ``TypeError`` for the first of the named arguments that is no tensor."""
    for name, argument in arguments.items():
        if not isinstance(argument, Tensor):
            raise TypeError(f"{name} is {type(argument).__name__}, expected a Tensor")
