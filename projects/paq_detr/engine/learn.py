# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The gradients of a batch, in one piece or in parts that need less memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..modeling.whole_batch import WholeBatch
from .rng import preserved_rng


class Learner:
    """Adds a batch's gradients to those of a model; returns its losses by name, detached.

    In several parts the gradients are, to rounding, those of the batch in one piece, wherever an image's outputs do not
    depend on its batch: the parts are padded alike, have as many denoising groups and slots, and their losses are
    divided by what the whole batch counts. Where a normaliser counts outputs (``LOSS.NORMALIZER: pairs``), every part
    runs once more, without gradients, to count them. Random numbers are drawn in another order.
    """

    def __init__(
        self, model: nn.Module, backward: Callable[[Tensor], None], autocast: Mapping[str, Any], parts: int = 1
    ):
        """
        Args:
            model: perhaps distributed.
            backward: is called with each part's total loss.
            autocast: arguments of ``torch.autocast``.
            parts: into how many a batch goes.

        Raises:
            UserError: the model cannot learn a batch in parts.
        """
        self.model, self.backward, self.autocast, self.parts = model, backward, autocast, parts
        self.bare: Any = model.module if isinstance(model, DistributedDataParallel) else model
        self._count_first = True  # until the first batch tells whether outputs are counted at all
        if parts > 1 and not hasattr(self.bare, "whole"):
            raise UserError(
                f"SOLVER.ACCUMULATE is {parts}, but MODEL.META_ARCHITECTURE {type(self.bare).__name__} cannot divide "
                "its losses by what a whole batch counts; QueryDetector can."
            )

    def __call__(self, batch: list[dict]) -> dict[str, Tensor]:
        if self.parts == 1:
            return self._part(batch)
        self.bare.whole = whole = WholeBatch(batch, self.parts)
        try:
            if self._count_first:
                self._count(whole)
                self._count_first = whole.counts_outputs
            return summed(self._part(part, part is whole.parts[-1]) for part in whole.parts)
        finally:
            self.bare.whole = None

    def _part(self, part: list[dict], last: bool = True) -> dict[str, Tensor]:
        """The part's losses. Processes exchange their gradients behind the last one."""
        alone = not last and self.model is not self.bare
        with self.model.no_sync() if alone else contextlib.nullcontext():
            with torch.autocast(**self.autocast):
                losses = self.model(part)
                total = sum(losses.values())
            self.backward(total)
        return {name: loss.detach() for name, loss in losses.items()}

    def _count(self, whole: WholeBatch) -> None:
        whole.counting = True
        with preserved_rng(self.bare.device), torch.no_grad(), torch.autocast(**self.autocast):
            for part in whole.parts:
                self.bare(part)
        whole.counting = False


def summed(losses: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """By name; a part may lack some."""
    total: dict[str, Tensor] = {}
    for part in losses:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total
