# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention (Deformable DETR, Zhu et al., ICLR 2021, eq. 2 and 3).

Shape legend: B batch, S tokens of all levels, Q queries, H heads, D channels per head, L levels, P points.

Two forms are public. ``ms_deform_attn`` is the classical one: finished locations and weights.
``fused_ms_deform_attn`` takes what the linear layers give (raw offsets, raw logits) and does the softmax, the
locations and the padding itself, so that none of them needs a kernel or a tensor of its own.

Coordinates: a location (x, y) in [0, 1] of the padded map of level l lies at pixel (x * W_l - 0.5, y * H_l - 0.5)
(align_corners=False). A corner outside the map counts as zero; a point counts only if -1 < x < W_l and
-1 < y < H_l in pixels, so that NaN and infinite coordinates contribute zero and receive zero gradient; the weight of
a point that does not count is not looked at. Arithmetic is float32 (float64 for a float64 value), whatever the type of
``value``. Both forms are differentiable once, in reverse mode; forward mode (``torch.func.jvp``) gives no tangents.
Deterministic on CUDA (``torch.use_deterministic_algorithms``), a gradient, or a weight of a point that counts, which is
not finite makes the whole gradient of ``value`` NaN.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension
from ._checks import arithmetic_dtype, check_device, check_dtype, check_floating, check_shape, check_tensor

SpatialShapes = Sequence[tuple[int, int]]


