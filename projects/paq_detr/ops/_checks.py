# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What the operators check of their arguments, and how they say it: what an argument has, then what is expected."""

from torch import Tensor, device, dtype, float32, float64


def arithmetic_dtype(tensor: Tensor) -> dtype:
    """The type in which an operator computes on ``tensor``: float64 stays, all else becomes float32."""
    return float64 if tensor.dtype == float64 else float32


def check_tensor(name: str, argument: Tensor, legend: str = "") -> None:
    if not isinstance(argument, Tensor):
        raise TypeError(f"{name} is {type(argument).__name__}, expected a Tensor {legend}".rstrip())


def check_tensors(**arguments: Tensor) -> None:
    """Raises ``TypeError`` for the first of the named arguments that is no tensor."""
    for name, argument in arguments.items():
        check_tensor(name, argument)


def check_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...], legend: str = "") -> None:
    """``expected`` has None where any size will do; ``legend`` is what the message says in its place."""
    shape = tuple(tensor.shape)
    if shape == expected:
        return
    fits = len(shape) == len(expected) and all(size in (None, own) for own, size in zip(shape, expected, strict=True))
    if not fits:
        raise ValueError(f"{name} has shape {shape}, expected {legend or expected}")


def check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} is {tensor.dtype}, expected a floating point type")


def check_dtype(name: str, tensor: Tensor, expected: dtype, meaning: str = "") -> None:
    if tensor.dtype != expected:
        raise TypeError(f"{name} is {tensor.dtype}, expected {expected} {meaning}".rstrip())


def check_device(name: str, tensor: Tensor, other: str, expected: device) -> None:
    if tensor.device != expected:
        raise ValueError(f"{name} is on {tensor.device}, {other} on {expected}")


def check_index(name: str, index: Tensor, size: int, what: str, most: int | None = None) -> None:
    """The values must lie in [0, most], by default [0, size)."""
    if not index.numel():
        return
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or high > (size - 1 if most is None else most):
        raise ValueError(f"{name} has the value {low if low < 0 else high}, but there are {size} {what}")
