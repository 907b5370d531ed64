# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The augmentations that ``INPUT.AUGMENT`` names, in its order, before DETR's own flip, crop and resize.

A step takes a ``Sample`` and gives one. It is registered by name with its builder ``builder(cfg)``. A step that puts
several pictures together is a ``Mix`` and also gets a function that draws another sample of the dataset: one that has
gone through the steps before it, except those that mix, so that an image costs a bounded number of others.

All randomness comes from the global generators, which the loader seeds for each place in its stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torchvision.transforms import v2

from ..checks import check_numbers, check_range
from ..errors import UserError
from ..registry import Registry, adds_config
from .sample import Sample, inside, moved

AUGMENTATIONS = Registry("INPUT.AUGMENT")

Step = Callable[..., Sample]


@adds_config
def add_augment_config(cfg: CfgNode) -> None:
    """Add the keys of the augmentations, in place."""
    cfg.INPUT.AUGMENT = []  # names, in the order in which they are applied; empty: none
    # Where pictures are cut or covered, an object of which less than this share of what was seen is left is dropped.
    cfg.INPUT.MIN_VISIBLE = 0.3
    # Mosaic, mixup and copy_paste are off in so many last epochs (YOLOX: 15 of 300).
    cfg.INPUT.MIX_OFF_EPOCHS = 0

    # "color_jitter": with probability PROB, factors from 1 - x to 1 + x, and a turn of the hue by up to that share of
    # the circle. The values are SimCLR's at half of its strength (Chen et al. 2020).
    cfg.INPUT.COLOR_JITTER = J = CfgNode()
    J.PROB = 0.8
    J.BRIGHTNESS = 0.4
    J.CONTRAST = 0.4
    J.SATURATION = 0.4
    J.HUE = 0.1
    # "large_scale_jitter" (Ghiasi et al. 2021): resized by a random factor of the size that fits into SIZE (height and
    # width), and cropped to it. It stands in place of INPUT.MIN_SIZE_TRAIN and INPUT.CROP.
    cfg.INPUT.LARGE_SCALE_JITTER = J = CfgNode()
    J.SCALE = [0.1, 2.0]
    J.SIZE = [1024, 1024]
    # "albumentations": transforms of that library (pip install 'paq_detr[augment]'), each a name or {name: {argument:
    # value}}; or the name of a yaml file that holds such a list or what albumentations.save wrote.
    cfg.INPUT.ALBUMENTATIONS = []


class Mix:
    """A step that also needs other samples; called as ``step(sample, draw)``."""

    def __call__(self, sample: Sample, draw: Callable[[], Sample]) -> Sample:
        raise NotImplementedError


class Augmentations:
    """The steps, one after the other."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = list(steps)

    @property
    def mixes(self) -> bool:
        """Whether other samples are needed."""
        return any(isinstance(step, Mix) for step in self.steps)

    def without_mixing(self) -> Augmentations:
        return Augmentations([step for step in self.steps if not isinstance(step, Mix)])

    def __call__(self, sample: Sample, draw: Callable[[], Sample]) -> Sample:
        """
        Args:
            draw: gives another sample of the dataset, as it was read.
        """
        alone: list[Step] = []
        for step in self.steps:
            if isinstance(step, Mix):
                sample = step(sample, partial(_through, tuple(alone), draw))
            else:
                sample = step(sample)
                alone.append(step)
        return sample


def _through(steps: Sequence[Step], draw: Callable[[], Sample]) -> Sample:
    sample = draw()
    for step in steps:
        sample = step(sample)
    return sample


def build_augmentations(cfg: CfgNode) -> Augmentations:
    """What ``INPUT.AUGMENT`` names.

    Raises:
        UserError: a name that is not registered, a value out of range, or keys that contradict each other.
    """
    names = cfg.INPUT.AUGMENT
    check_range("INPUT.MIX_OFF_EPOCHS", cfg.INPUT.MIX_OFF_EPOCHS, "[0, inf)")
    check_range("INPUT.MIN_VISIBLE", cfg.INPUT.MIN_VISIBLE, "[0, 1]")
    if cfg.INPUT.ALBUMENTATIONS and "albumentations" not in names:
        raise UserError(f"INPUT.ALBUMENTATIONS is set, but INPUT.AUGMENT, {list(names)}, does not name albumentations")
    if "large_scale_jitter" in names and cfg.INPUT.CROP.ENABLED:
        raise UserError("INPUT.AUGMENT large_scale_jitter crops by itself: set INPUT.CROP.ENABLED False")
    return Augmentations([AUGMENTATIONS.build(name, cfg) for name in names])


def step_of(augmentation: T.Augmentation) -> Step:
    """A step of one of Detectron2's augmentations, for plug-ins as well."""
    return partial(_apply, augmentation)


