# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What this machine has, what works, and how to mend what does not.

    python -m paq_detr.doctor

Exit code 0 if training and inference will run as well as they can here, 1 otherwise. As a file (``python
projects/paq_detr/doctor.py``) it also runs where the package cannot be imported, and says why.
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"

# Import name, and the name that pip knows it by.
NEEDS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "scipy": "scipy",
    "PIL": "pillow",
    "pycocotools": "pycocotools",
    "fvcore": "fvcore",
    "iopath": "iopath",
    "tensorboard": "tensorboard",
    "matplotlib": "matplotlib",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    state: str
    text: str
    cure: str = ""

    def __str__(self) -> str:
        return f"{self.state:7}  {self.name:28} {self.text}" + (f"\n{'':38}-> {self.cure}" if self.cure else "")


def examine() -> Iterator[Finding]:
    """All findings, the general before the special."""
    yield _python()
    needs = [_module(name, pip_name) for name, pip_name in NEEDS.items()]
    yield from needs
    detectron2 = _detectron2()
    yield detectron2
    if needs[0].state == PROBLEM:
        return
    yield _devices()
    if needs[1].state != PROBLEM:
        yield _torchvision_operators()
    if detectron2.state == PROBLEM:
        return  # the package does not import without it
    yield from _package()


def _python() -> Finding:
    return Finding("python", OK, f"{platform.python_version()} at {sys.executable}, {platform.platform()}")


def _module(name: str, pip_name: str) -> Finding:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken binary raises anything
        return Finding(name, PROBLEM, _one_line(error), f"{sys.executable} -m pip install --force-reinstall {pip_name}")
    # The module's own version is the more telling one: torch's names its build.
    return Finding(name, OK, getattr(module, "__version__", None) or version(pip_name))


def _detectron2() -> Finding:
    try:
        import detectron2
        from detectron2.engine import TrainerBase  # noqa: F401  (imports nearly all of it)
    except Exception as error:
        cure = f"{sys.executable} -m paq_detr.install_detectron2"
        if not isinstance(error, ModuleNotFoundError) or error.name != "detectron2":
            cure = f"uninstall it, or mend that; without one, {cure} installs release 0.6"
        return Finding("detectron2", PROBLEM, _one_line(error), cure)
    return Finding("detectron2", OK, f"{detectron2.__version__} at {detectron2.__path__[0]}")


def _devices() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("CUDA devices", OK, f"{', '.join(names)} (torch is built for CUDA {torch.version.cuda})")
    if torch.version.cuda is None:
        return Finding("CUDA devices", NOTE, "none: this torch is built for CPU only")
    return Finding("CUDA devices", NOTE, "torch finds none; everything runs on CPU")


def _torchvision_operators() -> Finding:
    import torch
    import torchvision

    try:
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:
        return Finding(
            "torchvision operators",
            PROBLEM,
            _one_line(error),
            "install torch and torchvision of the same build (both for CPU, or both for the same CUDA)",
        )
    return Finding("torchvision operators", OK, "run")


def _package() -> Iterator[Finding]:
    try:
        from paq_detr.ops import _extension
    except Exception as error:
        cure = f"{sys.executable} -m pip install --no-build-isolation --no-deps -e ."
        yield Finding("paq_detr", PROBLEM, _one_line(error), cure)
        return
    import torch

    library = _extension.library()
    built = next(_extension.PACKAGE_DIR.glob("_C*.so"), None)
    if library.loaded:
        archs = library.record.get("archs")
        yield Finding("native library", OK, f"{library.reason}, compute capability {archs or 'none (CPU only)'}")
    else:
        never_built = built is None and not library.record
        yield Finding("native library", NOTE if never_built else PROBLEM, library.reason)
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for name, (function, twin) in _cases(device).items():
            yield _operator(name, device, function, twin)


