# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention against its definition and, for every type and device, its twin."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from ms_deform_attn_cases import FORMS, LEVELS, SHAPES, TOLERANCE, Inputs, assert_close, gradients, make, naive
from torch import Tensor

from paq_detr.ops import explain


@pytest.fixture(scope="module")
def native():
    """Skips where the public functions would run the twin."""
    backend = next(b for b in explain("fused_ms_deform_attn", torch.zeros(1)) if b.name == "cpu")
    if not backend.runs:
        pytest.skip(f"the CPU kernels do not run: {backend.reason}")


RUNS = [pytest.param(Inputs.run, id="public"), pytest.param(Inputs.run_twin, id="twin")]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", RUNS)
def test_equals_the_definition(run, form, shape):
    inputs = make(form, **shape)
    assert_close(run(inputs), naive(inputs), 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", RUNS)
def test_gradcheck(run, form):
    inputs = make(form, batch=1, queries=2, channels=2, levels=[(3, 4), (2, 2)], points=2)
    inputs, leaves = inputs.differentiable()
    tensors = tuple(leaves.values())
    assert torch.autograd.gradcheck(lambda *t: run(replace(inputs, **dict(zip(leaves, t, strict=True)))), tensors)


@pytest.mark.parametrize("shape", [dict(channels=32, points=4, levels=LEVELS + [(2, 3)]), *SHAPES[1:]], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_every_gradient_equals_that_of_the_twin_in_float64(native, form, dtype, shape):
    inputs = make(form, dtype, **shape)
    grad_out = torch.randn_like(inputs.run())
    assert_close(inputs.run(), inputs.doubled().run_twin(), TOLERANCE[dtype])
    actual = gradients(inputs, Inputs.run, grad_out)
    expected = gradients(inputs.doubled(), Inputs.run_twin, grad_out.double())
    for name, grad in actual.items():
        rounded = name == "value"  # the others are float32 or float64 whatever the value is
        assert_close(grad, expected[name], TOLERANCE[dtype if rounded else grad.dtype])
        assert grad.dtype == getattr(inputs, name).dtype


def test_queries_that_are_tokens_equal_the_twin(native):
    """So many reads per token that the kernel works on copies of rows."""
    levels = [(20, 33), (10, 17)]
    inputs = make("points", torch.float32, queries=830, channels=32, points=4, levels=levels)
    grad_out = torch.randn_like(inputs.run())
    assert_close(inputs.run(), inputs.run_twin(), 5e-6)
    expected = gradients(inputs.doubled(), Inputs.run_twin, grad_out.double())
    for name, grad in gradients(inputs, Inputs.run, grad_out).items():
        assert_close(grad, expected[name], 5e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", RUNS)
def test_no_queries_give_an_empty_result_and_zero_gradients(run, form):
    inputs = make(form, queries=0)
    assert run(inputs).shape == (2, 0, 8)
    assert gradients(inputs, run, torch.zeros(2, 0, 8, dtype=torch.float64))["value"].eq(0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", RUNS)
def test_a_point_outside_or_not_finite_adds_nothing_and_gets_no_gradient(run, form, bad):
    inputs = make(form, queries=4)
    if form == "boxes":
        inputs.reference = inputs.reference.clamp(min=0.1)
    inputs.xy[:, ::2, :, 0, 0, 1] = bad
    without = replace(inputs, xy=inputs.xy.clone())
    without.xy[:, ::2, :, 0, 0] = 1e4
    assert torch.equal(run(inputs), run(without))
    for grad in gradients(inputs, run, torch.ones_like(run(inputs))).values():
        assert grad.isfinite().all()
    assert gradients(inputs, run, torch.ones_like(run(inputs)))["xy"][:, ::2, :, 0, 0].eq(0).all()


@pytest.mark.parametrize("run", RUNS)
def test_a_reference_that_is_not_finite_gets_no_gradient(run):
    inputs = make("boxes")
    inputs.reference[0, 0, 2] = math.inf
    inputs.reference[1, 1, 0] = math.nan
    out = run(inputs)
    grads = gradients(inputs, run, torch.ones_like(out))
    assert out[0, 0].eq(0).all() and out[1, 1].eq(0).all()
    assert all(grad.isfinite().all() for grad in grads.values())
    assert grads["reference"][0, 0].eq(0).all()


@pytest.mark.parametrize("run", RUNS)
def test_padding_counts_as_zero_even_if_it_holds_nan(run):
    inputs = make("points")
    zeroed = replace(inputs, value=inputs.value.masked_fill(inputs.padding_mask[..., None, None], 0), padding_mask=None)
    inputs.value[inputs.padding_mask] = math.nan
    assert_close(run(inputs), run(zeroed), 1e-14)
    grads = gradients(inputs, run, torch.ones_like(run(inputs)))
    assert grads["value"][inputs.padding_mask].eq(0).all()
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", RUNS)
def test_batch_of_three_equals_three_batches_of_one(run, form):
    inputs = make(form, batch=3, queries=5)
    assert torch.equal(run(inputs), torch.cat([run(inputs.image(b)) for b in range(3)]))


@pytest.mark.parametrize("form", ["points", "boxes"])
@pytest.mark.parametrize("run", RUNS)
def test_a_padded_image_equals_the_image_alone(run, form):
    """Valid ratios and the mask together undo padding on the right and below."""
    alone = make(form, batch=1, channels=4, levels=[(6, 8), (3, 4)], padded=False)
    maps = [alone.value[:, :48].view(1, 6, 8, 2, 4), alone.value[:, 48:].view(1, 3, 4, 2, 4)]
    grown = [torch.nn.functional.pad(m, (0, 0, 0, 0, 0, m.shape[2] // 2, 0, m.shape[1] // 3), value=7.0) for m in maps]
    counts = [torch.ones(1, *m.shape[1:3], dtype=torch.bool) for m in maps]
    masks = [
        ~torch.nn.functional.pad(c, (0, g.shape[2] - c.shape[2], 0, g.shape[1] - c.shape[1]))
        for c, g in zip(counts, grown, strict=True)
    ]
    ratios = [[m.shape[2] / g.shape[2], m.shape[1] / g.shape[1]] for m, g in zip(maps, grown, strict=True)]
    padded = replace(
        alone,
        value=torch.cat([g.flatten(1, 2) for g in grown], 1),
        valid_ratios=torch.tensor([ratios], dtype=torch.float64),
        padding_mask=torch.cat([m.flatten(1) for m in masks], 1),
        levels=tuple(tuple(g.shape[1:3]) for g in grown),
    )
    assert_close(run(padded), run(alone), 1e-12)


def test_slices_of_one_projection_equal_their_contiguous_copies(native):
    inputs = make("points", torch.float32, channels=32, points=4, batch=3)
    both = torch.cat([inputs.xy.flatten(2), inputs.scores.flatten(2)], -1)
    split = inputs.xy[0, 0].numel()
    values = torch.cat([inputs.value, inputs.value], -1).flatten(2).view(3, -1, 2, 64)
    views = replace(
        inputs,
        value=values[..., :32],
        reference=inputs.reference.transpose(0, 1).contiguous().transpose(0, 1),
        xy=both[..., :split].view(inputs.xy.shape),
        scores=both[..., split:].view(inputs.scores.shape),
        padding_mask=inputs.padding_mask.t().contiguous().t(),
    )
    assert not any(getattr(views, f).is_contiguous() for f in ("value", "xy", "scores", "reference", "padding_mask"))
    assert torch.equal(views.run(), inputs.run())
    expected = gradients(inputs, Inputs.run, torch.ones_like(inputs.run()))
    grad_out = torch.ones(3, 64, 7).transpose(1, 2)
    assert not grad_out.is_contiguous()
    for name, grad in gradients(views, Inputs.run, grad_out).items():
        assert torch.equal(grad, expected[name])


@pytest.mark.parametrize("queries", [6, 500])
def test_backward_is_bitwise_the_same_for_any_number_of_threads(native, queries):
    inputs = make("boxes", torch.float32, batch=1, queries=queries, channels=32, points=4)
    grad_out = torch.randn_like(inputs.run())
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 13):
        torch.set_num_threads(count)
        results.append([inputs.run(), *gradients(inputs, Inputs.run, grad_out).values()])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_autocast_casts_the_value_and_keeps_coordinates_in_float32(native):
    levels = [(5, 167)]  # in bfloat16 a coordinate near 160 is a whole pixel wrong
    inputs = make("points", torch.float32, channels=32, points=4, levels=levels)
    with torch.autocast("cpu", torch.bfloat16):
        out = inputs.run()
        half_offsets = replace(inputs, xy=inputs.xy.bfloat16()).run()
        through_op = torch.ops.paq_detr.fused_ms_deform_attn(
            inputs.value, [5, 167], inputs.reference, inputs.xy, inputs.scores, inputs.valid_ratios, inputs.padding_mask
        )
    assert out.dtype == half_offsets.dtype == torch.bfloat16
    assert torch.equal(out, replace(inputs, value=inputs.value.bfloat16()).run())
    assert torch.equal(out, through_op)
    assert_close(out, inputs.run(), TOLERANCE[torch.bfloat16])


def op_arguments(inputs):
    shapes = [size for level in inputs.levels for size in level]
    if inputs.reference is None:
        return "ms_deform_attn", (inputs.value, shapes, inputs.xy, inputs.scores)
    rest = (inputs.reference, inputs.xy, inputs.scores, inputs.valid_ratios, inputs.padding_mask)
    return "fused_ms_deform_attn", (inputs.value, shapes, *rest)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_opcheck(native, form, padded):
    inputs, _ = make(form, torch.float32, padded=padded).differentiable()
    name, arguments = op_arguments(inputs)
    torch.library.opcheck(getattr(torch.ops.paq_detr, name).default, arguments)
    backward = getattr(torch.ops.paq_detr, f"{name}_backward").default
    arguments = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
    torch.library.opcheck(backward, (torch.randn(2, 7, 8), *arguments, True))


@pytest.mark.parametrize("form", FORMS)
def test_compiles_into_one_graph(native, form):
    inputs, leaves = make(form, torch.float32).differentiable()
    compiled = torch.compile(
        lambda *t: replace(inputs, **dict(zip(leaves, t))).run(), fullgraph=True, backend="aot_eager"
    )
    out = compiled(*leaves.values())
    assert torch.equal(out, inputs.run())
    expected = gradients(inputs, Inputs.run, torch.ones_like(out))
    for name, grad in zip(leaves, torch.autograd.grad(out.sum(), list(leaves.values())), strict=True):
        assert torch.allclose(grad, expected[name]), name


def test_exports_as_one_operator(native):
    inputs = make("points", torch.float32)

    class Attention(torch.nn.Module):
        def forward(self, value, reference, xy, scores):
            return replace(inputs, value=value, reference=reference, xy=xy, scores=scores).run()

    arguments = (inputs.value, inputs.reference, inputs.xy, inputs.scores)
    program = torch.export.export(Attention(), arguments)
    assert [n for n in program.graph.nodes if n.target is torch.ops.paq_detr.fused_ms_deform_attn.default]
    assert torch.equal(program.module()(*arguments), inputs.run())


CLONE_CHECK = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import ms_deform_attn_cases as t
torch.set_num_threads(1)
for dtype in t.TOLERANCE:
    for form, shape in (("locations", t.SHAPES[4]), ("boxes", dict(channels=21, points=4))):
        inputs = t.make(form, dtype, **shape)
        grad_out = torch.randn_like(inputs.run())
        t.assert_close(inputs.run(), inputs.doubled().run_twin(), t.TOLERANCE[dtype])
        expected = t.gradients(inputs.doubled(), t.Inputs.run_twin, grad_out.double())
        for name, grad in t.gradients(inputs, t.Inputs.run, grad_out).items():
            t.assert_close(grad, expected[name], t.TOLERANCE[dtype if name == "value" else grad.dtype])
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_the_kernel_of_every_instruction_set_equals_the_twin(native, isa):
    """The tests above run the best clone of this machine; the choice is made once in a process."""
    command = [sys.executable, "-c", CLONE_CHECK, os.path.dirname(__file__)]
    subprocess.run(command, env={**os.environ, "PAQ_DETR_CPU_ISA": isa}, check=True)


def changed(inputs, **tensors):
    return replace(inputs, **tensors)


GOOD = make("points", torch.float32)
CLASSICAL = make("locations", torch.float32)
MISTAKES = [
    (changed(GOOD, levels=((9, 17), (5, 8), (3, 3))), ValueError, "level sizes sum to 202, value has 205"),
    (changed(GOOD, levels=()), ValueError, "spatial_shapes is empty"),
    (changed(GOOD, levels=torch.tensor(LEVELS)), TypeError, "spatial_shapes is a Tensor"),
    (changed(GOOD, levels=((9, 17), (52, 1), (0, 3))), ValueError, "a level without tokens"),
    (changed(GOOD, levels=((9, 17), (52, 1))), ValueError, r"offsets has shape .2, 7, 2, 3, 3, 2., .* .2, 7, 2, 2"),
    (changed(GOOD, value=GOOD.value[0]), ValueError, r"value has shape .* expected \(B, S, H, D\)"),
    (changed(GOOD, value=GOOD.value.int()), TypeError, "value is torch.int32, expected a floating point type"),
    (changed(GOOD, value=None), TypeError, "value is NoneType, expected a Tensor"),
    (changed(GOOD, value=GOOD.value[:1]), ValueError, r"offsets has shape \(2, .*expected \(1, "),
    (changed(GOOD, value=GOOD.value[:, :, :1]), ValueError, r"offsets has shape \(2, 7, 2.*expected \(2, 7, 1"),
    (changed(GOOD, reference=GOOD.reference[..., :1]), ValueError, "reference has 1 coordinates, expected 2 .* or 4"),
    (changed(GOOD, reference=GOOD.reference[:, :5]), ValueError, "reference has shape .2, 5, 2., expected .2, 7, 2"),
    (changed(GOOD, xy=GOOD.xy[..., 0]), ValueError, "offsets has shape .* expected .B, Q, H, L, P, 2."),
    (changed(GOOD, scores=GOOD.scores[..., :8]), ValueError, "logits has shape .2, 7, 2, 8., expected .2, 7, 2, 9"),
    (changed(GOOD, scores=GOOD.scores.to("meta")), ValueError, "logits is on meta, value on cpu"),
    (changed(GOOD, valid_ratios=GOOD.valid_ratios[:, :2]), ValueError, "valid_ratios has shape .2, 2, 2., .* .2, 3"),
    (changed(GOOD, padding_mask=GOOD.padding_mask.int()), TypeError, "padding_mask is torch.int32, expected"),
    (changed(GOOD, padding_mask=GOOD.padding_mask[:, 1:]), ValueError, "padding_mask has shape .2, 204., .* .2, 205"),
    (changed(GOOD, value=GOOD.value.to(torch.float8_e5m2)), TypeError, "value is torch.float8_e5m2, expected float32"),
    (changed(GOOD, scores=None), TypeError, "logits is NoneType, expected a Tensor"),
    (changed(GOOD, padding_mask=[0]), TypeError, "padding_mask is list, expected a Tensor"),
    (changed(CLASSICAL, xy=CLASSICAL.xy[..., :1]), ValueError, "sampling_locations has shape .*, 1.*expected .*, 2"),
    (changed(CLASSICAL, scores=CLASSICAL.scores[:, 1:]), ValueError, "attention_weights has shape .2, 6.* .2, 7"),
    (changed(CLASSICAL, scores=CLASSICAL.scores.bool()), TypeError, "attention_weights is torch.bool"),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "error", "sentence"), MISTAKES, ids=[sentence[:40] for *_, sentence in MISTAKES])
def test_a_mistake_is_named_with_both_sizes(inputs, error, sentence):
    with pytest.raises(error, match=sentence):
        inputs.run()


@pytest.mark.parametrize("levels", [[9, 17, 5, 8], [(9, 17, 1)], [(9.0, 17), (5, 8), (3, 4)], None, torch.ones(3, 2)])
def test_level_sizes_that_are_no_pairs_of_ints_are_named(levels):
    with pytest.raises(TypeError, match=r"spatial_shapes is .*, expected a sequence of \(H, W\) Python ints"):
        replace(GOOD, levels=levels).run()


def test_level_sizes_may_be_an_array():
    assert torch.equal(replace(GOOD, levels=np.array(LEVELS)).run(), GOOD.run())


@pytest.mark.parametrize("sizes", [[-1, 4, 2, 4], [2, 2, 7]])
def test_the_kernel_refuses_sizes_that_python_would_refuse(native, sizes):
    locations, weights = torch.zeros(1, 1, 1, len(sizes) // 2, 1, 2), torch.zeros(1, 1, 1, len(sizes) // 2, 1)
    with pytest.raises(RuntimeError, match="a level has the size -1|no pairs of height and width"):
        torch.ops.paq_detr.ms_deform_attn(torch.ones(1, 4, 1, 8), sizes, locations, weights)


@pytest.mark.parametrize("run", RUNS)
def test_the_weight_of_a_point_outside_is_not_looked_at(run):
    xy, scores = CLASSICAL.xy.clone(), CLASSICAL.scores.clone()
    xy[0, 0, 0, 0, 0], scores[0, 0, 0, 0, 0] = 5.0, math.nan
    assert run(replace(CLASSICAL, xy=xy, scores=scores)).isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_a_second_derivative_is_refused(native, form):
    inputs, leaves = make(form).differentiable()
    (grad,) = torch.autograd.grad(inputs.run().square().sum(), leaves["value"], create_graph=True)
    with pytest.raises(RuntimeError, match="ms_deform_attn is differentiable once, not twice"):
        grad.sum().backward()


def test_a_tensor_left_over_from_a_transform_is_taken_as_what_it_wraps(native):
    left, (inputs, leaves) = [], CLASSICAL.differentiable()
    torch.func.grad(lambda xy: left.append(xy) or xy.sum())(CLASSICAL.xy)
    out = replace(inputs, xy=left[0]).run()
    torch.testing.assert_close(out, CLASSICAL.run())
    out.sum().backward()
    assert leaves["value"].grad.any()


def test_meta_tensors_have_a_shape():
    assert GOOD.map(lambda tensor: tensor.to("meta")).run().shape == GOOD.run().shape


# ---------------------------------------------------------------------------------------------------------------
# On a GPU: the same, against the float64 twin on CPU.


@pytest.fixture(scope="module")
def cuda():
    backend = next(b for b in explain("fused_ms_deform_attn", torch.zeros(1, device="cuda")) if b.name == "cuda")
    if not backend.runs:
        pytest.skip(f"the CUDA kernels do not run: {backend.reason}")
    return torch.device("cuda")


GPU_SHAPES = [
    dict(channels=32, points=4, queries=33, levels=LEVELS + [(2, 3)]),
    dict(channels=32, points=4, queries=205),  # queries are tokens: taken tile by tile
    dict(channels=48, points=9, queries=5),  # more points than are prepared at a time, more channels than lanes
    *SHAPES[1:],
]


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_cuda_equals_the_twin_in_float64(cuda, form, dtype, shape, deterministic):
    inputs = make(form, dtype, **shape)
    on_gpu = inputs.map(lambda tensor: tensor.to(cuda))
    grad_out = torch.randn_like(inputs.run_twin())
    assert_close(on_gpu.run(), inputs.doubled().run_twin(), TOLERANCE[dtype])
    torch.use_deterministic_algorithms(deterministic)
    try:
        actual = gradients(on_gpu, Inputs.run, grad_out.to(cuda))
        again = gradients(on_gpu, Inputs.run, grad_out.to(cuda))
    finally:
        torch.use_deterministic_algorithms(False)
    expected = gradients(inputs.doubled(), Inputs.run_twin, grad_out.double())
    for name, grad in actual.items():
        tolerance = max(TOLERANCE[dtype if name == "value" else grad.dtype], 1e-11)
        assert_close(grad, expected[name], tolerance)
        assert not deterministic or torch.equal(grad, again[name])


@pytest.mark.gpu
def test_cuda_takes_slices_empty_inputs_and_bad_coordinates(cuda):
    inputs = make("points", torch.float32, channels=32, points=4).map(lambda tensor: tensor.to(cuda))
    odd = replace(inputs, value=torch.cat([inputs.value, inputs.value], -1)[..., 1:33])  # not aligned to 16 bytes
    assert_close(odd.run(), replace(odd, value=odd.value.contiguous()).run().cpu(), 1e-6)
    none = make("points", torch.float32, queries=0).map(lambda tensor: tensor.to(cuda))
    assert none.run().shape == (2, 0, 8)
    inputs.xy[:, ::2, :, 0, 0, 1] = math.nan
    inputs.xy[:, 1::2, :, 0, 1, 0] = math.inf
    grads = gradients(inputs, Inputs.run, torch.ones_like(inputs.run()))
    assert all(grad.isfinite().all() for grad in grads.values())
    torch.cuda.synchronize()


@pytest.mark.gpu
def test_cuda_works_on_the_current_stream(cuda):
    inputs = make("points", torch.float32, channels=32, points=4, queries=205).map(lambda tensor: tensor.to(cuda))
    expected = inputs.run()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = inputs.value * 1
        out = replace(inputs, value=late).run()
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_cuda_opcheck(cuda, form):
    inputs, _ = make(form, torch.float32).map(lambda tensor: tensor.to(cuda)).differentiable()
    name, arguments = op_arguments(inputs)
    torch.library.opcheck(getattr(torch.ops.paq_detr, name).default, arguments)
