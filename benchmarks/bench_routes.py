# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What Mr. DETR's three routes cost a training step's decoder, forward and backward, in three ways.

    OMP_NUM_THREADS=1 python benchmarks/bench_routes.py --threads 1 --clock cpu --rounds 5 [--json out.json]

"naive": every route projects the memory by itself; "ours": once a layer for all of them; "joined": in addition one
cross-attention call a layer for the queries of all routes, which is exact, as deformable attention looks at each query
alone; "one route": the main one. Peak memory is torch's count on a GPU, else that of a process of its own.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from unittest.mock import patch

import torch
from detectron2.config import get_cfg
from measure import arguments, report, time_ms

from paq_detr import add_paq_detr_config
from paq_detr.assembly import build_parts
from paq_detr.structures import DecoderState, Grid, LayerOutput, Memory, QuerySet

CASES = [(1, 300), (1, 900), (2, 300)]  # images, queries
STRIDES, HEIGHT, WIDTH = (8, 16, 32, 64), 480, 640
Outputs = list[list[LayerOutput]]


def routes_of(queries: int, device: str, *options: object) -> list[torch.nn.Module]:
    """The routes of Mr. DETR on Deformable-DETR++, in training, random weights."""
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.MODEL.DETR.merge_from_list(
        ["QUERIES.NAME", "EncoderTopN", "QUERIES.NUM", queries, "DECODER.LOOK_FORWARD_TWICE", True,
         "DECODER.FFN_DIM", 2048, "ROUTES", ["mr_ffn", "mr_tokens"], *options]
    )  # fmt: skip
    torch.manual_seed(0)
    return [route.to(device).train() for route in build_parts(cfg, 80)["routes"]]


def inputs_of(images: int, queries: int, size: tuple[int, int], channels: int, device: str):
    """A memory, and the queries of each route: the first two routes share theirs."""
    shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]
    grid = Grid(shapes, STRIDES, [size] * images, size, [shapes] * images, device)
    tokens = torch.randn(images, sum(grid.level_sizes), channels, device=device, requires_grad=True)

    def some() -> QuerySet:
        content, position = torch.randn(2, images, queries, channels, device=device).requires_grad_()
        reference = torch.rand(images, queries, 4, device=device) * 0.6 + 0.2
        return QuerySet(content, reference, position)

    shared, own = some(), some()
    return lambda: Memory(tokens, torch.zeros_like(tokens), grid), [shared, shared, own]


def ours(routes, queries, memory: Memory) -> Outputs:
    return [route(own, memory) for route, own in zip(routes, queries)]


def naive(routes, queries, memory: Memory) -> Outputs:
    with patch.object(Memory, "once", lambda self, owner, compute: compute(self)):
        return ours(routes, queries, memory)


def joined(routes, queries, memory: Memory) -> Outputs:
    """``CascadeDecoder`` layer by layer for all routes, as far as these models need it."""
    decoders = [route.decoder for route in routes]
    states = [DecoderState.of(own) for own in queries]
    starts = [state.reference for state in states]
    for layer, main in enumerate(decoders[0].layers):
        for index, decoder in enumerate(decoders):
            for interaction in decoder.layers[layer].interactions:
                states[index] = interaction(states[index], memory)
        together = DecoderState(
            *(torch.cat([getattr(s, name) for s in states], 1) for name in ("content", "reference", "position")),
            valid=None,
            alive=None,
        )
        read = main.cross_attention(together, memory).content.chunk(len(states), 1)
        for index, decoder in enumerate(decoders):
            content = decoder.layers[layer].ffn(read[index])
            boxes = decoder.locate(layer, content, starts[index], memory)
            output = LayerOutput(decoder.classify(layer, content), boxes, content)
            history = (*states[index].history, output)
            refined = decoder.locate(layer, content, states[index].reference, memory)
            states[index] = replace(states[index], content=content, reference=refined.detach(), history=history)
            starts[index] = refined
    return [list(state.history) for state in states]


def one_route(routes, queries, memory: Memory) -> Outputs:
    return ours(routes[:1], queries[:1], memory)


RIVALS = {"ours": ours, "naive": naive, "joined": joined, "one route": one_route}


def loss_of(outputs: Outputs) -> torch.Tensor:
    return sum(o.logits.square().mean() + o.boxes.square().mean() for layers in outputs for o in layers)


def steps(images: int, queries: int, device: str, size=(HEIGHT, WIDTH)) -> dict[str, Callable[[], torch.Tensor]]:
    """By rival, a step of forward and backward that returns the loss."""
    routes = routes_of(queries, device)
    memory, sets = inputs_of(images, queries, size, 256, device)

    def step(rival) -> torch.Tensor:
        loss = loss_of(rival(routes, sets, memory()))
        loss.backward()
        return loss.detach()

    return {name: lambda rival=rival: step(rival) for name, rival in RIVALS.items()}


def peak_mb(name: str, images: int, queries: int, device: str, size) -> float:
    """Memory of one rival's step beyond what was held before."""
    step = steps(images, queries, device, size)[name]
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def measured(args):
    size = (96, 128) if args.tiny else (HEIGHT, WIDTH)
    for images, queries in [(1, 20)] if args.tiny else CASES:
        rivals = steps(images, queries, args.device, size)
        losses = {name: step().item() for name, step in rivals.items() if name != "one route"}
        apart = max(losses.values()) - min(losses.values())
        timings = time_ms(rivals, args)
        peaks = {}
        for name in rivals:  # a process has but one peak
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                peak = pool.submit(peak_mb, name, images, queries, args.device, size).result()
            peaks[f"{name} MB"] = round(peak)
        yield {
            "images": images,
            "queries": queries,
            "losses apart": apart / losses["naive"],
            **{f"{name} ms": timing.best for name, timing in timings.items()},
            **peaks,
        }


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    report(measured(args), args)


if __name__ == "__main__":
    main()
