# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The native library: loading it, saying why not, and choosing a backend for an operator.

The library is one abi3 file ``paq_detr/_C*.so`` on the libtorch stable ABI; setup.py writes ``_build_record.json``
beside it. Without it every operator runs its pure-torch twin. On CPU that is merely slow; for CUDA tensors it is
said once; on both it is an error if ``PAQ_DETR_REQUIRE_EXT=1``.
"""

import importlib
import json
import logging
import os
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

PACKAGE_DIR = Path(__file__).resolve().parents[1]
BUILD_COMMAND = "pip install --no-build-isolation -e ."
OLDEST_TORCH = (2, 10)  # of the stable ABI the library is compiled against (TORCH_TARGET_VERSION in setup.py)
KINDS = ("cuda", "cpu")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_operators: dict[str, tuple[torch.dtype, ...]] = {}
_kernels: set[tuple[str, str]] = set()  # (operator, kind of device) that the library has
_forms: Mapping[str, Callable] | None = None  # within ``force_torch``: what takes the place of twins


@dataclass(frozen=True)
class Library:
    """The loaded library, or why there is none."""

    loaded: bool
    reason: str
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Backend:
    """One line of :func:`explain`."""

    name: str
    runs: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {'runs' if self.runs else 'does not run'}, {self.reason}"


def read_build_record(directory: Path = PACKAGE_DIR) -> dict[str, Any]:
    """What the library was built for; empty without a record that can be read."""
    path = directory / "_build_record.json"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def build_mismatch(record: Mapping[str, Any]) -> str | None:
    """A sentence "built for A, you have B" if a library with this record cannot run here, else None."""
    here = {"platform": sysconfig.get_platform(), "torch": torch.__version__, "cuda": torch.version.cuda}
    differs = None
    if record.get("platform", here["platform"]) != here["platform"]:
        differs = (record["platform"], here["platform"])
    elif _version(torch.__version__) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        differs = (f"torch {record.get('torch', '?')} (runs on torch >= {oldest})", f"torch {torch.__version__}")
    elif record.get("cuda") and _version(record["cuda"])[:1] != _version(here["cuda"] or "0")[:1]:
        differs = (f"CUDA {record['cuda']}", f"CUDA {here['cuda']}" if here["cuda"] else "a torch without CUDA")
    if differs is None:
        return None
    return f"the native library is built for {differs[0]}, you have {differs[1]}; rebuild it: {BUILD_COMMAND}"


@cache
def library() -> Library:
    """Loads the library on the first call."""
    record = read_build_record()
    path = next(PACKAGE_DIR.glob("_C*.so"), None)
    if path is None:
        return Library(False, f"the native library is not built; build it: {BUILD_COMMAND}", record)
    size = path.stat().st_size
    if size != record.get("bytes", size):  # loading a file that was cut off would end the process
        reason = f"the native library {path.name} has {size} bytes, was built with {record['bytes']}"
        return Library(False, f"{reason}; rebuild it: {BUILD_COMMAND}", record)
    if reason := build_mismatch(record):
        return Library(False, reason, record)
    try:
        importlib.import_module("paq_detr._C")
    except ImportError as error:
        return Library(False, f"the native library does not load ({error}); rebuild it: {BUILD_COMMAND}", record)
    built = f"built for torch {record['torch']}, CUDA {record.get('cuda')}" if "torch" in record else "without a record"
    return Library(True, built, record)


def declare_operator(name: str, dtypes: tuple[torch.dtype, ...] = FLOATS) -> None:
    """Makes an operator of ``torch.ops.paq_detr`` known to :func:`explain` and :func:`use_native`."""
    _operators[name] = dtypes
    if library().loaded:
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        _kernels.update((name, kind) for kind in KINDS if has_kernel(f"paq_detr::{name}", kind.upper()))


def register_once_differentiable(op_name: str) -> None:
    """A second derivative through the backward operator ``op_name`` is an error; torch would give zeros."""

    def refuse(ctx, *grads):
        raise RuntimeError(f"paq_detr::{op_name.removesuffix('_backward')} is differentiable once, not twice")

    torch.library.register_autograd(f"paq_detr::{op_name}", refuse)


@contextmanager
def force_torch(forms: Mapping[str, Callable] | None = None) -> Iterator[None]:
    """Within it no native operator runs, so that a program which is exported there holds torch's own alone.

    Args:
        forms: by the name of an operator, what runs in place of its twin, with the twin's arguments.

    Raises:
        ValueError: a form for an operator that does not exist, naming those that do.
    """
    global _forms
    forms = dict(forms or {})
    for name in forms:
        _check_known(name)
    before, _forms = _forms, forms
    try:
        yield
    finally:
        _forms = before


def use_native(op_name: str, tensor: Tensor) -> bool:
    """Whether the native operator takes over for inputs like ``tensor``; the twin does otherwise.

    Raises:
        RuntimeError: for a CPU or CUDA tensor without a kernel if ``PAQ_DETR_REQUIRE_EXT=1``.
    """
    if _forms is not None:
        return False
    kind = tensor.device.type
    known = (op_name, kind) in _kernels
    if torch.compiler.is_compiling() or kind not in KINDS:  # the compiler cannot look at devices and files
        return known
    if known and kind == "cpu":
        return True
    reason = _why_not(op_name, kind, tensor.device.index)
    if reason is not None:
        _complain(op_name, kind, reason)
    return reason is None


def implementation(op_name: str, tensor: Tensor, twin: Callable) -> Callable:
    """The native operator if it takes over for inputs like ``tensor``, else its twin."""
    return getattr(torch.ops.paq_detr, op_name) if use_native(op_name, tensor) else torch_form(op_name, twin)


def torch_form(op_name: str, twin: Callable) -> Callable:
    """What runs where the native operator does not: the twin, or what ``force_torch`` puts in its place."""
    return twin if _forms is None else _forms.get(op_name, twin)


def explain(op_name: str, *inputs: Any) -> list[Backend]:
    """Says for each backend (cuda, cpu, torch) whether it would run ``op_name`` on these inputs, and why.

    Args:
        op_name: an operator of this package, for example "fused_ms_deform_attn".
        inputs: the arguments the operator would get; the first tensor decides.

    Raises:
        ValueError: for an operator that does not exist, naming those that do.
    """
    _check_known(op_name)
    tensor = next((value for value in inputs if isinstance(value, Tensor)), torch.empty(0))
    backends = []
    for kind in KINDS:
        if tensor.device.type != kind:
            reason = f"the input is on {tensor.device.type}"
        elif tensor.dtype not in _operators[op_name]:
            reason = f"the input is {tensor.dtype}, the kernel takes {', '.join(map(str, _operators[op_name]))}"
        else:
            reason = _why_not(op_name, kind, tensor.device.index)
        backends.append(Backend(kind, reason is None, reason or library().reason))
    native = next((backend.name for backend in backends if backend.runs), None)
    backends.append(Backend("torch", native is None, f"the {native} kernel does" if native else "no kernel does"))
    return backends


def _check_known(op_name: str) -> None:
    if op_name not in _operators:
        raise ValueError(f"op_name {op_name!r} is none of {sorted(_operators)}")


@cache
def _why_not(op_name: str, device_type: str, device_index: int | None) -> str | None:
    if not library().loaded:
        return library().reason
    if (op_name, device_type) not in _kernels:
        return f"the native library was built without {device_type.upper()}; rebuild it: {BUILD_COMMAND}"
    if device_type == "cuda":
        return _wrong_architecture(library().record, torch.cuda.get_device_capability(device_index))
    return None


def _wrong_architecture(record: Mapping[str, Any], capability: tuple[int, int]) -> str | None:
    """Code for x.y runs on x.z with z >= y; PTX for x.y is compiled for anything newer when it is loaded."""
    architectures = [a for a in str(record.get("archs") or "").replace(" ", ";").split(";") if a]
    if not all(re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", architecture) for architecture in architectures):
        return None  # a name, such as Hopper; CUDA itself says what does not fit
    for architecture in architectures:
        built = _version(architecture.removesuffix("+PTX").rstrip("af"))
        if capability >= built and (capability[0] == built[0] or architecture.endswith("+PTX")):
            return None
    if not architectures:
        return None
    have = ".".join(map(str, capability))
    return (
        f"the native library is built for compute capability {', '.join(architectures)}, you have {have}; "
        f"rebuild it: TORCH_CUDA_ARCH_LIST={have} {BUILD_COMMAND}"
    )


@cache
def _complain(op_name: str, kind: str, reason: str) -> None:
    message = f"{op_name} has no {kind.upper()} kernel here: {reason}"
    if os.environ.get("PAQ_DETR_REQUIRE_EXT") == "1":
        raise RuntimeError(f"{message} (PAQ_DETR_REQUIRE_EXT=1 forbids the pure-torch form)")
    if kind == "cuda":
        logger.warning("%s. The slower pure-torch form runs.", message)


def _version(text: str) -> tuple[int, int]:
    major, minor = (text.split("+")[0].split(".") + ["0"])[:2]
    return int(major), int(minor)
