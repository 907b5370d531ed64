# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What takes the place of the twins in an exported program (``force_torch``), for trained weights and gradient-free.

The twins guard against coordinates that are not finite, which costs a third of the nodes of a graph, and sort stably,
which exporters cannot write. For finite inputs the results are the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ._boxes import iou_and_giou
from .ms_deform_attn import SpatialShapes

#: Rounds of :func:`kept_apart`. After r of them the r best boxes are right, and nearly always all after a few: what is
#: needed grows as the square of the logarithm of the number of boxes (Blelloch, Fineman, Shun 2012).
ROUNDS = 32

#: TensorRT's plugin for multi-scale deformable attention: its name, and the version that takes no attributes.
PLUGIN, PLUGIN_DOMAIN, PLUGIN_VERSION = "MultiscaleDeformableAttnPlugin_TRT", "trt.plugins", "2"


def sampling(
    spatial_shapes: SpatialShapes, reference: Tensor, offsets: Tensor, logits: Tensor, valid_ratios: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(B, Q, H, L, P, 2) locations in [0, 1] of the padded maps and (B, Q, H, L, P) weights, in fp32."""
    weights = logits.float().flatten(3).softmax(-1).view(offsets.shape[:-1])
    reference, offsets = reference.float()[:, :, None], offsets.float()
    if valid_ratios is not None:
        reference = reference * valid_ratios.float().repeat(1, 1, reference.shape[-1] // 2)[:, None]
    reference = reference[:, :, None, :, None]  # (B, Q, 1, L or 1, 1, 2 or 4)
    if reference.shape[-1] == 2:
        sizes = torch.tensor([(width, height) for height, width in spatial_shapes], device=offsets.device)
        return reference + offsets / sizes[:, None], weights
    return reference[..., :2] + offsets * (reference[..., 2:] * (0.5 / offsets.shape[4])), weights


def fused_by_grid_sample(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    valid_ratios: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """``fused_ms_deform_attn`` with one ``grid_sample`` per level and one weighted sum."""
    batch, _, heads, channels = value.shape
    queries = offsets.shape[1]
    locations, weights = sampling(spatial_shapes, reference, offsets, logits, valid_ratios)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1).unbind(2)  # per level (B * H, Q, P, 2)
    maps = _unpadded(value, padding_mask).split([height * width for height, width in spatial_shapes], dim=1)
    sampled = [
        F.grid_sample(level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width), grid,
                      mode="bilinear", padding_mode="zeros", align_corners=False)
        for level, grid, (height, width) in zip(maps, grids, spatial_shapes)
    ]  # fmt: skip
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    out = (torch.cat(sampled, -1) * weights).sum(-1)  # (B * H, D, Q)
    return out.view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)


def fused_by_plugin(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    valid_ratios: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """``fused_ms_deform_attn`` as a node of TensorRT's plugin, in fp32: its fp16 kernel rounds coordinates to half."""
    locations, weights = sampling(spatial_shapes, reference, offsets, logits, valid_ratios)
    sizes = torch.tensor(spatial_shapes, dtype=torch.int32, device=value.device)
    areas = sizes[:, 0] * sizes[:, 1]
    starts = (areas.cumsum(0) - areas).to(torch.int32)
    inputs = (_unpadded(value, padding_mask).contiguous(), sizes, starts, locations.contiguous(), weights.contiguous())
    shape = [value.shape[0], offsets.shape[1], *value.shape[2:]]
    attributes = {"plugin_version": PLUGIN_VERSION, "plugin_namespace": ""}
    out = torch.onnx.ops.symbolic(
        f"{PLUGIN_DOMAIN}::{PLUGIN}", inputs, attrs=attributes, dtype=torch.float32, shape=shape, version=1
    )
    return out.flatten(2).to(value.dtype)


def _unpadded(value: Tensor, padding_mask: Tensor | None) -> Tensor:
    """The value in fp32, zero in the padding."""
    value = value.float()
    return value if padding_mask is None else value.masked_fill(padding_mask[..., None, None], 0.0)


def neighbor_select_by_topk(
    boxes: Tensor, scores: Tensor, k: int, iou_threshold: float, low_score: float
) -> tuple[Tensor, Tensor]:
    """``neighbor_select`` with ``topk`` in place of a stable sort: of equals ONNX takes the lower index, too."""
    iou, _ = iou_and_giou(boxes[:, :, None], boxes[:, None])
    more_confident = (scores[:, :, None] < scores[:, None]) & (scores[:, None] > low_score)
    overlap = torch.where(more_confident & (iou >= iou_threshold), iou, -1.0)
    overlap, index = overlap.topk(min(k, overlap.shape[-1]), dim=-1)
    index = F.pad(torch.where(overlap > 0, index, -1), (0, k - index.shape[-1]), value=-1)
    return index.int(), (overlap > 0).sum(-1, dtype=torch.int32)


def kept_apart(boxes: Tensor, candidates: Tensor, iou_threshold: float, labels: Tensor | None = None) -> Tensor:
    """(B, N) which boxes stay in non-maximum suppression, as a mask: nothing in its size or its steps is data.

    In every round a box stays if no better one that stayed in the round before overlaps it. Where ``ROUNDS`` are too
    few, boxes stay that should not.

    Args:
        boxes: (B, N, 4) cxcywh, best first.
        candidates: (B, N) False for boxes that neither stay nor suppress others.
        labels: (B, N), where boxes suppress those of their own label alone.
    """
    iou, _ = iou_and_giou(boxes[:, :, None], boxes[:, None])
    better = torch.ones(boxes.shape[1], boxes.shape[1], dtype=torch.bool, device=boxes.device).tril(-1)
    conflicts = (iou > iou_threshold) & better & candidates[:, None]
    if labels is not None:
        conflicts = conflicts & (labels[:, :, None] == labels[:, None])
    conflicts, allowed = conflicts.float(), candidates.float()[..., None]
    kept = allowed
    for _ in range(min(ROUNDS, boxes.shape[1])):
        kept = (allowed - conflicts @ kept).clamp(min=0)
    return kept[..., 0] > 0


#: By the value of ``--msda``.
FORMS: dict[str, dict[str, Callable]] = {
    name: {"fused_ms_deform_attn": attention, "neighbor_select": neighbor_select_by_topk}
    for name, attention in (("gridsample", fused_by_grid_sample), ("plugin", fused_by_plugin))
}
