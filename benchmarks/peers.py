# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of other projects, to be measured against where they are installed. Nothing of them is kept here.

ms-deform-attn      the wheel of that name: the original CUDA kernel; float32. It links CUDA 12's runtime
                    (`pip install nvidia-cuda-runtime-cu12` beside a torch for CUDA 13).
transformers 4.46   the same kernel opened for 16 bits. Its sources lie in the wheel that PAQ_DETR_TRANSFORMERS_WHEEL
                    names (4.46.3) and are compiled at the first call, in the torch_extensions cache. A CUDA toolkit
                    without cuSPARSE finds its headers by CPATH=.../site-packages/nvidia/cu13/include.
                    PAQ_DETR_TRANSFORMERS_KERNEL may name the module compiled before (a file .so) instead.
FlashDeformAttn     DCNv4's fused kernel; float16, and its locations are float16 as well.
deformops           its own choice of backend (on CUDA 13 and torch 2.11 a Triton kernel); the softmax is its own.

Every function takes value, levels, reference, raw offsets and raw logits, as ours does, and does in eager torch what
its kernel leaves out.
"""

import functools
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

IM2COL_STEP = 64
TRY_SECONDS = 60


@dataclass(frozen=True)
class Peer:
    types: tuple[str, ...]
    run: Callable[..., torch.Tensor]


def eager_locations(levels, reference, offsets, logits, softmax=True):
    _, _, sizes = _shapes_on_device(tuple(levels), offsets.device)
    locations = reference[:, :, None, None, None] + offsets / sizes[:, None]
    return locations, logits.softmax(-1).view(offsets.shape[:-1]) if softmax else None


def msda_peers(device: str, tried: bool = False) -> dict[str, Peer]:
    """Those that can be had here; of the others one line says why not. Unless ``tried``, each is called once first."""
    if not device.startswith("cuda"):
        return {}
    found = {}
    for name, (types, load) in {
        "ms-deform-attn": (("float32",), _wheel),
        "transformers 4.46": (("float32", "bfloat16", "float16"), _transformers),
        "FlashDeformAttn": (("float16",), _flash_deform_attn),
        "deformops": (("float32", "bfloat16", "float16"), _deformops),
    }.items():
        try:
            found[name] = Peer(types, load())
        except Exception as error:  # whatever a foreign package does when it is imported or compiled
            _tell(name, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return found if tried else _tried(found)


def _tell(name, reason):
    print(f"{name} is left out: {reason}", file=sys.stderr)


def _tried(peers: dict[str, Peer]) -> dict[str, Peer]:
    """Those that survive a small call in a process of their own: a foreign kernel that ends the process, or hangs,
    would take the measurements of all others with it."""
    tries = {
        name: subprocess.Popen(
            [sys.executable, __file__, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        for name in peers
    }
    good, end = {}, time.monotonic() + TRY_SECONDS
    for name, process in tries.items():
        try:
            output, _ = process.communicate(timeout=max(1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _tell(name, f"a small call took more than {TRY_SECONDS} s")
            continue
        if process.returncode == 0:
            good[name] = peers[name]
        else:
            last = (output.decode(errors="replace").strip() or "no output").splitlines()[-1]
            _tell(name, f"a small call ended with {process.returncode}: {last}")
    return good


def _try(name: str) -> None:
    peer = msda_peers("cuda", tried=True)[name]
    levels, shape = [(8, 8), (4, 4), (2, 2), (1, 1)], (1, 64, 8, 4, 4, 2)
    for dtype in peer.types:
        value = torch.randn(1, 85, 8, 32, device="cuda", dtype=getattr(torch, dtype), requires_grad=True)
        reference, offsets = torch.rand(1, 64, 2, device="cuda"), torch.randn(shape, device="cuda", requires_grad=True)
        logits = torch.randn(1, 64, 8, 16, device="cuda", requires_grad=True)
        peer.run(value, levels, reference, offsets, logits).sum().backward()
    torch.cuda.synchronize()


def _wheel():
    return functools.partial(_run_kernel, importlib.import_module("MultiScaleDeformableAttention"))


def _transformers():
    if built := os.environ.get("PAQ_DETR_TRANSFORMERS_KERNEL"):
        spec = importlib.util.spec_from_file_location("transformers_deformable_detr", built)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return functools.partial(_run_kernel, module)
    wheel = os.environ.get("PAQ_DETR_TRANSFORMERS_WHEEL")
    if not wheel:
        raise ImportError("PAQ_DETR_TRANSFORMERS_WHEEL names no wheel of transformers 4.46.3")
    return functools.partial(_run_kernel, build_transformers_kernel(Path(wheel)))


def build_transformers_kernel(wheel: Path):
    """The extension module compiled from the wheel's sources."""
    from torch.utils.cpp_extension import get_default_build_root, load

    root = Path(get_default_build_root()) / "transformers_deformable_detr_sources"  # one place: compiled only once
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            _, found, inside = name.partition("transformers/kernels/deformable_detr/")
            if found and inside:
                _write_if_changed(root / inside, _for_this_torch(archive.read(name).decode()))
    return load(
        "transformers_deformable_detr",
        [str(root / name) for name in ("vision.cpp", "cpu/ms_deform_attn_cpu.cpp", "cuda/ms_deform_attn_cuda.cu")],
        extra_include_paths=[str(root)],
        extra_cflags=["-DWITH_CUDA"],
        extra_cuda_cflags=["-DWITH_CUDA"],
        with_cuda=True,
    )


