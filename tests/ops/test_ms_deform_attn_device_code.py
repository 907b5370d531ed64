# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of multi-scale deformable attention, run on CPU threads (cuda_on_cpu.h) against the twin.

It covers what a machine without a GPU can: indices, shuffles, softmax, masks, tiles, and every branch on types and
layouts. It says nothing of memory order, alignment faults or speed.
"""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
import torch
from ms_deform_attn_cases import LEVELS, TOLERANCE, Inputs, assert_close, gradients, make
from torch.utils.cpp_extension import include_paths

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
POINTERS = (
    "value xy scores reference valid_ratios padding_mask grad_out out grad_value sums units grad_xy grad_scores "
    "grad_reference"
).split()


class Tensors(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in POINTERS]


@pytest.fixture(scope="module")
def device_code(tmp_path_factory):
    library = tmp_path_factory.mktemp("device_code") / "ms_deform_attn_on_cpu.so"
    compiler = os.environ.get("CXX", "c++").split()
    includes = [f"-I{path}" for path in (CSRC, HERE, *include_paths())]
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread"]
    probe = "#include <barrier>\nstd::barrier<> b(1);\n"
    try:
        subprocess.run(
            [*compiler, *flags, "-fsyntax-only", "-x", "c++", "-"],
            input=probe, text=True, check=True, capture_output=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"{compiler[0]} does not compile C++20")
    source = str(HERE / "ms_deform_attn_on_cpu.cpp")
    subprocess.run([*compiler, *flags, *includes, source, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library)).ms_deform_attn_on_cpu


def run(device_code, inputs, grad_out, pack, deterministic):
    """Output and named gradients, by the device code; poisoned first, so that what is not written is seen."""
    batch, tokens, heads, channels = inputs.value.shape
    queries, points = inputs.xy.shape[1], inputs.xy.shape[4]
    form = 0 if inputs.reference is None else inputs.reference.shape[-1] // 2
    tensors = dict(vars(inputs), grad_out=grad_out)
    tensors["out"] = torch.full_like(grad_out, 777)
    tensors["grad_value"] = torch.full_like(inputs.value, 777)
    tensors["sums"] = torch.zeros_like(inputs.value, dtype=inputs.xy.dtype)
    tensors["units"] = torch.zeros_like(inputs.value, dtype=torch.int64)
    tensors["grad_xy"] = torch.full_like(inputs.xy, 777)
    tensors["grad_scores"] = torch.full_like(inputs.scores, 777)
    if form:
        tensors["grad_reference"] = inputs.xy.new_full((batch, queries, heads, 2 * form), 777)
    pointers = {name: tensors[name].data_ptr() if tensors.get(name) is not None else None for name in POINTERS}
    sizes = (ctypes.c_int * 7)(batch, tokens, queries, heads, channels, len(inputs.levels), points)
    shapes = [size for level in inputs.levels for size in level]
    vector_additions = device_code(
        TYPES.index(inputs.value.dtype), pack, ctypes.byref(Tensors(**pointers)), form, sizes,
        (ctypes.c_int64 * len(shapes))(*shapes), ctypes.c_bool(deterministic),
    )  # fmt: skip
    grads = {name: tensors[f"grad_{name}"] for name in ("xy", "scores")}
    grads["value"] = tensors["grad_value"] if deterministic else tensors["sums"].to(inputs.value.dtype)
    if form:
        grads["reference"] = tensors["grad_reference"].sum(2)
    return tensors["out"], grads, vector_additions


PACKS = dict(channels=32, points=4)
TILES = dict(channels=32, points=2, batch=1, heads=1, levels=[(9, 10), (2, 3)], queries=96)
# form, whether grad_value is summed in integers, type and shape; blocks are slow here, therefore few and small
CASES = [
    ("locations", False, dict(dtype=torch.float32, heads=1, **PACKS)),
    ("locations", True, dict(dtype=torch.float32, heads=1, **PACKS)),
    ("points", False, dict(dtype=torch.float32, queries=17, **PACKS)),
    ("boxes", True, dict(dtype=torch.float32, **PACKS)),
    ("points", False, dict(dtype=torch.float32, **TILES)),  # queries are tokens: taken tile by tile
    ("points", True, dict(dtype=torch.float32, channels=5, points=7, batch=1)),  # more points than fit at a time
    ("boxes", False, dict(dtype=torch.float64, channels=40, points=3, heads=1, batch=1)),  # more channels than lanes
    ("locations", True, dict(dtype=torch.float64, channels=3, points=1)),
    ("boxes", False, dict(dtype=torch.bfloat16, heads=1, **PACKS)),
    ("points", True, dict(dtype=torch.bfloat16, heads=1, **PACKS)),
    ("points", False, dict(dtype=torch.float16, channels=48, points=3, batch=1, heads=1)),
    ("locations", False, dict(dtype=torch.float16, channels=7, points=2, batch=1)),
]


def name_of(case):
    form, deterministic, shape = case
    sums = "integers" if deterministic else "floats"
    return "-".join([form, sums, *(str(value).removeprefix("torch.") for value in shape.values())])


@pytest.mark.parametrize(("form", "deterministic", "shape"), CASES, ids=map(name_of, CASES))
def test_device_code_equals_the_twin(device_code, form, deterministic, shape):
    inputs = make(form, **shape)
    inputs.xy[:, ::5, :, 0, 0, 0] = torch.nan
    inputs.xy[:, 1::5, :, -1, 0, 1] = torch.inf
    dtype = inputs.value.dtype
    wide = 16 // inputs.value.element_size()
    pack = wide if inputs.value.shape[3] % wide == 0 else 1
    grad_out = torch.randn(*inputs.xy.shape[:2], inputs.value[0, 0].numel()).to(dtype)
    out, grads, vector_additions = run(device_code, inputs, grad_out, pack, deterministic)
    assert_close(out, inputs.doubled().run_twin(), TOLERANCE[dtype])
    expected = gradients(inputs.doubled(), Inputs.run_twin, grad_out.double())
    assert set(grads) == set(expected)
    for name, grad in grads.items():
        assert_close(grad, expected[name], max(TOLERANCE[dtype if name == "value" else grad.dtype], 1e-11))
    assert (vector_additions > 0) == (pack >= 4 and not deterministic)


def test_integer_sums_are_bitwise_the_same_in_any_order(device_code):
    inputs = make("boxes", torch.float32, batch=1, channels=32, points=4, levels=LEVELS[1:])
    grad_out = torch.randn(1, 7, 64) * 1e-20  # the unit follows the size of the gradients
    first, second = (run(device_code, inputs, grad_out, 4, True)[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["value"].abs().max() > 0


def test_a_gradient_that_is_not_finite_is_seen_in_integer_sums(device_code):
    inputs = make("points", torch.float32, batch=1, channels=32, points=4, levels=LEVELS[1:])
    grad_out = torch.randn(1, 7, 64)
    grad_out[0, 3, 5] = torch.inf
    assert run(device_code, inputs, grad_out, 4, True)[1]["value"].isnan().all()


def test_a_weight_that_is_not_finite_matters_only_where_its_point_counts(device_code):
    inputs = make("locations", torch.float32, batch=1, channels=32, points=4, levels=LEVELS[1:])
    grad_out = torch.randn(1, 7, 64)
    inputs.xy[:, :, :, 0, 1] = 2  # outside of every map
    inputs.scores[:, :, :, 0, 1] = torch.nan
    inputs.scores[:, 3, :, 0, 1] = torch.inf
    grad = run(device_code, inputs, grad_out, 4, True)[1]["value"]
    assert_close(grad, gradients(inputs.doubled(), Inputs.run_twin, grad_out.double())["value"], 1e-6)
    inputs.xy[:, 3, :, 0, 1] = 0.5
    assert run(device_code, inputs, grad_out, 4, True)[1]["value"].isnan().all()


def test_a_logit_that_is_nan_is_seen_in_integer_sums(device_code):
    inputs = make("points", torch.float32, batch=1, channels=32, points=4, levels=LEVELS[1:])
    inputs.scores[0, 2, 1, 0] = torch.nan
    inputs.xy[0, 2] = 0
    assert run(device_code, inputs, torch.randn(1, 7, 64), 4, True)[1]["value"].isnan().all()
