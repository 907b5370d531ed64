# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A detector as one function of tensors, with normalisation and read-out inside; from it every format is made."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn

from .. import ops
from ..errors import UserError
from ..layers import boxes_cxcywh_to_xyxy
from ..modeling.read_out import ReadOut
from ..ops.export_forms import kept_apart
from ..structures import LayerOutput, Memory

INPUTS, OUTPUTS = ("images", "valid_sizes"), ("labels", "boxes", "scores")
LARGEST_SIDE, LARGEST_BATCH = 4096, 64  # of a program for all sizes


@dataclass(frozen=True)
class Shape:
    """What sizes a program takes: one, or all that are multiples of a stride.

    Attributes:
        size: (height, width) of the input; for a dynamic program that of the trace.
        dynamic: batch, height and width are free, and a second input holds the images' own sizes.
        half: weights and layers in fp16; boxes and scores stay in fp32.
    """

    size: tuple[int, int]
    dynamic: bool = False
    half: bool = False


class DetectionProgram(nn.Module):
    """``images`` (B, 3 or 1, H, W), RGB (or grey) from 0 to 1, to ``labels`` (B, K) int64, ``boxes`` (B, K, 4) xyxy in
    pixels of the input, clipped to the image, and ``scores`` (B, K) from high to low; a slot that is no
    detection has the score 0.

    With a second input ``valid_sizes`` (B, 2) int64 = un-padded (height, width); what is to the right of it and below
    is padding, whatever stands there.
    """

    def __init__(self, model: nn.Module, half: bool = False):
        """
        Args:
            model: a ``QueryDetector``; it is not changed.
            half: compute in fp16.

        Raises:
            UserError: its read-out, or a part, cannot be exported; one sentence.
        """
        super().__init__()
        self.read_out = _read_out_of(model)
        model = copy.deepcopy(model).to("cpu")
        model.drop_training_parts()
        for part in model.modules():
            if getattr(part, "not_exported", None):
                raise UserError(f"This model cannot be exported: {part.not_exported}.")
        self.mean, self.std = model.pixel_mean.float(), model.pixel_std.float()
        self.model = halved(model) if half else model
        self.dtype = torch.float16 if half else torch.float32
        self.flip, self.num_classes = model.input_format == "BGR", len(model.class_names)
        self.eval()  # on the whole: exporters restore this module's mode, and its children's with it

    def forward(self, images: Tensor, valid_sizes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        pixels = images.float() * 255
        pixels = ((pixels.flip(1) if self.flip else pixels) - self.mean) / self.std
        batch, _, height, width = images.shape
        if valid_sizes is None:
            sizes = [(height, width)] * batch
        else:
            sizes = valid_sizes
            rows = torch.arange(height, device=images.device)[:, None] < valid_sizes[:, 0, None, None]
            columns = torch.arange(width, device=images.device) < valid_sizes[:, 1, None, None]
            pixels = torch.where((rows & columns)[:, None], pixels, 0.0)
        memory = self.model.encode(ImageList(pixels.to(self.dtype), sizes))
        return self.detections(self._output(memory), memory)

    def _output(self, memory: Memory) -> LayerOutput:
        route = self.model.routes["main"]
        return self.read_out.combine(route(self.model.sources[route.source](memory), memory), memory)

    def detections(self, output: LayerOutput, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """The best (query, class) pairs, as ``ReadOut`` finds them, but of a fixed number."""
        scores, boxes = output.logits.float().sigmoid(), output.boxes.float()
        usable = boxes.isfinite().all(-1, keepdim=True) & scores.isfinite()
        if output.valid is not None:
            usable = usable & output.valid[..., None]
        scores = torch.where(usable, scores, -1.0).flatten(1)
        scores, index = scores.topk(min(self.read_out.top_k, scores.shape[1]), dim=1)
        query = torch.div(index, self.num_classes, rounding_mode="floor")
        labels, boxes = index - query * self.num_classes, boxes.gather(1, query[..., None].expand(-1, -1, 4))
        scale = memory.grid.image_scale
        if self.read_out.nms_iou:
            kept = kept_apart(boxes * scale, scores >= 0, self.read_out.nms_iou, labels)
            scores, order = torch.where(kept, scores, -1.0).topk(scores.shape[1])
            labels, boxes = labels.gather(1, order), boxes.gather(1, order[..., None].expand(-1, -1, 4))
        boxes = torch.minimum((boxes_cxcywh_to_xyxy(boxes) * scale).clamp(min=0), scale)  # clipped, as the detector's
        return labels, boxes, scores.clamp(min=0)


def halved(model: nn.Module) -> nn.Module:
    """The model in fp16, in place; boxes that it learned stay in fp32."""
    anchors = {name: p.clone() for name, p in model.named_parameters() if name.endswith(".anchors")}
    model.half()
    for name, parameter in model.named_parameters():
        if name in anchors:
            parameter.data = anchors[name].data
    return model


def _read_out_of(model: nn.Module) -> ReadOut:
    read_out = model.routes["main"].read_out
    if type(read_out).__call__ is not ReadOut.__call__:
        raise UserError(
            f"A model with the read-out {type(read_out).__name__} cannot be exported: it makes its own boxes"
        )
    return read_out


def stride_of(model: nn.Module) -> int:
    """What height and width must be multiples of: the coarsest level's stride, and what the backbone asks."""
    strides = getattr(model.neck, "strides", None) or [model.neck.stride]
    return max(*strides, model.backbone.size_divisibility or 1)


def capture(program: DetectionProgram, shape: Shape, forms: Mapping) -> torch.export.ExportedProgram:
    """The graph of torch's own operators.

    Raises:
        UserError: torch cannot capture it; one sentence with its reason.
    """
    images = torch.rand(2 if shape.dynamic else 1, len(program.mean), *shape.size)
    arguments, free = (images,), None
    if shape.dynamic:
        arguments, free = (images, torch.tensor([shape.size] * 2)), dynamic_sizes(stride_of(program.model), shape)
    try:
        with torch.no_grad(), ops.force_torch(forms):
            return torch.export.export(program, arguments, dynamic_shapes=free, strict=False)
    except UserError:
        raise
    except Exception as error:  # whatever its tracer raises; the cause stays attached
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"torch.export cannot capture this model: {reason}") from error


def dynamic_sizes(stride: int, shape: Shape) -> tuple:
    """Free batch, and height and width that are multiples of ``stride``, as torch.export wants them."""
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    rows = torch.export.Dim("rows", min=1, max=LARGEST_SIDE // stride)
    columns = torch.export.Dim("columns", min=1, max=LARGEST_SIDE // stride)
    return {0: batch, 2: stride * rows, 3: stride * columns}, {0: batch}
