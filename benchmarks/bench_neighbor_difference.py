# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Neighbour selection and aggregation of DH-DETR, against the published dense form and an indexed one.

    python benchmarks/bench_neighbor_difference.py [--device cuda] [--json result.json]

"dense" repeats the codes to N x N x C before it gathers K of them, and sorts the whole N x N overlap, as published.
"indexed" is this package's pure-torch form: it gathers by index, and every slot goes through the second layer.
All start from the same codes e; the backward reaches e and all weights.
"""

import torch
from measure import arguments, compared, report, time_ms
from torch.nn import functional as F

from paq_detr import ops

K, IOU_THRESHOLD, LOW_SCORE = 10, 0.4, 0.1
# name: images, queries, channels, relative size of the boxes (larger ones overlap more)
CASES = {
    "sparse": (1, 1000, 256, 0.6),
    "crowd": (1, 1000, 256, 1.0),
    "packed": (1, 1000, 256, 2.0),
    "two images": (2, 500, 256, 1.5),
}


def scene(images, queries, channels, scale, device):
    generator = torch.Generator().manual_seed(0)
    center = torch.rand(images, queries, 2, generator=generator)
    size = scale * (0.03 + 0.15 * torch.rand(images, queries, 2, generator=generator))
    scores = torch.rand(images, queries, generator=generator)
    e = torch.randn(images, queries, channels, generator=generator)
    w3, w4 = torch.randn(2, channels, channels, generator=generator) / channels**0.5
    c3, c4 = torch.randn(2, channels, generator=generator)
    weights = [t.to(device).requires_grad_() for t in (e, w3, c3, w4, c4)]
    return torch.cat([center, size], -1).to(device), scores.to(device), weights


def dense_select(boxes, scores):
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    inter = (torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])).clamp(min=0)
    inter, area = inter.prod(-1), (high - low).prod(-1)
    iou = inter / (area[:, :, None] + area[:, None] - inter)
    overlap = iou * ((scores[:, :, None] < scores[:, None]) & (scores[:, None] > LOW_SCORE))
    slot = overlap.argsort(dim=-1, descending=True)[..., :K]
    return slot, overlap.gather(2, slot) >= IOU_THRESHOLD


def dense_aggregate(slot, real, e, w3, c3, w4, c4):
    num_queries, channels = e.shape[1:]
    repeated = e.unsqueeze(1).repeat_interleave(num_queries, 1)  # (B, N, N, C)
    neighbor = repeated.gather(2, slot[..., None].expand(-1, -1, -1, channels))
    code = F.linear(F.relu(F.linear(e[:, :, None] - neighbor, w3, c3)), w4, c4)
    return (code * real[..., None]).max(2).values


def indexed_aggregate(index, count, e, w3, c3, w4, c4):
    return ops.neighbor_difference_torch(F.linear(e, w3), index, count, c3, w4, c4, True)


def our_aggregate(index, count, e, w3, c3, w4, c4):
    return ops.neighbor_difference(F.linear(e, w3), index, count, c3, w4, c4)


@torch.no_grad()
def forward(function, graph, weights):
    return function(*graph, *weights)


def forward_backward(function, graph, weights):
    return torch.autograd.grad(function(*graph, *weights).square().sum(), weights)


def measured(args):
    for case, sizes in ({"tiny": (1, 20, 8, 1.0)} if args.tiny else CASES).items():
        boxes, scores, weights = scene(*sizes, args.device)
        select = {
            "dense": lambda b=boxes, s=scores: dense_select(b, s),
            "indexed": lambda b=boxes, s=scores: ops.neighbor_select_torch(b, s, K, IOU_THRESHOLD, LOW_SCORE),
            "ours": lambda b=boxes, s=scores: ops.neighbor_select(b, s, K, IOU_THRESHOLD, LOW_SCORE),
        }
        graph = select["ours"]()
        graphs = {"dense": select["dense"](), "indexed": graph, "ours": graph}
        functions = {"dense": dense_aggregate, "indexed": indexed_aggregate, "ours": our_aggregate}
        torch.testing.assert_close(
            forward(our_aggregate, graph, weights), forward(dense_aggregate, graphs["dense"], weights),
            atol=1e-4, rtol=1e-4,
        )  # fmt: skip
        phases = {"select": select}
        for phase, run in (("forward", forward), ("fwd+bwd", forward_backward)):
            phases[phase] = {
                name: lambda r=run, f=functions[name], g=graphs[name], w=weights: r(f, g, w) for name in functions
            }
        for phase, rivals in phases.items():
            timings = time_ms(rivals, args)
            row = {"case": case, "B,N,C": ",".join(map(str, sizes[:3])), "pairs": int(graph[1].sum()), "phase": phase}
            indexed = timings["indexed"].best / timings["ours"].best
            dense = {name: timing for name, timing in timings.items() if name != "indexed"}
            row |= compared(dense) | {"indexed ms": timings["indexed"].best, "over indexed": round(indexed, 1)}
            yield row


def main():
    args = arguments(__doc__.splitlines()[0])
    report(measured(args), args)


if __name__ == "__main__":
    main()
