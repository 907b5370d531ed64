# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention in place of other libraries' own: transformers' models, and mmcv's function.

Both take finished locations and weights, so that :func:`ms_deform_attn` takes their place as it is. What the library
does before (softmax, locations, padding) stays the library's.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, wraps
from pathlib import Path
from types import ModuleType

from torch import Tensor

from .ms_deform_attn import SpatialShapes, ms_deform_attn

# The three forms in which transformers' models write their sampling.
_LAYER, _FUNCTION, _RAGGED = (
    "MultiScaleDeformableAttention",
    "multi_scale_deformable_attention",
    "multi_scale_deformable_attention_v2",
)
_DEFINES_ONE = re.compile(rb"^class MultiScaleDeformableAttention\b|^def multi_scale_deformable_attention", re.M)
# Layers of D-FINE and DEIMv2 keep the function, under this name, from when they are built.
_LAYER_OF_A_MODEL, _KEPT = "MultiscaleDeformableAttention", "ms_deformable_attn_core"


class MultiScaleDeformableAttnFunction:
    """mmcv's function of this name, and ``MSDeformAttnFunction`` of Deformable DETR's code: the same call.

    ``mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction = ops.MultiScaleDeformableAttnFunction``
    """

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor | SpatialShapes,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """:func:`ms_deform_attn` of tensors as those libraries pass them.

        Args:
            value: (B, S, H, D), as there.
            value_spatial_shapes: (L, 2) int, (H_l, W_l). A tensor on a GPU is copied to the host at its first use,
                which waits for the GPU; the layers after that find the numbers at the same tensor.
            value_level_start_index: (L,) int, the first token of each level; it must be what the shapes say.
            sampling_locations: (B, Q, H, L, P, 2), as there.
            attention_weights: (B, Q, H, L, P), as there.
            im2col_step: has no effect; the batch is not cut into pieces.

        Returns:
            (B, Q, H * D).

        Raises:
            TypeError, ValueError: as :func:`ms_deform_attn`, and for other first tokens.
        """
        shapes = _numbers(value_spatial_shapes)
        starts = [sum(height * width for height, width in shapes[:level]) for level in range(len(shapes))]
        if _numbers(value_level_start_index) != starts:
            given = _numbers(value_level_start_index)
            raise ValueError(f"value_level_start_index is {given}, expected {starts} for the levels {shapes}")
        return ms_deform_attn(value, shapes, sampling_locations, attention_weights)


def _numbers(tensor: Tensor | SpatialShapes) -> list:
    """The tensor as lists. They stay at the tensor object until it is changed, since every copy waits for the GPU."""
    if not isinstance(tensor, Tensor):
        return list(tensor)
    if not tensor.is_cuda or tensor.is_inference():  # inference tensors count no changes
        return tensor.tolist()
    version, numbers = getattr(tensor, "_paq_detr_numbers", (None, None))
    if version != tensor._version:
        numbers = tensor.tolist()
        tensor._paq_detr_numbers = tensor._version, numbers
    return numbers


class TransformersPatch:
    """What :func:`patch_transformers` did, to which ``models``. :meth:`undo` takes it back, as does ``with``."""

    def __init__(self, models: tuple[str, ...], undo: ExitStack):
        self.models = models
        self._undo = undo

    def undo(self) -> None:
        global _patch
        self._undo.close()
        if _patch is self:
            _patch = None

    def __enter__(self) -> TransformersPatch:
        return self

    def __exit__(self, *_) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"TransformersPatch({', '.join(self.models)})"


_patch: TransformersPatch | None = None


def patch_transformers() -> TransformersPatch:
    """From now on every model of ``transformers`` with multi-scale deformable attention samples by our operator.

    Deformable DETR, Grounding DINO, RT-DETR and its successors, D-FINE, LW-DETR, the pixel decoders of Mask2Former and
    OneFormer and the rest of what the installed release has; models that exist already are among them. Weights,
    outputs and gradients stay the same (up to rounding). Call it before ``torch.compile``.

    Returns:
        A handle: ``handle.undo()``, or ``with patch_transformers(): ...``. While it holds, a second call returns it.

    Raises:
        ImportError: transformers is not installed, or has no such model.
    """
    global _patch
    if _patch is not None:
        return _patch
    modules = _transformers_modules()
    if not modules:
        raise ImportError("the installed transformers has no model with multi-scale deformable attention")
    undo = ExitStack()
    for module in modules:
        if layer := getattr(module, _LAYER, None):
            _replace(undo, layer, "forward", _layer_forward)
        if function := getattr(module, _FUNCTION, None):
            _replace(undo, module, _FUNCTION, wraps(function)(_function))
        if function := getattr(module, _RAGGED, None):
            _replace(undo, module, _RAGGED, _ragged(function))
            for layer in [value for name, value in vars(module).items() if name.endswith(_LAYER_OF_A_MODEL)]:
                undo.callback(delattr, layer, _KEPT)
                setattr(layer, _KEPT, _Kept())
    _patch = TransformersPatch(tuple(module.__name__.split(".")[-2] for module in modules), undo)
    return _patch


@cache
def _transformers_modules() -> tuple[ModuleType, ...]:
    """Modules that define one of the forms. The sources tell which: importing every model would take minutes."""
    import transformers.models

    found = []
    for file in sorted(Path(transformers.models.__path__[0]).glob("*/modeling_*.py")):
        if _DEFINES_ONE.search(file.read_bytes()):
            try:
                found.append(importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}"))
            except ImportError:  # of a package that this model alone needs: then nobody has built one
                continue
    return tuple(found)


def _replace(undo: ExitStack, owner: type | ModuleType, name: str, new: Callable) -> None:
    undo.callback(setattr, owner, name, owner.__dict__[name])
    setattr(owner, name, new)


def _layer_forward(
    self, value, value_spatial_shapes, value_spatial_shapes_list, level_start_index, sampling_locations,
    attention_weights, im2col_step=64,
):  # fmt: skip
    return ms_deform_attn(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _function(value, value_spatial_shapes, sampling_locations, attention_weights):
    return ms_deform_attn(value, _numbers(value_spatial_shapes), sampling_locations, attention_weights)


@cache
def _ragged(original: Callable) -> Callable:
    """RT-DETRv2's form: (B, Q, H, sum of P_l, 2) locations, each level with points of its own number."""

    @wraps(original)
    def sample(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method="default"):
        if method != "default":  # "discrete" takes the nearest token
            return original(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method)
        shapes = _numbers(value_spatial_shapes)
        if len(set(num_points_list)) == 1:
            apart = (len(shapes), num_points_list[0])  # levels, points
            locations, weights = sampling_locations.unflatten(3, apart), attention_weights.unflatten(3, apart)
            return ms_deform_attn(value, shapes, locations, weights)
        levels = zip(
            value.split([height * width for height, width in shapes], 1),
            shapes,
            sampling_locations.split(num_points_list, 3),
            attention_weights.split(num_points_list, 3),
        )
        return sum(
            ms_deform_attn(tokens, [shape], locations[:, :, :, None], weights[:, :, :, None])
            for tokens, shape, locations, weights in levels
        )

    return sample


class _Kept:
    """A property of such layers: read it is ours, also of those built before, kept is what was there without us."""

    def __get__(self, layer, owner=None):
        return self if layer is None else _ragged(layer.__dict__[_KEPT])

    def __set__(self, layer, function):
        layer.__dict__[_KEPT] = getattr(function, "__wrapped__", function)
