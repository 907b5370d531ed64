# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Fused multi-scale deformable attention against softmax, locations and grid_sample in eager torch.

    python benchmarks/bench_ms_deform_attn.py [--device cuda] [--json result.json]

Every rival starts from value, reference points, raw offsets and raw logits. "grid_sample" is the form that runs where
no kernel is built: transformers' own function where transformers is installed, else the same written here. On a GPU the
kernels of peers.py run beside it, as far as they are installed, and ours once more, the backward deterministically.
There every case is timed twice, called from Python as a model does ("eager") and replayed as a CUDA graph ("graph",
what the device alone takes). "error" is the largest against the twin in float64, relative
to the largest value. "GB/s" counts the bytes that ours must at least read and write.
"""

import math
import sys
from functools import partial

import torch
import torch.nn.functional as F
from measure import arguments, compared, parser_of, report, time_ms
from peers import eager_locations, msda_peers

from paq_detr.ops import fused_ms_deform_attn, fused_ms_deform_attn_torch

LEVELS = [(100, 167), (50, 84), (25, 42), (13, 21)]  # an 800 x 1333 image at strides 8 to 64
SMALL = [(80, 80), (40, 40), (20, 20)]
# name: batch, levels, queries (None: the tokens themselves, as in an encoder)
CASES = {
    "encoder, 22223 queries": (1, LEVELS, None),
    "encoder, 8400 queries": (1, SMALL, None),
    "decoder, 900 queries": (1, LEVELS, 900),
    "decoder, 300 queries": (1, LEVELS, 300),
    "small training step": (4, [(20, 25), (10, 13), (5, 7)], 300),
}
CPU_TYPES, GPU_TYPES = ("float32",), ("float32", "bfloat16", "float16")
GPU_CASES = {
    "encoder, batch 2": (2, LEVELS, None),
    "decoder, 900, batch 2": (2, LEVELS, 900),
    "decoder, 300, batch 2": (2, LEVELS, 300),
}
HEADS, CHANNELS, POINTS = 8, 32, 4
OFFSETS = ("init", "sigma 2", "sigma 8")


def make_offsets(kind, shape):
    """Offsets in pixels: as initialised (one direction per head, k pixels for point k, sigma 0.5), as after training,
    and wide."""
    if kind != "init":
        return torch.randn(shape) * float(kind.split()[1])
    angle = torch.arange(HEADS) * (2 * math.pi / HEADS)
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, POINTS + 1)[:, None]
    return (direction[:, None, None] * steps).expand(shape) + 0.5 * torch.randn(shape)


def make_inputs(case, offsets, dtype, device):
    batch, levels, queries = case
    torch.manual_seed(0)
    tokens = sum(height * width for height, width in levels)
    value = torch.randn(batch, tokens, HEADS, CHANNELS).to(device, dtype)
    if queries is None:
        centres = [
            torch.stack(torch.meshgrid((torch.arange(w) + 0.5) / w, (torch.arange(h) + 0.5) / h, indexing="xy"), -1)
            for h, w in levels
        ]
        reference = torch.cat([c.flatten(0, 1) for c in centres]).expand(batch, -1, -1).contiguous()
    else:
        reference = torch.rand(batch, queries, 2)
    shape = (batch, reference.shape[1], HEADS, len(levels), POINTS, 2)
    logits = torch.randn(*shape[:3], len(levels) * POINTS)
    return value, levels, reference.to(device), make_offsets(offsets, shape).to(device), logits.to(device)


def sample_by_grid(value, levels, locations, weights):
    batch, _, heads, channels = value.shape
    samples = []
    for level, tokens in enumerate(value.split([height * width for height, width in levels], dim=1)):
        maps = tokens.flatten(2).transpose(1, 2).reshape(batch * heads, channels, *levels[level])
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(maps, grid.to(maps.dtype), align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, weights.shape[1], -1)
    out = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)
    return out.view(batch, heads * channels, -1).transpose(1, 2).contiguous()


def grid_sample_form():
    try:
        from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention
    except ImportError:
        sample = sample_by_grid
    else:
        module = MultiScaleDeformableAttention()

        def sample(value, levels, locations, weights):
            return module(value, None, levels, None, locations.to(value.dtype), weights.to(value.dtype), 64)

    def run(value, levels, reference, offsets, logits):
        return sample(value, levels, *eager_locations(levels, reference, offsets, logits))

    return run


def backward_of(function, inputs, grad_out):
    leaves = [tensor.detach().requires_grad_() for tensor in inputs if isinstance(tensor, torch.Tensor)]
    value, *rest = leaves
    out = function(value, inputs[1], *rest)
    return lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True)


def errors_of(rivals, inputs):
    """No time counts unless ours agrees with the twin in float64, on the first queries. A peer that fails is told and
    left out."""
    value, levels, *rest = inputs
    rest = [tensor[:, :500].contiguous() for tensor in rest]
    expected = fused_ms_deform_attn_torch(value.double(), levels, *(tensor.double() for tensor in rest))
    errors = {}
    for name, function in rivals.items():
        try:
            out = function(value, levels, *rest)
        except Exception as error:  # a peer's own, of any kind
            if name == "ours":
                raise
            print(f"{name} is left out: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            error = ((out.double() - expected).abs().max() / expected.abs().max()).item()
            if value.dtype == torch.float32 and name not in ("ours", "grid_sample") and not error <= 1e-3:
                print(f"{name} is left out: it does not compute the same, the error is {error:.1e}", file=sys.stderr)
                continue
            errors[name] = error
    bound = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[value.dtype]
    assert errors["ours"] <= bound, f"ours differs from the twin by {errors['ours']:.1e}"
    if value.dtype == torch.float32:
        assert max(errors.values()) <= 1e-3, f"the rivals do not compute the same: {errors}"
    return errors


def deterministic(function):
    def run():
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid of torch, 137 MB of writes here
        try:
            return function()
        finally:
            torch.use_deterministic_algorithms(False)

    return run


def graphed(rivals, stream):
    """The rivals as CUDA graphs; one that cannot be captured is told and left out. ``rivals`` were made on ``stream``,
    because a backward runs where its forward ran."""
    found = {}
    for name, function in rivals.items():
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                function()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=stream):
                function()
            graph.replay()
            torch.cuda.synchronize()
        except RuntimeError as error:
            if name.startswith("ours"):
                raise
            print(f"{name} is left out of the graphs: {str(error).splitlines()[0]}", file=sys.stderr)
        else:
            found[name] = graph.replay
    return found


def measure(name, case, offsets, dtype, args):
    inputs = make_inputs(case, offsets, getattr(torch, dtype), args.device)
    functions = {} if args.only_ours else {"grid_sample": grid_sample_form()}
    functions |= {peer: its.run for peer, its in args.peers.items() if dtype in its.types}
    functions["ours"] = fused_ms_deform_attn
    with torch.no_grad():
        errors = errors_of(functions, inputs)
        out = fused_ms_deform_attn(*inputs)
    grad_out = torch.randn_like(out)
    on_gpu = args.device.startswith("cuda")
    stream = torch.cuda.Stream() if on_gpu else None
    moved = sum(tensor.nbytes for tensor in (*inputs, out) if isinstance(tensor, torch.Tensor))
    bytes_of = {"forward": moved, "backward": 2 * moved}  # the backward writes a gradient for whatever it reads
    for direction in ("forward", "backward"):
        for calls in ("eager", "graph") if on_gpu else ("eager",):
            with torch.cuda.stream(stream if calls == "graph" else None):
                rivals = {rival: rival_of(direction, functions[rival], inputs, grad_out) for rival in errors}
            if on_gpu and direction == "backward":
                rivals["ours deterministic"] = deterministic(rivals["ours"])
            with torch.set_grad_enabled(direction == "backward"):
                if calls == "graph":
                    torch.cuda.synchronize()
                    rivals = graphed(rivals, stream)
                timings = time_ms(rivals, args)
            row = {"case": name, "type": dtype, "offsets": offsets, "direction": direction, "calls": calls}
            row |= compared({rival: timing for rival, timing in timings.items() if rival != "ours deterministic"})
            if "ours deterministic" in timings:
                row["ours deterministic ms"] = timings["ours deterministic"].best
            row |= {f"{rival} error": error for rival, error in errors.items()}
            yield row | {"GB/s": bytes_of[direction] / timings["ours"].best / 1e6}


def rival_of(direction, function, inputs, grad_out):
    return partial(function, *inputs) if direction == "forward" else backward_of(function, inputs, grad_out)


def measured(args):
    on_gpu = args.device.startswith("cuda")
    args.peers = {} if args.only_ours else msda_peers(args.device)
    cases = {"tiny": (1, [(4, 5), (2, 3)], 3)} if args.tiny else CASES | (GPU_CASES if on_gpu else {})
    for name, case in cases.items():
        if args.cases and not args.tiny and not any(part in name for part in args.cases):
            continue
        for dtype in GPU_TYPES if on_gpu else CPU_TYPES:
            for offsets in args.offsets:
                yield from measure(name, case, offsets, dtype, args)


def main():
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", help="only cases whose names hold one of these")
    parser.add_argument("--offsets", nargs="+", default=OFFSETS, choices=OFFSETS)
    parser.add_argument("--only-ours", action="store_true", help="no rivals, to compare builds of ours")
    args = arguments("", parser)
    report(measured(args), args)


if __name__ == "__main__":
    main()
