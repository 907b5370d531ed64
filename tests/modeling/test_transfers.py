# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""How often a training step goes between host and device: each time a GPU's queue runs dry or waits."""

import traceback
from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode

from paq_detr.structures import stack_instances

from .assemblies import (
    ADAMIXER,
    ASSIGNMENT,
    DEHOMO,
    HYBRID,
    MASKS,
    MR,
    PATTERNS,
    PLUSPLUS,
    REFINE,
    SPARSE_RCNN,
    make_image,
    make_model,
)


class Transfers(TorchFunctionMode):
    """Counts what would move numbers between host and device, seen from a CPU.

    ``to`` counts where it asks for a device. What ``ops`` looks at on a CPU alone, to check indices, does not count.
    """

    READS = {"cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "nonzero", "masked_select", "unique"}
    WRITES = {"new_tensor", "as_tensor"}

    def __init__(self):
        super().__init__()
        self.reads, self.writes = Counter(), Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if any("/ops/" in frame.filename for frame in traceback.extract_stack(limit=6)):
            return func(*args, **kwargs)
        if name in self.READS or (name == "__getitem__" and _has_mask(args[1])):
            self.reads[name] += 1
        if name in self.WRITES or (name == "to" and (kwargs.get("device") or any(map(_is_device, args[1:])))):
            self.writes[name] += 1
        return func(*args, **kwargs)


def _is_device(argument):
    return isinstance(argument, torch.device) or argument in ("cpu", "cuda")


def _has_mask(index):
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


def transfers_of_a_step(options, num_images):
    """Of a step behind the first, without the ground truth's own way onto the device."""
    boxes = [[4, 6, 40, 50], [30, 8, 90, 60]]
    images = [make_image(64, 96 - 8 * i, boxes, [0, 2], seed=i) for i in range(num_images)]
    model = make_model(options)
    model(images)
    pixels = model.preprocess(images)
    with_masks = options.get("MODEL.DETR.MASK.ENABLED", False)
    targets = stack_instances([x["instances"] for x in images], pixels.image_sizes, model.device, with_masks)
    with Transfers() as transfers:
        model._losses(model.encode(pixels), targets)
    return transfers


@pytest.mark.parametrize(
    "options",
    [
        REFINE,
        PLUSPLUS,
        {**PLUSPLUS, **PATTERNS, **ASSIGNMENT, **HYBRID},
        {**DEHOMO, **PATTERNS, **ASSIGNMENT},
        MR,
        ADAMIXER,
        {**MR, **MASKS},
    ],
    ids=["refine", "plusplus", "paq_hybrid", "paq_dh", "mr", "adamixer", "mr_mask"],
)
def test_a_step_waits_for_the_device_once_and_sends_a_handful(options):
    few, many = (transfers_of_a_step(options, count) for count in (2, 5))
    assert sum(few.reads.values()) <= 2, few.reads  # the matching costs; .cpu().numpy() are two calls
    assert few.reads == many.reads and few.writes == many.writes  # whatever the number of images
    # AdaMixer's boxes and its levels' sizes in pixels; the mask head's maps have a geometry of their own.
    handful = 8 if options is ADAMIXER or "MODEL.DETR.MASK.ENABLED" in options else 6
    assert sum(few.writes.values()) <= handful, few.writes


def test_pooling_from_a_pyramid_does_not_wait():
    few, many = (transfers_of_a_step(SPARSE_RCNN, count).reads for count in (2, 5))
    assert few == many and sum(few.values()) <= 2, few


def test_the_counter_sees_what_it_shall():
    x = torch.arange(4.0)
    with Transfers() as transfers:
        _ = x[x > 1], x.sum().item(), x.to("cpu"), x.new_tensor([1.0]), torch.tensor([2.0]), x.to(torch.float64)
    assert transfers.reads == {"__getitem__": 1, "item": 1}
    assert transfers.writes["to"] == transfers.writes["new_tensor"] == 1
