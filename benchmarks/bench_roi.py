# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""RoIAlign over a feature pyramid, against torchvision's MultiScaleRoIAlign.

    python benchmarks/bench_roi.py [--device cuda] [--json result.json]

Both read the same four levels of batches without padding, ours as the tokens and theirs as the maps that their models
have; 7 x 7 bins of 2 x 2 samples; the backward reaches tokens or maps.
"""

import torch
from measure import arguments, compared, report, time_ms
from torchvision.ops import MultiScaleRoIAlign

from paq_detr.layers import boxes_cxcywh_to_xyxy
from paq_detr.modeling.roi import MultiLevelRoIAlign
from paq_detr.structures import Grid, Memory

STRIDES = (4, 8, 16, 32)
# name: images, boxes an image, channels, height, width
CASES = {"small training step": (4, 100, 128, 160, 224), "R50, one image": (1, 300, 256, 800, 1216)}
TINY = {"tiny": (2, 5, 8, 32, 64)}


def scene(images, count, channels, height, width, device):
    """Maps, and boxes as shares of the image: of all levels, some beyond its edges."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(images, channels, height // s, width // s, generator=generator) for s in STRIDES]
    side = 10 ** (1.5 * torch.rand(images, count, 1, generator=generator) - 1.5)
    boxes = torch.cat([torch.rand(images, count, 2, generator=generator), side.expand(-1, -1, 2)], -1)
    return [x.to(device).requires_grad_() for x in maps], boxes.to(device)


def forms(maps, boxes, height, width):
    """Per rival its function, and what its gradient is for."""
    images, size = len(boxes), (height, width)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    named = {str(i): level for i, level in enumerate(maps)}
    corners = list(boxes_cxcywh_to_xyxy(boxes) * torch.tensor([width, height, width, height], device=boxes.device))
    shapes = [tuple(x.shape[-2:]) for x in maps]
    grid = Grid(shapes, STRIDES, [size] * images, size, [shapes] * images, boxes.device)
    tokens = torch.cat([level.detach().flatten(2).transpose(1, 2) for level in maps], 1).requires_grad_()
    ours = MultiLevelRoIAlign(aligned=False, eps=1e-6)
    return {
        "torchvision": (lambda: theirs(named, corners, [size] * images), maps),
        "ours": (lambda: ours(Memory(tokens, None, grid), boxes).flatten(0, 1), [tokens]),
    }


def forward(function, _):
    with torch.no_grad():
        return function()


def forward_backward(function, inputs):
    return torch.autograd.grad(function().square().sum(), inputs)


def measured(args):
    for case, (images, count, channels, height, width) in (TINY if args.tiny else CASES).items():
        maps, boxes = scene(images, count, channels, height, width, args.device)
        rivals = forms(maps, boxes, height, width)
        expected, found = (forward(*rivals[name]) for name in ("torchvision", "ours"))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        for phase, run in (("forward", forward), ("fwd+bwd", forward_backward)):
            functions = {name: lambda r=run, form=form: r(*form) for name, form in rivals.items()}
            yield {"case": case, "phase": phase} | compared(time_ms(functions, args))


def main():
    args = arguments(__doc__.splitlines()[0])
    report(measured(args), args)


if __name__ == "__main__":
    main()