def _operator(name: str, device: str, function: Callable[[], Any], twin: Callable[[], Any]) -> Finding:
    """Run an operator and its pure-torch twin and compare them."""
    import torch

    from paq_detr.ops import explain

    label = f"{name} ({device})"
    try:
        backend = next(b for b in explain(name, torch.empty(0, device=device)) if b.runs).name
        results, expected = _tensors(function()), _tensors(twin())
        error = max(float((a.double() - b.double()).abs().max()) for a, b in zip(results, expected, strict=True))
    except Exception as failure:
        return Finding(label, PROBLEM, _one_line(failure), "rebuild: pip install --no-build-isolation --no-deps -e .")
    if error > 1e-4:
        return Finding(label, PROBLEM, f"the {backend} kernel differs from pure torch by {error:.2g}", "report this")
    if backend == "torch" and device == "cuda":
        reason = explain(name, torch.empty(0, device=device))[0].reason
        return Finding(label, PROBLEM, "runs in pure torch, which is slow", reason)
    return Finding(label, OK, "pure torch" if backend == "torch" else f"{backend} kernel, as pure torch to {error:.1g}")


def _cases(device: str) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Every operator and its twin on small inputs."""
    import torch

    from paq_detr import ops

    seed = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=seed).to(device)

    shapes = ((4, 6), (2, 3))
    attention = (rand(2, 30, 2, 4), shapes)
    locations, weights = rand(2, 5, 2, 2, 3, 2), rand(2, 5, 2, 2, 3)
    fused = (*attention, rand(2, 5, 4), rand(2, 5, 2, 2, 3, 2), rand(2, 5, 2, 6))
    boxes, scores = rand(2, 8, 4) * 0.5 + 0.25, rand(2, 8)
    index, count = ops.neighbor_select_torch(boxes, scores, 3, 0.2, 0.1)
    difference = (rand(2, 8, 4), index, count, rand(4), rand(5, 4), rand(5), True)
    image = torch.tensor([0, 0, 1], device=device)
    pairs = (boxes[None], rand(3, 4) * 0.5 + 0.25, image)
    scored = (rand(1, 2, 8, 3), boxes[None], torch.tensor([0, 2, 1], device=device), pairs[1], image)
    quality = {"score_weight": -0.4, "iou_weight": 1.0}
    return {
        "ms_deform_attn": (
            lambda: ops.ms_deform_attn(*attention, locations, weights),
            lambda: ops.ms_deform_attn_torch(*attention, locations, weights),
        ),
        "fused_ms_deform_attn": (
            lambda: ops.fused_ms_deform_attn(*fused),
            lambda: ops.fused_ms_deform_attn_torch(*fused),
        ),
        "neighbor_select": (
            lambda: ops.neighbor_select(boxes, scores, 3, 0.2, 0.1),
            lambda: (index, count),
        ),
        "neighbor_difference": (
            lambda: ops.neighbor_difference(*difference),
            lambda: ops.neighbor_difference_torch(*difference),
        ),
        "pair_iou": (lambda: ops.pair_iou(*pairs), lambda: ops.pair_iou_torch(*pairs)),
        "pair_quality": (
            lambda: ops.pair_quality(*scored, **quality),
            lambda: ops.pair_quality_torch(*scored, *quality.values()),
        ),
        "quality_topk": (
            lambda: ops.quality_topk(*scored, **quality, k=3, min_count=1),
            lambda: ops.quality_topk_torch(*scored, *quality.values(), 3, 1),
        ),
        "match_cost": (
            lambda: ops.match_cost(*scored),
            lambda: ops.match_cost_torch(*scored, 2.0, 5.0, 2.0, 0.25, 2.0),
        ),
    }


def _tensors(result: Any) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def main() -> int:
    problems = 0
    for finding in examine():
        problems += finding.state == PROBLEM
        sys.stdout.write(f"{finding}\n")
    sys.stdout.write(f"{problems or 'no'} problem{'s' * (problems != 1)} found\n")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
