# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Box codecs: what a box head's four numbers mean, relative to a reference.

Every codec has ``decode`` and its inverse ``encode``, with the grid at hand: some measure in pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check_range
from ..layers import inverse_sigmoid
from ..registry import CODECS
from ..structures import Grid


class LogitCodec:
    """Boxes as logits relative to a reference: ``sigmoid(delta + logit(reference))``, the DETR family's codec."""

    needs: frozenset[str] = frozenset()  # points will do as references

    def __init__(self, eps: float = 1e-5):
        """
        Args:
            eps: of the logit: 1e-5 in Deformable DETR, 1e-3 in DINO.
        """
        self.eps = eps

    def decode(self, delta: Tensor, reference: Tensor, grid: Grid | None = None) -> Tensor:
        """
        Args:
            delta: (B, N, 4) output of a box head.
            reference: (B, N, 4) boxes, or (B, N, 2) points, to which only the centre is relative.

        Returns:
            (B, N, 4) boxes, in fp32: a bf16 logit is too coarse for a box edge.
        """
        delta, logit = delta.float(), inverse_sigmoid(reference.float(), self.eps)
        if reference.shape[-1] == 2:
            return torch.cat([delta[..., :2] + logit, delta[..., 2:]], -1).sigmoid()
        return (delta + logit).sigmoid()

    def encode(self, boxes: Tensor, reference: Tensor, grid: Grid | None = None) -> Tensor:
        """(B, N, 4) what decodes to ``boxes``, as far as they lie eps inside (0, 1)."""
        logit, start = inverse_sigmoid(boxes.float(), self.eps), inverse_sigmoid(reference.float(), self.eps)
        if reference.shape[-1] == 2:
            return torch.cat([logit[..., :2] - start, logit[..., 2:]], -1)
        return logit - start


class DeltaCodec:
    """R-CNN's deltas (Girshick 2015): centres in reference sizes, sizes as logarithms, each over its weight.

    Sparse R-CNN: weights (2, 2, 1, 1), logarithms at most ln(100000 / 16). The map is separable, so that it is the same
    in pixels and in shares of the image.
    """

    needs = frozenset({"boxes"})

    def __init__(
        self, weights: tuple[float, float, float, float] = (2.0, 2.0, 1.0, 1.0), max_log: float = math.log(100000 / 16)
    ):
        self.weights, self.max_log = weights, max_log

    def decode(self, delta: Tensor, reference: Tensor, grid: Grid | None = None) -> Tensor:
        """(B, N, 4) deltas at (B, N, 4) boxes to (B, N, 4) boxes, in fp32."""
        delta = delta.float() / delta.new_tensor(self.weights, dtype=torch.float32)
        center, size = reference.float().chunk(2, -1)
        return torch.cat([center + delta[..., :2] * size, size * delta[..., 2:].clamp(max=self.max_log).exp()], -1)

    def encode(self, boxes: Tensor, reference: Tensor, grid: Grid | None = None) -> Tensor:
        center, size = reference.float().chunk(2, -1)
        delta = torch.cat([(boxes[..., :2] - center) / size, (boxes[..., 2:] / size).log()], -1)
        return delta * delta.new_tensor(self.weights)


class XYZRCodec:
    """AdaMixer's (x, y, z, r): centre in pixels, z = log2 sqrt(w h), r = log2(h / w).

    The centre moves in units of 2^z; z and r move by their delta. ASAG's r is half as large (``r_scale`` 0.5) and its
    ``unit`` is a pixel of stride 4, which cancels out between decode and encode but not in a code of (x, y, z, r).
    """

    needs = frozenset({"boxes"})

    def __init__(self, r_scale: float = 1.0, unit: float = 1.0):
        """
        Args:
            r_scale: r = ``r_scale`` log2(h / w).
            unit: of x, y and 2^z, in pixels.
        """
        self.r_scale, self.unit = r_scale, unit

    def to_xyzr(self, boxes: Tensor, grid: Grid) -> Tensor:
        """(B, N, 4) boxes to (x, y, z, r), in units of the resized image. A side counts as 1e-7 units at least."""
        x, y, w, h = (boxes.float() * (grid.image_scale / self.unit)).unbind(-1)
        w, h = w.clamp(min=1e-7), h.clamp(min=1e-7)
        z, r = (w.log2() + h.log2()) / 2, self.r_scale * (h.log2() - w.log2())
        return torch.stack([x, y, z, r], -1)

    def to_boxes(self, xyzr: Tensor, grid: Grid) -> Tensor:
        """The inverse of :meth:`to_xyzr`."""
        x, y, z, r = xyzr.unbind(-1)
        half = r / (2 * self.r_scale)
        return torch.stack([x, y, 2 ** (z - half), 2 ** (z + half)], -1) / (grid.image_scale / self.unit)

    def decode(self, delta: Tensor, reference: Tensor, grid: Grid) -> Tensor:
        """(B, N, 4) deltas at (B, N, 4) boxes to (B, N, 4) boxes, in fp32."""
        start, delta = self.to_xyzr(reference, grid), delta.float()
        center = start[..., :2] + delta[..., :2] * 2 ** start[..., 2:3]
        return self.to_boxes(torch.cat([center, start[..., 2:] + delta[..., 2:]], -1), grid)

    def encode(self, boxes: Tensor, reference: Tensor, grid: Grid) -> Tensor:
        start, end = self.to_xyzr(reference, grid), self.to_xyzr(boxes, grid)
        move = end - start
        return torch.cat([move[..., :2] / 2 ** start[..., 2:3], move[..., 2:]], -1)


@CODECS.register("logit")
def build_logit_codec(cfg, kit) -> LogitCodec:
    return LogitCodec(cfg.MODEL.DETR.INVERSE_SIGMOID_EPS)


@CODECS.register("rcnn_delta")
def build_delta_codec(cfg, kit) -> DeltaCodec:
    return DeltaCodec()


@CODECS.register("xyzr")
def build_xyzr_codec(cfg, kit) -> XYZRCodec:
    X = cfg.MODEL.DETR.XYZR
    return XYZRCodec(
        check_range("MODEL.DETR.XYZR.R_SCALE", X.R_SCALE, "(0, inf)"),
        check_range("MODEL.DETR.XYZR.UNIT", X.UNIT, "(0, inf)"),
    )