def _apply(augmentation: T.Augmentation, sample: Sample) -> Sample:
    augmented = T.AugInput(sample.image)
    transform = augmentation(augmented)
    return inside(moved(sample, transform, augmented.image))


def probability(cfg: CfgNode, section: str) -> float:
    """``INPUT.<section>.PROB``, checked."""
    return check_range(f"INPUT.{section}.PROB", cfg.INPUT[section].PROB, "[0, 1]")


def interval(key: str, value: Any, limits: str) -> tuple[float, float]:
    """The config key ``key`` as the lower and upper end of a range, checked."""
    check_numbers(key, value, limits, length=2)
    low, high = value
    if low > high:
        raise UserError(f"{key} is {list(value)}, must be the least and the largest value")
    return low, high


class ColorJitter(T.Augmentation):
    """torchvision's jitter of brightness, contrast, saturation and hue, in random order."""

    def __init__(self, prob: float, jitter: Callable, flip_channels: bool) -> None:
        """
        Args:
            jitter: of a (3, H, W) uint8 tensor in RGB.
            flip_channels: the pictures are BGR.
        """
        super().__init__()
        self.prob, self.jitter, self.flip_channels = prob, jitter, flip_channels

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return T.ColorTransform(self._jittered) if np.random.rand() < self.prob else T.NoOpTransform()

    def _jittered(self, image: np.ndarray) -> np.ndarray:
        step = -1 if self.flip_channels else 1
        pixels = torch.from_numpy(np.ascontiguousarray(image[..., ::step].transpose(2, 0, 1)))
        return self.jitter(pixels).numpy().transpose(1, 2, 0)[..., ::step]


@AUGMENTATIONS.register("color_jitter")
def build_color_jitter(cfg: CfgNode) -> Step:
    keys, upper = cfg.INPUT.COLOR_JITTER, {"HUE": "0.5"}
    names = ("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE")
    strengths = [check_range(f"INPUT.COLOR_JITTER.{n}", keys[n], f"[0, {upper.get(n, '1')}]") for n in names]
    jitter = v2.ColorJitter(*strengths)
    return step_of(ColorJitter(probability(cfg, "COLOR_JITTER"), jitter, cfg.INPUT.FORMAT == "BGR"))


class LargeScaleJitter(T.Augmentation):
    """Resize by a random factor of the largest size that fits into ``size``, then crop to it where it is larger."""

    def __init__(self, scale: tuple[float, float], size: tuple[int, int]) -> None:
        super().__init__()
        self.scale, self.crop_size = scale, size

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        limits = np.array(self.crop_size)
        factor = np.random.uniform(*self.scale) * (limits / (height, width)).min()
        new = np.maximum(np.round(np.multiply((height, width), factor)).astype(int), 1)
        part = np.minimum(new, limits)
        y, x = (np.random.randint(n + 1) for n in new - part)
        resize = T.ResizeTransform(height, width, int(new[0]), int(new[1]))
        return T.TransformList([resize, T.CropTransform(x, y, int(part[1]), int(part[0]), int(new[1]), int(new[0]))])


@AUGMENTATIONS.register("large_scale_jitter")
def build_large_scale_jitter(cfg: CfgNode) -> Step:
    key, keys = "INPUT.LARGE_SCALE_JITTER", cfg.INPUT.LARGE_SCALE_JITTER
    check_numbers(f"{key}.SIZE", keys.SIZE, "[1, inf)", length=2)
    size = int(keys.SIZE[0]), int(keys.SIZE[1])
    return step_of(LargeScaleJitter(interval(f"{key}.SCALE", keys.SCALE, "(0, 10]"), size))
