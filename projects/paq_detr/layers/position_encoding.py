# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import torch
from torch import Tensor


def _sine(values: Tensor, dim: int, temperature: float) -> Tensor:
    """(...) values times 2 pi to (..., dim) interleaved sines and cosines of falling frequency."""
    index = torch.arange(dim, device=values.device, dtype=torch.float32)
    period = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / dim)
    angle = values[..., None] * (2 * math.pi) / period
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2)


def sine_map_code(shape: tuple[int, int], valid: Tensor, dim: int, temperature: float, offset: float) -> Tensor:
    """Sine code of a feature map's pixels, normalised by the un-padded size (DETR; y first, then x).

    Args:
        shape: (H, W) of the map.
        valid: (B, 2) un-padded (H, W) in the map's pixels.
        dim: channels of the code, half of them for each axis.
        temperature: 10000 in Deformable DETR, 20 in DINO.
        offset: added to pixel numbers that start at 1: -0.5 in Deformable DETR, 0 in DINO.

    Returns:
        (B, H * W, dim) in fp32.
    """
    height, width = shape
    y = torch.arange(1, height + 1, device=valid.device, dtype=torch.float32) + offset
    x = torch.arange(1, width + 1, device=valid.device, dtype=torch.float32) + offset
    y = _sine(y / (valid[:, :1] + 1e-6), dim // 2, temperature)  # (B, H, dim / 2)
    x = _sine(x / (valid[:, 1:] + 1e-6), dim // 2, temperature)  # (B, W, dim / 2)
    code = torch.cat([y[:, :, None].expand(-1, -1, width, -1), x[:, None].expand(-1, height, -1, -1)], -1)
    return code.flatten(1, 2)


def sine_box_code(boxes: Tensor, dim: int = 128, temperature: float = 10000.0) -> Tensor:
    """(B, N, 4) boxes (or (B, N, 2) points) to (B, N, 4 * dim): their coordinates' sine codes one after the other."""
    return _sine(boxes.float(), dim, temperature).flatten(-2)
