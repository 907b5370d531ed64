# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Inputs of multi-scale deformable attention, and its definition as loops over single points."""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from paq_detr.ops import fused_ms_deform_attn, fused_ms_deform_attn_torch, ms_deform_attn, ms_deform_attn_torch

LEVELS = [(9, 17), (5, 8), (3, 4)]  # H != W everywhere
FORMS = ("locations", "points", "boxes")
# Relative to the largest entry: twice the rounding of 16-bit values; float32 sums of some hundred terms.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

SHAPES = [
    dict(),
    dict(channels=5, points=1),
    dict(channels=32, heads=1, points=4, levels=LEVELS + [(1, 1)], queries=5),
    dict(channels=3, points=7, levels=[(4, 6)]),
    dict(batch=1, queries=3, channels=72, points=2),
]


@dataclass
class Inputs:
    """Arguments of both forms; `reference` is None in the classical one."""

    value: Tensor
    reference: Tensor | None
    xy: Tensor
    scores: Tensor
    valid_ratios: Tensor | None = None
    padding_mask: Tensor | None = None
    levels: tuple = tuple(LEVELS)

    def run(self, classical=ms_deform_attn, fused=fused_ms_deform_attn):
        if self.reference is None:
            return classical(self.value, self.levels, self.xy, self.scores)
        return fused(
            self.value, self.levels, self.reference, self.xy, self.scores, self.valid_ratios, self.padding_mask
        )

    def run_twin(self):
        return self.run(ms_deform_attn_torch, fused_ms_deform_attn_torch)

    def map(self, function):
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items()})

    def image(self, b):
        return self.map(lambda tensor: tensor[b : b + 1])

    def doubled(self):
        return self.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def differentiable(self):
        """The four (or three) tensors that receive gradients, by their public names, as fresh leaves."""
        names = [name for name in ("value", "reference", "xy", "scores") if getattr(self, name) is not None]
        leaves = {name: getattr(self, name).detach().clone().requires_grad_() for name in names}
        return replace(self, **leaves), leaves


def make(form, dtype=torch.float64, batch=2, queries=7, heads=2, channels=4, points=3, levels=LEVELS, padded=True):
    torch.manual_seed(0)
    tokens = sum(height * width for height, width in levels)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    value = torch.randn(batch, tokens, heads, channels).to(dtype)
    shape = (batch, queries, heads, len(levels), points)
    xy, scores = torch.randn(*shape, 2, dtype=real), torch.randn(shape, dtype=real)
    if form == "locations":
        return Inputs(value, None, 0.5 + 0.4 * xy, scores, levels=tuple(levels))
    reference = torch.rand(batch, queries, 2 if form == "points" else 4, dtype=real)
    inputs = Inputs(value, reference, 3 * xy, scores.flatten(3), levels=tuple(levels))
    if padded:
        inputs.valid_ratios = 0.5 + 0.5 * torch.rand(batch, len(levels), 2, dtype=real)
        inputs.padding_mask = torch.rand(batch, tokens) < 0.2
    return inputs


def naive(inputs):
    """The definition: for each query and head, sum over all points of weight times bilinear sample."""
    value, levels = inputs.value, inputs.levels
    batch, queries, heads, _, points, _ = inputs.xy.shape
    out = torch.zeros(batch, queries, heads, value.shape[3], dtype=value.dtype)
    for b, q, h in ((b, q, h) for b in range(batch) for q in range(queries) for h in range(heads)):
        weights = inputs.scores[b, q, h].reshape(len(levels), points)
        if inputs.reference is not None:
            weights = (weights - weights.max()).exp() / (weights - weights.max()).exp().sum()
        start = 0
        for level, (height, width) in enumerate(levels):
            tokens = value[b, start : start + height * width, h].reshape(height, width, -1)
            if inputs.padding_mask is not None:
                padding = inputs.padding_mask[b, start : start + height * width].reshape(height, width)
                tokens = tokens.masked_fill(padding[..., None], 0)
            for p in range(points):
                x, y = naive_location(inputs, b, q, h, level, p)
                out[b, q, h] += weights[level, p] * naive_sample(tokens, x * width - 0.5, y * height - 0.5)
            start += height * width
    return out.flatten(2)


def naive_location(inputs, b, q, h, level, p):
    x, y = inputs.xy[b, q, h, level, p].tolist()
    if inputs.reference is None:
        return x, y
    height, width = inputs.levels[level]
    reference = inputs.reference[b, q].tolist()
    ratio_x, ratio_y = (1, 1) if inputs.valid_ratios is None else inputs.valid_ratios[b, level].tolist()
    if len(reference) == 2:
        return reference[0] * ratio_x + x / width, reference[1] * ratio_y + y / height
    points = inputs.xy.shape[4]
    cx, cy, w, h = (r * ratio for r, ratio in zip(reference, (ratio_x, ratio_y) * 2, strict=True))
    return cx + x / points * w * 0.5, cy + y / points * h * 0.5


def naive_sample(tokens, x, y):
    height, width, _ = tokens.shape
    sample = torch.zeros_like(tokens[0, 0])
    if not (-1 < x < width and -1 < y < height):
        return sample
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                sample += tokens[row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return sample


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    difference = (actual.double().cpu() - expected.double()).abs().max().item() if expected.numel() else 0.0
    assert difference <= tolerance * expected.double().abs().max().item(), f"differs by {difference}"


def gradients(inputs, run, grad_out):
    inputs, leaves = inputs.differentiable()
    grads = torch.autograd.grad(run(inputs), list(leaves.values()), grad_out)
    return dict(zip(leaves, grads, strict=True))
