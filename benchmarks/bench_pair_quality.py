# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Matching cost, quality and top-k of all layers of a training step, against eager torch.

    python benchmarks/bench_pair_quality.py [--device cuda] [--json result.json]

Two eager forms: "stacked" is this package's own pure-torch form, one call for all layers and images; "per image" is
the usual way, a loop over layers and images, each with torchvision's pairwise IoU and torch.cdist.

On a GPU also the whole assignment, from logits to pairs: image by image with a copy to the host each, ours with one
copy and scipy, and torch-linear-assignment on the device where it is installed (one call per image, as the number of
objects differs).
"""

from types import SimpleNamespace

import numpy as np
import torch
from measure import arguments, compared, report, time_ms
from peers import linear_assignment
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from paq_detr import ops
from paq_detr.modeling.assignment import solve_images

# name: layers, images, queries, classes, objects of all images
CASES = {
    "COCO, 300 queries": (7, 2, 300, 80, 14),
    "COCO, 900 queries": (7, 2, 900, 80, 14),
    "crowd, 900 queries": (7, 2, 900, 1, 46),
    "dense, 900 queries": (7, 2, 900, 80, 200),
}
WEIGHTS = {"score_weight": -0.4, "iou_weight": 1.0}
COUNT = {**WEIGHTS, "k": 4, "min_count": 1}


def scene(layers, images, queries, classes, objects, device):
    generator = torch.Generator().manual_seed(0)

    def boxes(*shape):
        center, size = torch.rand(2, *shape, 2, generator=generator)
        return torch.cat([center, 0.05 + 0.3 * size], -1).to(device)

    logits = torch.randn(layers, images, queries, classes, generator=generator).to(device)
    labels = torch.randint(0, classes, (objects,), generator=generator).to(device)
    image = torch.arange(images).repeat_interleave(objects // images).to(device)
    return logits, boxes(layers, images, queries), labels, boxes(objects), image


def per_image(function, logits, boxes, labels, gt_boxes, image):
    """function(logits (N, C), boxes (N, 4), labels (m,), gt_boxes (m, 4)) for every layer and image."""
    sizes = image.bincount(minlength=boxes.shape[1]).tolist()
    own_labels, own_boxes = labels.split(sizes), gt_boxes.split(sizes)
    return [
        function(logits[layer, b], boxes[layer, b], own_labels[b], own_boxes[b])
        for layer in range(len(boxes))
        for b in range(len(sizes))
    ]


def eager_cost(logits, boxes, labels, gt_boxes):
    p = logits.sigmoid()[:, labels]
    focal = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
    giou = generalized_box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (boxes, gt_boxes)))
    return 2 * focal + 5 * torch.cdist(boxes, gt_boxes, p=1) - 2 * giou


def eager_quality(logits, boxes, labels, gt_boxes):
    iou = box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (boxes, gt_boxes)))
    return iou - 0.4 * logits.sigmoid()[:, labels]


def eager_topk(logits, boxes, labels, gt_boxes):
    values, indices = eager_quality(logits, boxes, labels, gt_boxes).topk(4, dim=0)
    return values, indices, (values.sum(0) - 1e-6).ceil().clamp(min=1).long()


def gradient(function, boxes, gt_boxes, image):
    leaf = boxes.detach().requires_grad_()
    return torch.autograd.grad(function(leaf, gt_boxes, image)[1].sum(), leaf)


def rivals(inputs):
    _, boxes, _, gt_boxes, image = inputs
    weights, limits = tuple(WEIGHTS.values()), (*WEIGHTS.values(), 4, 1)
    yield (
        "match_cost",
        {
            "per image": lambda: per_image(eager_cost, *inputs),
            "stacked": lambda: ops.match_cost_torch(*inputs, 2.0, 5.0, 2.0, 0.25, 2.0),
            "ours": lambda: ops.match_cost(*inputs),
        },
    )
    yield (
        "pair_quality",
        {
            "per image": lambda: per_image(eager_quality, *inputs),
            "stacked": lambda: ops.pair_quality_torch(*inputs, *weights),
            "ours": lambda: ops.pair_quality(*inputs, **WEIGHTS),
        },
    )
    yield (
        "quality_topk",
        {
            "per image": lambda: per_image(eager_topk, *inputs),
            "stacked": lambda: ops.quality_topk_torch(*inputs, *limits),
            "ours": lambda: ops.quality_topk(*inputs, **COUNT),
        },
    )
    yield (
        "pair_iou fwd+bwd",
        {
            "per image": lambda: per_image(
                lambda _, b, __, g: torch.autograd.grad(
                    generalized_box_iou(box_convert(leaf := b.detach().requires_grad_(), "cxcywh", "xyxy"), g).sum(),
                    leaf,
                ),
                *inputs,
            ),
            "stacked": lambda: gradient(ops.pair_iou_torch, boxes, gt_boxes, image),
            "ours": lambda: gradient(ops.pair_iou, boxes, gt_boxes, image),
        },
    )


def assignments(inputs, solve_on_device):
    """The rivals that give the pairs of every layer."""
    image = inputs[-1]
    sizes = image.bincount(minlength=inputs[1].shape[1]).tolist()
    targets = SimpleNamespace(offsets=np.cumsum([0, *sizes]).tolist())
    once = np.ones(sum(sizes), dtype=np.int64)

    def ours():
        return [solve_images(cost, once, targets) for cost in ops.match_cost(*inputs).cpu().numpy()]

    def on_device():
        costs = ops.match_cost(*inputs)
        return [solve_on_device(cost) for cost in costs.split(sizes, dim=1)]

    rivals = {
        "per image": lambda: per_image(lambda *a: linear_sum_assignment(eager_cost(*a).cpu().numpy()), *inputs),
        "torch-linear-assignment": on_device,
        "ours": ours,
    }
    return {name: rival for name, rival in rivals.items() if rival is not on_device or solve_on_device}


def agree(inputs) -> None:
    """No time counts unless the rivals agree."""
    eager = torch.cat(per_image(lambda *a: eager_cost(*a).t(), *inputs))
    ours = ops.match_cost(*inputs).flatten(0, 1)
    torch.testing.assert_close(ours, eager, atol=1e-3, rtol=1e-3)


def measured(args):
    on_gpu = args.device.startswith("cuda")
    solver = linear_assignment() if on_gpu else None
    for case, sizes in ({"tiny": (2, 2, 20, 3, 4)} if args.tiny else CASES).items():
        inputs = scene(*sizes, args.device)
        agree(inputs)
        operators = [*rivals(inputs), *([("assignment", assignments(inputs, solver))] if on_gpu else [])]
        for name, functions in operators:
            timings = time_ms(functions, args)
            row = {"case": case, "L,B,N,C,M": ",".join(map(str, sizes)), "operator": name}
            yield row | compared(timings)


def main():
    args = arguments(__doc__.splitlines()[0])
    report(measured(args), args)


if __name__ == "__main__":
    main()