def _for_this_torch(source: str) -> str:
    """torch no longer takes what Tensor.type() gives."""
    return source.replace(".type().is_cuda()", ".is_cuda()").replace(".type(),", ".scalar_type(),")


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@functools.cache
def _shapes_on_device(levels, device):
    """(height, width), first token and (width, height) of each level as tensors, which a model makes once."""
    shapes = torch.tensor(levels, device=device)
    return shapes, torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]]), shapes.flip(1)


class _Kernel(torch.autograd.Function):
    """The calls that the wheel and transformers share."""

    @staticmethod
    def forward(ctx, kernel, *inputs):
        ctx.kernel = kernel
        ctx.save_for_backward(*inputs)
        return kernel.ms_deform_attn_forward(*inputs, IM2COL_STEP)

    @staticmethod
    def backward(ctx, grad_out):
        gradients = ctx.kernel.ms_deform_attn_backward(*ctx.saved_tensors, grad_out.contiguous(), IM2COL_STEP)
        grad_value, grad_locations, grad_weights = gradients
        return None, grad_value, None, None, grad_locations, grad_weights


def _run_kernel(kernel, value, levels, reference, offsets, logits):
    locations, weights = eager_locations(levels, reference, offsets, logits)
    shapes, starts, _ = _shapes_on_device(tuple(levels), value.device)
    return _Kernel.apply(kernel, value, shapes, starts, locations.to(value.dtype), weights.to(value.dtype))


def _flash_deform_attn():
    module = importlib.import_module("DCNv4.functions.flash_deform_attn_func")
    for name in ("factors", "findspec", "findspec_bwd"):  # loops in Python at every call; a user would keep the answer
        if hasattr(module, name):
            setattr(module, name, functools.cache(getattr(module, name)))
    function = module.FlashDeformAttnFunction

    def run(value, levels, reference, offsets, logits):
        locations, _ = eager_locations(levels, reference, offsets, logits, softmax=False)  # it is the kernel's own
        joined = torch.cat([locations.flatten(3), logits], -1).to(value.dtype)
        shapes, starts, _ = _shapes_on_device(tuple(levels), value.device)
        return function.apply(value, shapes, starts, joined, IM2COL_STEP, offsets.shape[4])

    return run


def _deformops():
    msda = importlib.import_module("deformops.registry").msda

    def run(value, levels, reference, offsets, logits):
        locations, _ = eager_locations(levels, reference, offsets, logits, softmax=False)
        shapes, starts, _ = _shapes_on_device(tuple(levels), value.device)
        out = msda(value, shapes, starts, locations.to(value.dtype), logits.to(value.dtype), method="softmax")
        return out.flatten(2)

    return run


def linear_assignment() -> Callable[[torch.Tensor], torch.Tensor] | None:
    """torch-linear-assignment's solver of (P, rows, columns) costs on a GPU, or None."""
    try:
        return importlib.import_module("torch_linear_assignment").batch_linear_assignment
    except ImportError as error:
        print(f"torch-linear-assignment is left out: {error}", file=sys.stderr)
        return None


if __name__ == "__main__":
    _try(sys.argv[1])
