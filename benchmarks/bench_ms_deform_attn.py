# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Fused multi-scale deformable attention against softmax, locations and grid_sample in eager torch.

    python benchmarks/bench_ms_deform_attn.py [--device cuda] [--json result.json]

Every rival starts from value, reference points, raw offsets and raw logits. "grid_sample" is the form that runs where
no kernel is built: transformers' own function where transformers is installed, else the same written here. "wheel" is
the kernel of the ms-deform-attn wheel, on a GPU where that is installed. "GB/s" counts the bytes that ours must at
least read and write.
"""

import importlib
import math
from functools import partial

import torch
import torch.nn.functional as F
from measure import arguments, compared, report, time_ms

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
GPU_CASES = {"encoder, batch 2": (2, LEVELS, None), "decoder, 900, batch 2": (2, LEVELS, 900)}
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


def eager_locations(levels, reference, offsets, logits):
    sizes = torch.tensor([(width, height) for height, width in levels], device=offsets.device)
    locations = reference[:, :, None, None, None] + offsets / sizes[:, None]
    return locations, logits.softmax(-1).view(offsets.shape[:-1])


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


def wheel_forms(device):
    """The wheel's forward and backward, or None. It takes float32 only and shapes as tensors on the device."""
    if not device.startswith("cuda") or importlib.util.find_spec("MultiScaleDeformableAttention") is None:
        return None
    kernel = importlib.import_module("MultiScaleDeformableAttention")

    def prepare(value, levels, reference, offsets, logits):
        shapes = torch.tensor(levels, device=value.device)
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        return value, shapes, starts, *eager_locations(levels, reference, offsets, logits)

    def forward(*inputs):
        return kernel.ms_deform_attn_forward(*prepare(*inputs), 64)

    def backward(grad_out, *inputs):
        return kernel.ms_deform_attn_backward(*prepare(*inputs), grad_out, 64)

    return forward, backward


def backward_of(function, inputs, grad_out):
    leaves = [tensor.detach().requires_grad_() for tensor in inputs if isinstance(tensor, torch.Tensor)]
    value, *rest = leaves
    out = function(value, inputs[1], *rest)
    return lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True)


def agree(grid_sample, inputs):
    """No time counts unless the rivals agree with the twin in float64, on the first queries."""
    value, levels, *rest = inputs
    rest = [tensor[:, :500] for tensor in rest]
    inputs = (value, levels, *rest)
    expected = fused_ms_deform_attn_torch(value.double(), levels, *(tensor.double() for tensor in rest))
    error = (fused_ms_deform_attn(*inputs).double() - expected).abs().max() / expected.abs().max()
    bound = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[value.dtype]
    assert error <= bound, f"ours differs from the twin by {error:.1e}"
    if value.dtype == torch.float32:
        torch.testing.assert_close(grid_sample(*inputs).double(), expected, atol=1e-3, rtol=1e-3)


def measure(name, case, offsets, dtype, args):
    inputs = make_inputs(case, offsets, getattr(torch, dtype), args.device)
    grid_sample, wheel = grid_sample_form(), wheel_forms(args.device) if dtype == "float32" else None
    agree(grid_sample, inputs)
    with torch.no_grad():
        forward = {"grid_sample": partial(grid_sample, *inputs), "ours": partial(fused_ms_deform_attn, *inputs)}
        out = forward["ours"]()
    grad_out = torch.randn_like(out)
    backward = {
        "grid_sample": backward_of(grid_sample, inputs, grad_out),
        "ours": backward_of(fused_ms_deform_attn, inputs, grad_out),
    }
    if wheel:
        forward["wheel"] = partial(wheel[0], *inputs)
        backward["wheel"] = partial(wheel[1], grad_out, *inputs)
    moved = sum(tensor.nbytes for tensor in (*inputs, out) if isinstance(tensor, torch.Tensor))
    bytes_of = {"forward": moved, "backward": 2 * moved}  # the backward writes a gradient for whatever it reads
    for direction, rivals in (("forward", forward), ("backward", backward)):
        with torch.set_grad_enabled(direction == "backward"):
            timings = time_ms(rivals, args)
        row = {"case": name, "type": dtype, "offsets": offsets, "direction": direction}
        row |= {f"{rival} ms": timings[rival].best if rival in timings else math.nan for rival in args.rivals}
        yield row | compared(timings) | {"GB/s": bytes_of[direction] / timings["ours"].best / 1e6}


def main():
    args = arguments(__doc__.splitlines()[0])
    on_gpu = args.device.startswith("cuda")
    args.rivals = ["grid_sample", *(["wheel"] if wheel_forms(args.device) else []), "ours"]
    rows = []
    for name, case in (CASES | (GPU_CASES if on_gpu else {})).items():
        for dtype in GPU_TYPES if on_gpu else CPU_TYPES:
            for offsets in OFFSETS:
                rows += measure(name, case, offsets, dtype, args)
    report(rows, args)


if __name__ == "__main__":
    main()
