# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ..checks import Choice


class MLP(nn.Sequential):
    """Linear layers with an activation between them; none at the end."""

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int, activation: type[nn.Module] = nn.ReLU
    ):
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Linear(narrow, wide), activation()]
        super().__init__(*layers[:-1])

    @property
    def last(self) -> nn.Linear:
        return self[-1]


def xavier(module: nn.Module) -> nn.Module:
    """The module, its matrices Xavier-uniform, as everywhere in the published transformers."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    return module


#: Activations by name; "prelu" learns its slope below zero, one for all channels, from 0.25 on.
ACTIVATIONS = {"relu": nn.ReLU, "prelu": nn.PReLU, "gelu": nn.GELU}
ACTIVATION = Choice("MODEL.DETR.ACTIVATION", ACTIVATIONS)


class FeedForward(nn.Module):
    """Residual two-layer perceptron with post-norm: ``LN(x + W2 f(W1 x))``, f one of ``ACTIVATIONS``."""

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float = 0.0, activation: str = "relu"):
        super().__init__()
        self.linear1 = nn.Linear(embed_dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, embed_dim)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.linear1(x)))
        return self.norm(x + self.dropout(self.linear2(hidden)))


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm whose statistics leave out the padded pixels, which come out as zero.

    Without a mask it is ``nn.GroupNorm``; so an image gives the same result alone and in a padded batch.
    """

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (B, C, H, W).
            padding: (B, H, W), True where padding.
        """
        if padding is None:
            return super().forward(x)
        batch, channels, height, width = x.shape
        keep = (~padding).reshape(batch, 1, 1, height * width)
        grouped = x.float().reshape(batch, self.num_groups, channels // self.num_groups, height * width)
        count = keep.sum(-1, keepdim=True).clamp(min=1) * (channels // self.num_groups)
        mean = grouped.mul(keep).sum((2, 3), keepdim=True) / count
        centred = (grouped - mean) * keep
        variance = centred.square().sum((2, 3), keepdim=True) / count
        normed = (centred * torch.rsqrt(variance + self.eps)).reshape(batch, channels, height, width)
        out = normed * self.weight[:, None, None] + self.bias[:, None, None]
        return (out * keep.reshape(batch, 1, height, width)).to(x.dtype)
