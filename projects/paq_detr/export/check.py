# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether an exported file finds what the model finds: detections of both as sets, on the same pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import ImageList
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import nn

from ..data import read_image
from ..errors import UserError

Runner = Callable[..., Sequence[np.ndarray]]
ALLOWED_SHARE = (
    0.01  # of detections without a partner: proposals that tie at the border of the best N replace each other
)


@dataclass(frozen=True)
class Tolerance:
    box: float  # pixels of the input
    score: float


@dataclass(frozen=True)
class Detections:
    """Of one image, as arrays of one length."""

    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


@dataclass
class Differences:
    """The largest differences of pairs, and how many detections found no partner within the tolerance."""

    box: float = 0.0
    score: float = 0.0
    alone: int = 0
    total: int = 0

    def add(self, ours: Detections, theirs: Detections, tolerance: Tolerance) -> None:
        """Pair each of ``ours`` with one of ``theirs`` of its class, so that they differ least in all."""
        boxes = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(-1, initial=0.0)
        scores = np.abs(ours.scores[:, None] - theirs.scores[None])
        cost = np.maximum(boxes / tolerance.box, scores / tolerance.score)
        cost = np.where(ours.labels[:, None] == theirs.labels, np.nan_to_num(cost, nan=1e6).clip(max=1e6), 1e6)
        mine, partner = linear_sum_assignment(cost.clip(max=10.0))  # one far away is as good as another
        near = cost[mine, partner] <= 1
        self.total += max(cost.shape)
        self.alone += max(cost.shape) - int(near.sum())
        self.box = max(self.box, boxes[mine, partner][near].max(initial=0.0))
        self.score = max(self.score, scores[mine, partner][near].max(initial=0.0))

    def within(self) -> bool:
        return self.alone <= max(1, ALLOWED_SHARE * self.total) and self.alone < max(1, self.total)


def compare(
    model: nn.Module, run: Runner, inputs: Iterator[tuple[np.ndarray, ...]], tolerance: Tolerance
) -> Differences:
    """The file behind ``run`` against ``model`` in eager mode with its native operators, image by image.

    Args:
        inputs: what the file takes: images (1, C, H, W) from 0 to 1, and for a dynamic one their un-padded sizes.
    """
    differences = Differences()
    for arrays in inputs:
        labels, boxes, scores = (array[0] for array in run(*arrays))
        found = scores > 0
        differences.add(detect(model, *arrays), Detections(labels[found], boxes[found], scores[found]), tolerance)
    return differences


@torch.no_grad()
def detect(model: nn.Module, images: np.ndarray, valid_sizes: np.ndarray | None = None) -> Detections:
    """What the model itself finds on an input of the file."""
    pixels = torch.from_numpy(images).to(model.device) * 255
    pixels = pixels.flip(1) if model.input_format == "BGR" else pixels
    height, width = images.shape[-2:] if valid_sizes is None else map(int, valid_sizes[0])
    normed = (pixels - model.pixel_mean) / model.pixel_std
    normed[..., height:, :] = 0.0
    normed[..., width:] = 0.0
    (found,) = model.detect(model.encode(ImageList(normed, [(height, width)])))
    found = found[found.scores > 0]
    found.pred_boxes.clip((height, width))
    return Detections(
        found.pred_classes.cpu().numpy(), found.pred_boxes.tensor.cpu().numpy(), found.scores.cpu().numpy()
    )


def read_inputs(
    files: Sequence[str], channels: str, size: tuple[int, int], stride: int, dynamic: bool
) -> Iterator[tuple[np.ndarray, ...]]:
    """Each image as the file takes it: stretched to ``size``, or to the multiples of the stride next to its own size
    scaled to the same area.

    Raises:
        UserError: an image that cannot be read.
    """
    for file in files:
        try:
            pixels = read_image(file, channels)
        except ValueError as error:
            raise UserError(f"{error}.") from error
        height, width = size
        if dynamic:
            scale = (height * width / (pixels.shape[0] * pixels.shape[1])) ** 0.5
            height, width = (max(round(side * scale / stride), 1) * stride for side in pixels.shape[:2])
        image = Image.fromarray(pixels.squeeze(-1) if channels == "L" else pixels)
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32) / 255
        array = resized[None, None] if channels == "L" else resized.transpose(2, 0, 1)[None].copy()
        yield (array, np.array([[height, width]], dtype=np.int64)) if dynamic else (array,)