def ms_deform_attn(
    value: Tensor, spatial_shapes: SpatialShapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sample ``value`` bilinearly at the locations and sum with the weights.

    Args:
        value: (B, S, H, D) float; tokens of all levels, level after level, row after row.
        spatial_shapes: (H_l, W_l) of each level, Python ints; the products sum to S. On CUDA at most 32 levels.
        sampling_locations: (B, Q, H, L, P, 2) float, (x, y) in [0, 1] of the padded map. Keep it in float32:
            a bfloat16 location is a whole pixel wrong on a map 167 wide.
        attention_weights: (B, Q, H, L, P) float.

    Returns:
        (B, Q, H * D) in the type of ``value``, or of autocast where that is on. Gradients flow to the three tensors.

    Raises:
        TypeError, ValueError: naming the argument, what it has and what it should have.
    """
    _check_value(value, spatial_shapes)
    _check_tensor("sampling_locations", sampling_locations, value, 6, "(B, Q, H, L, P, 2)")
    _check_tensor("attention_weights", attention_weights, value, 5, "(B, Q, H, L, P)")
    batch, queries, heads, levels, points, _ = sampling_locations.shape
    expected = (value.shape[0], queries, value.shape[2], len(spatial_shapes), points, 2)
    check_shape("sampling_locations", sampling_locations, expected)
    check_shape("attention_weights", attention_weights, (batch, queries, heads, levels, points))
    value, sampling_locations, attention_weights = _working_types(value, sampling_locations, attention_weights)
    if _extension.use_native("ms_deform_attn", value):
        shapes = [size for shape in spatial_shapes for size in shape]
        return _call(_Classical, "ms_deform_attn", value, shapes, sampling_locations, attention_weights)
    run = _extension.torch_form("ms_deform_attn", ms_deform_attn_torch)
    return run(value, spatial_shapes, sampling_locations, attention_weights)


def fused_ms_deform_attn(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    valid_ratios: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """Multi-scale deformable attention from raw offsets and logits.

    Args:
        value: (B, S, H, D) float; tokens of all levels, level after level, row after row.
        spatial_shapes: (H_l, W_l) of each level, Python ints; the products sum to S. On CUDA at most 32 levels.
        reference: (B, Q, 2) points or (B, Q, 4) boxes cxcywh, in [0, 1] of the un-padded image.
        offsets: (B, Q, H, L, P, 2) raw. Locations are ``point + offset / (W_l, H_l)`` for points and
            ``centre + offset / P * (w, h) * 0.5`` for boxes (Deformable DETR, appendix A.4 and its code).
        logits: (B, Q, H, L * P) or (B, Q, H, L, P) raw; softmax jointly over L * P.
        valid_ratios: (B, L, 2), valid share (w, h) of each padded level; None means all ones. Centre and size
            of the reference are multiplied by it.
        padding_mask: (B, S) bool, True = padding: the value counts as zero there and receives zero gradient.

    Returns:
        (B, Q, H * D) in the type of ``value``, or of autocast where that is on. Gradients flow to value, reference,
        offsets and logits.

    Raises:
        TypeError, ValueError: naming the argument, what it has and what it should have.
    """
    _check_value(value, spatial_shapes)
    batch, tokens, heads, _ = value.shape
    levels = len(spatial_shapes)
    _check_tensor("reference", reference, value, 3, "(B, Q, 2) or (B, Q, 4)")
    _check_tensor("offsets", offsets, value, 6, "(B, Q, H, L, P, 2)")
    queries, points = offsets.shape[1], offsets.shape[4]
    check_shape("offsets", offsets, (batch, queries, heads, levels, points, 2))
    if reference.shape[-1] not in (2, 4):
        raise ValueError(f"reference has {reference.shape[-1]} coordinates, expected 2 (x, y) or 4 (cx, cy, w, h)")
    check_shape("reference", reference, (batch, queries, reference.shape[-1]))
    if isinstance(logits, Tensor) and logits.dim() == 5:
        check_shape("logits", logits, (batch, queries, heads, levels, points))
        logits = logits.flatten(3)
    _check_tensor("logits", logits, value, 4, "(B, Q, H, L * P)")
    check_shape("logits", logits, (batch, queries, heads, levels * points))
    if valid_ratios is not None:
        _check_tensor("valid_ratios", valid_ratios, value, 3, "(B, L, 2)")
        check_shape("valid_ratios", valid_ratios, (batch, levels, 2))
    if padding_mask is not None:
        check_tensor("padding_mask", padding_mask)
        check_device("padding_mask", padding_mask, "value", value.device)
        check_shape("padding_mask", padding_mask, (batch, tokens))
        check_dtype("padding_mask", padding_mask, torch.bool, "with True = padding")
    value, reference, offsets, logits, valid_ratios = _working_types(value, reference, offsets, logits, valid_ratios)
    if _extension.use_native("fused_ms_deform_attn", value):
        shapes = [size for shape in spatial_shapes for size in shape]
        return _call(
            _Fused, "fused_ms_deform_attn", value, shapes, reference, offsets, logits, valid_ratios, padding_mask
        )
    run = _extension.torch_form("fused_ms_deform_attn", fused_ms_deform_attn_torch)
    return run(value, spatial_shapes, reference, offsets, logits, valid_ratios, padding_mask)


def _working_types(value: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast the value takes autocast's type; coordinates and weights always take the arithmetic's."""
    device = value.device.type
    if value.dtype != torch.float64 and device != "meta" and torch.is_autocast_enabled(device):
        value = value.to(torch.get_autocast_dtype(device))
    arithmetic = arithmetic_dtype(value)
    return value, *(t if t is None or t.dtype == arithmetic else t.to(arithmetic) for t in others)


# ---------------------------------------------------------------------------------------------------------------
# Pure-torch twins: the specification, the path without the extension, and the form for exporters.


def ms_deform_attn_torch(
    value: Tensor, spatial_shapes: SpatialShapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Twin of :func:`ms_deform_attn` by ``grid_sample``, for any device; arguments are not checked."""
    arithmetic = arithmetic_dtype(value)
    batch, _, heads, channels = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    sampling_locations, attention_weights = sampling_locations.to(arithmetic), attention_weights.to(arithmetic)
    out = value.new_zeros(batch * heads, channels, queries, dtype=arithmetic)
    maps = value.to(arithmetic).split([height * width for height, width in spatial_shapes], dim=1)
    for level, (height, width) in enumerate(spatial_shapes):
        level_map = maps[level].permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        location = sampling_locations[:, :, :, level]  # (B, Q, H, P, 2)
        x, y = location[..., 0] * width - 0.5, location[..., 1] * height - 0.5
        inside = (x > -1) & (x < width) & (y > -1) & (y < height)  # False for NaN
        # -3 is outside of every map: such a point samples zero, and `where` stops its gradient.
        grid = torch.where(inside[..., None], 2 * location - 1, -3.0).transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(level_map, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = torch.where(inside, attention_weights[:, :, :, level], 0.0)
        weight = weight.transpose(1, 2).reshape(batch * heads, 1, queries, points)
        out = out + (sampled * weight).sum(-1)  # (B * H, D, Q)
    return out.view(batch, heads * channels, queries).transpose(1, 2).contiguous().to(value.dtype)


def fused_ms_deform_attn_torch(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    valid_ratios: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """Twin of :func:`fused_ms_deform_attn`, for any device; arguments are not checked."""
    arithmetic = arithmetic_dtype(value)
    weights = logits.to(arithmetic).flatten(3).softmax(-1).view(offsets.shape[:-1])
    locations = _locations(reference.to(arithmetic), offsets.to(arithmetic), spatial_shapes, valid_ratios)
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[..., None, None], 0)
    return ms_deform_attn_torch(value, spatial_shapes, locations, weights)


def _locations(
    reference: Tensor, offsets: Tensor, spatial_shapes: SpatialShapes, valid_ratios: Tensor | None
) -> Tensor:
    """Sampling locations in [0, 1] of the padded maps, NaN where an input is not finite. (B, Q, H, L, P, 2)"""
    reference = reference[:, :, None, :].expand(-1, -1, len(spatial_shapes), -1)  # (B, Q, L, 2 or 4)
    if valid_ratios is not None:
        ratios = valid_ratios.to(reference.dtype)
        reference = reference * ratios.repeat(1, 1, reference.shape[-1] // 2)[:, None]
    reference = reference[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
    # 0 * inf is NaN in a gradient, therefore what is not finite leaves the graph before it is multiplied.
    finite = reference.isfinite().all(-1, keepdim=True) & offsets.isfinite().all(-1, keepdim=True)
    reference, offsets = torch.where(finite, reference, 0.0), torch.where(finite, offsets, 0.0)
    if reference.shape[-1] == 2:
        sizes = [(width, height) for height, width in spatial_shapes]
        step = 1.0 / torch.tensor(sizes, dtype=offsets.dtype, device=offsets.device)[:, None]  # (L, 1, 2)
    else:
        step = reference[..., 2:] * (0.5 / offsets.shape[4])
    return torch.where(finite, reference[..., :2] + offsets * step, torch.nan)


# ---------------------------------------------------------------------------------------------------------------
# Checks at the Python edge. The C++ operators check sizes again, without the words.


def _check_value(value: Tensor, spatial_shapes: SpatialShapes) -> None:
    _check_tensor("value", value, value, 4, "(B, S, H, D)")
    if value.dtype not in _extension.FLOATS:
        raise TypeError(f"value is {value.dtype}, expected float32, float64, float16 or bfloat16")
    try:
        tokens = sum([height * width for height, width in spatial_shapes])
        levels = len(spatial_shapes)
    except (TypeError, ValueError):
        tokens = None
    if isinstance(spatial_shapes, Tensor) or tokens is None or isinstance(tokens, (Tensor, float)):
        what = "a Tensor" if isinstance(spatial_shapes, Tensor) else repr(spatial_shapes)
        raise TypeError(f"spatial_shapes is {what}, expected a sequence of (H, W) Python ints (no device sync)")
    if not levels:
        raise ValueError("spatial_shapes is empty, expected (H, W) of at least one level")
    if tokens != value.shape[1]:
        raise ValueError(f"level sizes sum to {tokens}, value has {value.shape[1]} (spatial_shapes {spatial_shapes})")
    if min([min(shape) for shape in spatial_shapes]) < 1:
        raise ValueError(f"spatial_shapes {spatial_shapes} holds a level without tokens")


def _check_tensor(name: str, tensor: Tensor, value: Tensor, dims: int, legend: str) -> None:
    check_tensor(name, tensor, legend)
    if tensor.dim() != dims:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {legend}")
    check_floating(name, tensor)
    check_device(name, tensor, "value", value.device)


# ---------------------------------------------------------------------------------------------------------------
# What the dispatcher must know about the native operators: shapes without data, gradients, and autocast.
# The backward is an operator of its own and differentiable once. Its grad_reference is per head (B, Q, H, 2 or 4),
# because a sum over heads inside of the kernel would need atomic additions.


def _keep(ctx, inputs, output=None):
    ctx.shapes = inputs[1]
    ctx.save_for_backward(inputs[0], *inputs[2:])


def _classical_backward(ctx, grad_out):
    value, *rest = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    run = _overload("ms_deform_attn_backward")
    grad_value, *grads = run(grad_out, value, ctx.shapes, *rest, deterministic)
    return grad_value, None, *grads


def _fused_backward(ctx, grad_out):
    value, *rest = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    run = _overload("fused_ms_deform_attn_backward")
    grad_value, grad_reference, *grads = run(grad_out, value, ctx.shapes, *rest, deterministic)
    grad_reference = grad_reference.sum(2) if ctx.needs_input_grad[2] else None
    return grad_value, None, grad_reference, *grads, None, None


# What register_autograd installs is Python that runs at every call and costs more than the kernel of a decoder layer on
# a GPU. In eager mode an autograd.Function of our own does the same below the dispatcher's autograd keys.


class _Eager(torch.autograd.Function):
    @classmethod
    def call(cls, *inputs):
        """``apply`` without what it does for functorch, whose transforms are not active here: a third of its time."""
        return super(torch.autograd.Function, cls).apply(*inputs)


class _Classical(_Eager):
    @staticmethod
    def forward(ctx, *inputs):
        _keep(ctx, inputs)
        return _below_autograd("ms_deform_attn", inputs)

    @staticmethod
    def backward(ctx, grad_out):
        return _eager_backward(_classical_backward, ctx, grad_out)


class _Fused(_Eager):
    @staticmethod
    def forward(ctx, *inputs):
        _keep(ctx, inputs)
        return _below_autograd("fused_ms_deform_attn", inputs)

    @staticmethod
    def backward(ctx, grad_out):
        return _eager_backward(_fused_backward, ctx, grad_out)


def _call(function: type[_Eager], name: str, *inputs) -> Tensor:
    """The native operator ``name``, by the shortest way that keeps gradients."""
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    ):  # they want to see the operator itself
        return getattr(torch.ops.paq_detr, name)(*inputs)
    if torch.is_grad_enabled() and any([t.requires_grad for t in inputs if isinstance(t, Tensor)]):
        return function.call(*inputs)
    return _below_autograd(name, inputs)


def _below_autograd(name: str, inputs: Sequence) -> Tensor:
    with torch._C._ExcludeDispatchKeyGuard(_PASSED):
        return _overload(name)(*inputs)


def _eager_backward(backward, ctx, grad_out):
    if torch.is_grad_enabled():  # create_graph: let the backward operator refuse a second derivative
        return backward(ctx, grad_out)
    with torch._C._ExcludeDispatchKeyGuard(_PASSED):
        return backward(ctx, grad_out)


@cache
def _overload(name: str):
    return getattr(torch.ops.paq_detr, name).default


# Passed over by one guard: types are chosen by then, gradients recorded.
_PASSED = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
for _key in ("AutogradOther", "AutogradNestedTensor", "AutocastCPU", "AutocastCUDA"):
    _PASSED |= torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _key))


def _register() -> None:
    fake, autograd = torch.library.register_fake, torch.library.register_autograd

    @fake("paq_detr::ms_deform_attn")
    def _(value, shapes, locations, weights):
        return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])

    @fake("paq_detr::fused_ms_deform_attn")
    def _(value, shapes, reference, offsets, logits, valid_ratios, padding_mask):
        return value.new_empty(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])

    @fake("paq_detr::ms_deform_attn_backward")
    def _(grad_out, value, shapes, locations, weights, deterministic):
        return tuple(tensor.new_empty(tensor.shape) for tensor in (value, locations, weights))

    @fake("paq_detr::fused_ms_deform_attn_backward")
    def _(grad_out, value, shapes, reference, offsets, logits, valid_ratios, padding_mask, deterministic):
        grad_reference = reference.new_empty(*offsets.shape[:3], reference.shape[-1])
        grad_value, grad_offsets, grad_logits = (t.new_empty(t.shape) for t in (value, offsets, logits))
        return grad_value, grad_reference, grad_offsets, grad_logits

    autograd("paq_detr::ms_deform_attn", _classical_backward, setup_context=_keep)
    autograd("paq_detr::fused_ms_deform_attn", _fused_backward, setup_context=_keep)
    _extension.register_once_differentiable("ms_deform_attn_backward")
    _extension.register_once_differentiable("fused_ms_deform_attn_backward")
    for name in ("ms_deform_attn", "fused_ms_deform_attn"):
        for device in ("CPU", "CUDA"):
            torch.library.impl(f"paq_detr::{name}", f"Autocast{device}", _autocast_rule(name, device))


def _autocast_rule(name: str, device: str):
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

    def rule(value, shapes, *rest):
        value, *tensors = _working_types(value, *(t for t in rest if t is None or t.is_floating_point()))
        tensors += [t for t in rest if t is not None and not t.is_floating_point()]
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return getattr(torch.ops.paq_detr, name)(value, shapes, *tensors)

    return rule


_extension.declare_operator("ms_deform_attn")
_extension.declare_operator("fused_ms_deform_attn")
if _extension.library().loaded:
    _register()
