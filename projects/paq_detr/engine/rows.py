# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Tensors of another number of rows: which of a file's rows a model takes over.

A module declares by attributes which of its parameters have rows that stand for something (parameter name: axis):

* ``class_axes``: one row per class, which follows its class name.
* ``query_axes``: one row per query (anchor, pattern), counted from the first one on.
* ``query_blocks`` (parameter name: name of another parameter): per query a block of rows, one per row of the other.
* ``leading_axes``: counted from the first one on; those behind the first decide no prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FittedRows:
    """A tensor whose rows are not all the file's, or not all of the file's."""

    name: str
    kept: int
    new: int  # freshly initialised
    dropped: int  # only in the file
    decide: bool = True  # whether the new ones decide what is predicted

    def __str__(self) -> str:
        rest = [f"{self.new} initialised"] * bool(self.new) + [f"{self.dropped} dropped"] * bool(self.dropped)
        return f"{self.name}: {', '.join([f'{self.kept} rows kept', *rest])}"


def fit_leading_rows(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[FittedRows]:
    """Replace each tensor of ``weights`` whose rows count from the first one on, and are more or fewer than the
    model's, by one of as many rows."""
    own = model.state_dict()
    for prefix, module in model.named_modules(remove_duplicate=False):  # shared heads have two names
        at = f"{prefix}." if prefix else ""
        for parameter, blocks in getattr(
            module, "query_blocks", {}
        ).items():  # before the rows of ``blocks`` are fitted
            key, of = at + parameter, at + blocks
            if key in weights and of in weights:
                yield from _fit_blocks(weights, key, own[key], len(own[of]), len(weights[of]))
        for declared in ("query_axes", "leading_axes"):
            for parameter, axis in getattr(module, declared, {}).items():
                key = at + parameter
                if key in weights and weights[key].shape != own[key].shape:
                    fitted = _leading_part(own[key], weights[key], (axis,))
                    if fitted is not None:
                        ours, theirs = own[key].shape[axis], weights[key].shape[axis]
                        weights[key], kept = fitted, min(ours, theirs)
                        yield FittedRows(key, kept, ours - kept, theirs - kept, declared == "query_axes")


def _fit_blocks(weights: dict[str, Tensor], key: str, own: Tensor, ours: int, theirs: int) -> Iterator[FittedRows]:
    stored = weights[key]
    if (ours == theirs and own.shape == stored.shape) or not len(stored) or len(stored) % theirs:
        return
    stored, own = stored.unflatten(0, (-1, theirs)), own.unflatten(0, (-1, ours))
    fitted = _leading_part(own, stored, (0, 1))
    if fitted is not None:
        weights[key] = fitted.flatten(0, 1)
        kept = min(len(own), len(stored)) * min(ours, theirs)
        yield FittedRows(key, kept, len(own) * ours - kept, len(stored) * theirs - kept)


def _leading_part(fresh: Tensor, stored: Tensor, axes: Sequence[int]) -> Tensor | None:
    """``fresh`` with as much of ``stored`` along ``axes`` as there is in both; None where other sizes differ."""
    if fresh.dim() != stored.dim():
        return None
    sizes = list(zip(fresh.shape, stored.shape))
    if any(ours != theirs for axis, (ours, theirs) in enumerate(sizes) if axis not in axes):
        return None
    common = tuple(slice(min(pair)) for pair in sizes)
    fitted = fresh.detach().cpu().clone()
    fitted[common] = stored[common].to(fitted.dtype)
    return fitted


def match_rows(
    fresh: Tensor, stored: Tensor, axis: int, names: Sequence[str], stored_names: Sequence[str]
) -> Tensor | None:
    """``fresh`` with the slices along ``axis`` of the names that are also in ``stored_names`` taken from ``stored``.

    Slices beyond the names, equally many in both, are taken over too. None where the shapes do not allow it.
    """
    extra = fresh.shape[axis] - len(names)
    rest, stored_rest = list(fresh.shape), list(stored.shape)
    if fresh.dim() != stored.dim() or not stored_rest.pop(axis) - len(stored_names) == extra >= 0:
        return None
    rest.pop(axis)
    if rest != stored_rest:
        return None
    rows = {names.index(name): row for row, name in enumerate(stored_names) if name in names}
    rows.update((len(names) + i, len(stored_names) + i) for i in range(extra))
    ours, theirs = (torch.tensor(list(ids), dtype=torch.int64) for ids in (rows.keys(), rows.values()))
    matched = fresh.detach().cpu().clone()
    return matched.index_copy_(axis, ours, stored.cpu().to(matched.dtype).index_select(axis, theirs))


def match_classes(
    model: nn.Module, weights: dict[str, Tensor], names: Sequence[str], stored_names: Sequence[str]
) -> list[str]:
    """Replace each class-sized tensor of ``weights`` by one for the model's classes ``names``; returns which ones."""
    own, matched_keys = model.state_dict(), []
    for prefix, module in model.named_modules(remove_duplicate=False):
        for parameter, axis in getattr(module, "class_axes", {}).items():
            key = f"{prefix}.{parameter}" if prefix else parameter
            if key in weights and key in own:
                matched = match_rows(own[key], weights[key], axis, names, stored_names)
                if matched is not None:
                    weights[key] = matched
                    matched_keys.append(key)
    return matched_keys
