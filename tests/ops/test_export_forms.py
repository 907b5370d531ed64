# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torchvision.ops import batched_nms, box_convert

from paq_detr.ops.export_forms import ROUNDS, kept_apart


def crowd(count, seed):
    generator = torch.Generator().manual_seed(seed)
    place, size = torch.rand(2, count, 2, generator=generator)
    return torch.cat([15 * place, 10 + 5 * size], 1)


@pytest.mark.parametrize("iou_threshold", [0.1, 0.5, 0.8])
def test_as_masks_the_same_boxes_stay_as_in_torchvision(iou_threshold):
    boxes = torch.stack([crowd(150, seed) for seed in range(3)])
    labels = torch.arange(150).expand(3, -1) % 4
    candidates = torch.rand(3, 150, generator=torch.Generator().manual_seed(9)) > 0.2
    kept = kept_apart(boxes, candidates, iou_threshold, labels)
    one_class = kept_apart(boxes, candidates, iou_threshold)
    for image in range(3):
        there = candidates[image].nonzero()[:, 0]
        corners, falling = box_convert(boxes[image][there], "cxcywh", "xyxy"), -there.float()
        for found, classes in ((kept, labels[image][there]), (one_class, torch.zeros_like(there))):
            expected = torch.zeros(150, dtype=torch.bool)
            expected[there[batched_nms(corners, falling, classes, iou_threshold)]] = True
            assert torch.equal(found[image], expected) and 0 < expected.sum() < len(there)


@pytest.mark.parametrize("count", [5, ROUNDS, ROUNDS + 20])
def test_a_chain_is_right_as_far_as_the_rounds_reach_and_loses_nothing_behind(count):
    """Of a row of boxes, each of which overlaps the next alone, every second stays."""
    at = torch.arange(count).float()
    boxes = torch.stack([at, torch.zeros(count), torch.full((count,), 1.9), torch.ones(count)], 1)[None]
    kept = kept_apart(boxes, torch.ones(1, count, dtype=torch.bool), 0.2)[0]
    assert kept[:ROUNDS].tolist() == [i % 2 == 0 for i in range(min(count, ROUNDS))]
    assert kept[ROUNDS:].all()
