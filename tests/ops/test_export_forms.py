# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What exported programs hold in place of the twins gives what the twins give."""

import pytest
import torch

from paq_detr import ops
from paq_detr.ops.export_forms import FORMS, fused_by_grid_sample, neighbor_select_by_topk

SHAPES = ((6, 9), (3, 5), (2, 3))


def attention_inputs(coordinates, padded, seed=0):
    g = torch.Generator().manual_seed(seed)
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, tokens, 2, 4, generator=g)
    reference = torch.rand(2, 7, coordinates, generator=g)
    offsets = torch.randn(2, 7, 2, len(SHAPES), 3, 2, generator=g) * 4  # also beyond the maps
    logits = torch.randn(2, 7, 2, len(SHAPES) * 3, generator=g)
    ratios = torch.rand(2, len(SHAPES), 2, generator=g) * 0.5 + 0.5 if padded else None
    mask = torch.rand(2, tokens, generator=g) < 0.3 if padded else None
    return value, SHAPES, reference, offsets, logits, ratios, mask


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_attention_by_grid_sample(coordinates, padded):
    inputs = attention_inputs(coordinates, padded)
    torch.testing.assert_close(fused_by_grid_sample(*inputs), ops.fused_ms_deform_attn_torch(*inputs))


@pytest.mark.parametrize("k", [3, 40])
def test_neighbours_by_topk(k):
    g = torch.Generator().manual_seed(1)
    boxes, scores = torch.rand(2, 20, 4, generator=g) * 0.3 + 0.3, torch.rand(2, 20, generator=g)
    index, count = neighbor_select_by_topk(boxes, scores, k, 0.3, 0.1)
    expected_index, expected_count = ops.neighbor_select_torch(boxes, scores, k, 0.3, 0.1)
    assert count.sum() > 20
    torch.testing.assert_close((index, count), (expected_index, expected_count))


def test_force_torch_runs_the_given_form_within_its_block_alone():
    inputs = attention_inputs(4, False)
    calls = []

    def form(*arguments):
        calls.append(len(arguments))
        return ops.fused_ms_deform_attn_torch(*arguments)

    expected = ops.fused_ms_deform_attn(*inputs)
    with ops.force_torch({"fused_ms_deform_attn": form}):
        torch.testing.assert_close(ops.fused_ms_deform_attn(*inputs), expected)
        with ops.force_torch():
            ops.fused_ms_deform_attn(*inputs)
    ops.fused_ms_deform_attn(*inputs)
    assert calls == [7]


def test_force_torch_keeps_native_operators_out():
    inputs = attention_inputs(2, False)
    with ops.force_torch(FORMS["gridsample"]):
        graph = torch.fx.experimental.proxy_tensor.make_fx(lambda v: ops.fused_ms_deform_attn(v, *inputs[1:]))(
            inputs[0]
        )
    assert not any("paq_detr" in str(node.target) for node in graph.graph.nodes)


def test_a_form_for_an_unknown_operator_is_refused():
    with pytest.raises(ValueError, match="'attention' is none of"), ops.force_torch({"attention": print}):
        pass
