# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Neighbour selection and difference against loops written by the released code's rules."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paq_detr import ops
from paq_detr.ops import _extension

needs_native = pytest.mark.skipif(
    not _extension.library().loaded, reason=f"no native operators: {_extension.library().reason}"
)


def crowd(images=2, queries=40, dtype=torch.float32, seed=0, device="cpu"):
    """Overlapping boxes and scores, some of them equal."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(images, queries, 2, generator=generator, dtype=torch.float64) * 0.4 + 0.3
    size = torch.rand(images, queries, 2, generator=generator, dtype=torch.float64) * 0.1 + 0.25
    scores = (torch.rand(images, queries, generator=generator, dtype=torch.float64) * 20).round() / 20
    return torch.cat([center, size], -1).to(device, dtype), scores.to(device, dtype)


def layers(p_width=6, width=4, dtype=torch.float64, seed=1, device="cpu"):
    """c3, W4 and c4."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (p_width,), (width, p_width), (width,)
    return tuple(torch.randn(*s, generator=generator, dtype=torch.float64).to(device, dtype) for s in shapes)


def codes(images=2, queries=40, width=6, dtype=torch.float64, seed=2, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, queries, width, generator=generator, dtype=torch.float64).to(device, dtype)


def iou_of(a, b) -> float:
    ax0, ay0, ax1, ay1 = a[0] - a[2] / 2, a[1] - a[3] / 2, a[0] + a[2] / 2, a[1] + a[3] / 2
    bx0, by0, bx1, by1 = b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2
    inter = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    return inter / (a[2] * a[3] + b[2] * b[3] - inter)


def neighbors_by_loops(boxes, scores, k, iou_threshold=0.4, low_score=0.1) -> list[list[list[int]]]:
    result = []
    for image_boxes, s in zip(boxes.double().tolist(), scores.tolist(), strict=True):
        rows = []
        for i, box in enumerate(image_boxes):
            overlaps = {
                j: iou_of(box, other) for j, other in enumerate(image_boxes) if s[i] < s[j] and s[j] > low_score
            }
            real = [j for j in overlaps if overlaps[j] >= iou_threshold]
            rows.append(sorted(real, key=lambda j, o=overlaps: (-o[j], j))[:k])
        result.append(rows)
    return result


def as_lists(index: Tensor, count: Tensor) -> list[list[list[int]]]:
    pairs = zip(index.tolist(), count.tolist(), strict=True)
    return [[row[:n] for row, n in zip(rows, counts, strict=True)] for rows, counts in pairs]


def dense_form(e, w3, c3, w4, c4, boxes, scores, k=10, iou_threshold=0.4, low_score=0.1):
    """The published form: every pair's code difference, all k slots through the layers, masked slots become zero."""
    x0, x1 = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    inter = (torch.minimum(x1[:, :, None], x1[:, None]) - torch.maximum(x0[:, :, None], x0[:, None])).clamp(min=0)
    inter, area = inter.prod(-1), boxes[..., 2:].prod(-1)
    iou = inter / (area[:, :, None] + area[:, None] - inter)
    higher = (scores[:, :, None] < scores[:, None]) & (scores[:, None] > low_score)
    overlap, slot = (iou * higher).sort(dim=-1, descending=True, stable=True)
    overlap, slot = overlap[..., :k], slot[..., :k]
    difference = e[:, :, None] - e[:, None]  # (B, N, N, C)
    difference = difference.gather(2, slot[..., None].expand(-1, -1, -1, e.shape[-1]))
    code = F.linear(F.relu(F.linear(difference, w3, c3)), w4, c4)
    return (code * (overlap >= iou_threshold)[..., None]).max(2).values


# ----------------------------------------------------------------------------------------------------------------------
# Selection.


@pytest.mark.parametrize("queries, k", [(40, 10), (40, 2), (150, 10), (3, 10), (1, 10)])
def test_neighbors_equal_the_loops(backend, device, queries, k):
    boxes, scores = crowd(queries=queries, dtype=torch.float64)
    index, count = ops.neighbor_select(boxes.to(device), scores.to(device), k=k)
    assert index.dtype == count.dtype == torch.int32 and index.shape == (2, queries, k)
    assert as_lists(index, count) == neighbors_by_loops(boxes, scores, k)
    free = torch.arange(k) >= count.cpu()[..., None]
    assert (index.cpu()[free] == -1).all() and (index.cpu()[~free] >= 0).all()


@needs_native
@pytest.mark.parametrize("queries, k", [(333, 10), (64, 40)])
def test_native_neighbors_equal_the_twin_in_fp32(device, queries, k):
    boxes, scores = crowd(queries=queries, device=device)
    boxes[:, 1::2] = boxes[:, ::2][:, : queries // 2]  # equal overlaps
    native = ops.neighbor_select(boxes, scores, k=k)
    twin = ops.neighbor_select_torch(boxes, scores, k, 0.4, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(native, twin, strict=True))


def five_queries(device="cpu"):
    """IoU01 = IoU12 = 0.6, IoU02 = 1/3, and q3 and q4 have q0's box."""
    xyxy = torch.tensor([[0, 0, 0.4, 0.4], [0.1, 0, 0.5, 0.4], [0.2, 0, 0.6, 0.4], [0, 0, 0.4, 0.4], [0, 0, 0.4, 0.4]])
    boxes = torch.cat([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], -1)
    return boxes[None].to(device), torch.tensor([[0.9, 0.6, 0.3, 0.08, 0.9]], device=device)


def test_neighbors_by_hand(backend, device):
    index, count = ops.neighbor_select(*five_queries(device), k=4)
    assert as_lists(index, count) == [[[], [0, 4], [1], [0, 4, 1], []]]


def test_thresholds_by_hand(backend, device):
    boxes, scores = five_queries(device)
    index, count = ops.neighbor_select(boxes, scores, iou_threshold=0.599)
    assert as_lists(index, count)[0][2] == [1]
    index, count = ops.neighbor_select(boxes, scores, iou_threshold=0.601)
    assert as_lists(index, count) == [[[], [], [], [0, 4], []]]
    index, count = ops.neighbor_select(boxes, scores, low_score=0.599)
    assert as_lists(index, count)[0][2] == [1]
    index, count = ops.neighbor_select(boxes, scores, low_score=0.601)
    assert as_lists(index, count) == [[[], [0, 4], [], [0, 4], []]]


def test_selection_is_equivariant_to_the_order_of_queries(backend):
    boxes, scores = crowd()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    before = as_lists(*ops.neighbor_select(boxes, scores))
    after = as_lists(*ops.neighbor_select(boxes[:, order], scores[:, order]))
    for b in range(2):
        renamed = [sorted(int(order[j]) for j in row) for row in after[b]]
        assert renamed == [sorted(before[b][i]) for i in order.tolist()]


def test_scores_act_only_through_their_order(backend):
    boxes, scores = crowd()
    scores = scores + 0.2
    for a, b in zip(ops.neighbor_select(boxes, scores), ops.neighbor_select(boxes, scores**3 + 0.2), strict=True):
        assert torch.equal(a, b)


def test_invalid_queries_neither_have_nor_are_neighbors(backend, device):
    boxes, scores = crowd(device=device)
    valid = torch.ones_like(scores, dtype=torch.bool)
    valid[0, ::3] = False
    index, count = ops.neighbor_select(boxes, scores, valid=valid)
    assert (count[~valid] == 0).all()
    kept = ops.neighbor_select(boxes[:1, valid[0]], scores[:1, valid[0]])
    old = valid[0].nonzero()[:, 0].tolist()
    expected = [[old[j] for j in row] for row in as_lists(*kept)[0]]
    assert [as_lists(index, count)[0][i] for i in old] == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_boxes_and_scores_are_alone(backend, device, value):
    boxes, scores = crowd(device=device)
    boxes[0, 4, 2] = value
    scores[0, 9] = math.nan
    index, count = ops.neighbor_select(boxes, scores)
    assert (count[0, [4, 9]] == 0).all()
    assert not ((index[0] == 4) | (index[0] == 9)).any()


def test_no_queries_have_no_neighbors(backend, device):
    index, count = ops.neighbor_select(torch.zeros(2, 0, 4, device=device), torch.zeros(2, 0, device=device))
    assert index.shape == (2, 0, 10) and count.shape == (2, 0)


# ----------------------------------------------------------------------------------------------------------------------
# Aggregation.


def by_loops(p, index, count, hidden_bias, weight, bias, zero_fill) -> Tensor:
    out = p.new_zeros(*p.shape[:2], len(bias))
    for b in range(p.shape[0]):
        for i in range(p.shape[1]):
            real = index[b, i, : int(count[b, i])].tolist()
            f = [weight @ (p[b, i] - p[b, j] + hidden_bias).clamp(min=0) + bias for j in real]
            if zero_fill and len(real) < index.shape[2]:
                f.append(torch.zeros_like(bias))
            if f:
                out[b, i] = torch.stack(f).amax(0)
    return out


@pytest.mark.parametrize("zero_fill", [True, False])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_aggregation_equals_the_loops(backend, device, zero_fill, k):
    boxes, scores = crowd(dtype=torch.float64)
    index, count = ops.neighbor_select(boxes, scores, k=k)
    assert {0, k} <= set(count.flatten().tolist())  # empty and full rows, and for k > 1 partly filled ones
    arguments = codes(), index, count, *layers()
    actual = ops.neighbor_difference(*(t.to(device) for t in arguments), zero_fill)
    torch.testing.assert_close(actual.cpu(), by_loops(*arguments, zero_fill), atol=1e-12, rtol=0)


def test_aggregation_equals_the_published_dense_form(backend, device):
    """forward to 1e-12, gradients to 1e-11."""
    boxes, scores = crowd(dtype=torch.float64, device=device)
    e, (c3, w4, c4) = codes(device=device), layers(device=device)
    w3 = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(device)
    leaves = [t.clone().requires_grad_() for t in (e, w3, c3, w4, c4)]
    dense = dense_form(*leaves, boxes, scores)
    index, count = ops.neighbor_select(boxes, scores)
    compact = ops.neighbor_difference(F.linear(leaves[0], leaves[1]), index, count, *leaves[2:])
    torch.testing.assert_close(compact, dense, atol=1e-12, rtol=0)
    grad = torch.randn(dense.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).to(device)
    pairs = zip(
        torch.autograd.grad(compact, leaves, grad), torch.autograd.grad(dense, leaves, grad), "e w3 c3 w4 c4".split(),
        strict=True,
    )  # fmt: skip
    for ours, theirs, name in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0, msg=lambda m, n=name: f"grad_{n}: {m}")


def test_wide_layers_in_fp32(backend, device):
    boxes, scores = crowd(queries=90)
    index, count = ops.neighbor_select(boxes, scores)
    wide = codes(queries=90, width=100), index, count, *layers(100, 130)
    expected = by_loops(*wide, True)
    single = [t.to(device, torch.float32) if t.is_floating_point() else t.to(device) for t in wide]
    torch.testing.assert_close(ops.neighbor_difference(*single).cpu().double(), expected, atol=1e-4, rtol=1e-4)


def test_without_neighbors_the_result_is_zero(backend, device):
    boxes, _ = crowd(device=device)
    index, count = ops.neighbor_select(boxes, torch.full((2, 40), 0.5, device=device))  # ties exchange nothing
    assert (count == 0).all()
    for zero_fill in (True, False):
        arguments = codes(device=device), index, count, *layers(device=device)
        assert (ops.neighbor_difference(*arguments, zero_fill) == 0).all()


def test_free_slots_keep_the_maximum_at_zero_and_a_full_row_does_not(backend, device):
    """every f is negative; K - 1 real slots give 0, K real slots the largest f."""
    p, (c3, w4, _) = codes(1, 4, device=device), layers(device=device)
    c4 = torch.full((4,), -100.0, dtype=torch.float64, device=device)
    index = torch.tensor([[[1, 2, -1], [0, 2, 3], [-1, -1, -1], [0, -1, -1]]], dtype=torch.int32, device=device)
    count = torch.tensor([[2, 3, 0, 1]], dtype=torch.int32, device=device)
    filled = ops.neighbor_difference(p, index, count, c3, w4, c4)
    assert (filled[0, [0, 2, 3]] == 0).all() and (filled[0, 1] < 0).all()
    real_only = ops.neighbor_difference(p, index, count, c3, w4, c4, zero_fill=False)
    assert (real_only[0, [0, 1, 3]] < 0).all() and (real_only[0, 2] == 0).all()


def test_lower_scored_queries_never_change_higher_scored_ones(backend):
    """the Jacobian is lower triangular in the order of scores."""
    boxes, _ = crowd(1, 12, torch.float64)
    scores = torch.linspace(0.9, 0.2, 12, dtype=torch.float64)[None]
    index, count = ops.neighbor_select(boxes, scores)
    parameters = layers()
    jacobian = torch.autograd.functional.jacobian(
        lambda p: ops.neighbor_difference(p, index, count, *parameters).sum(-1)[0], codes(1, 12)
    )[:, 0].abs().sum(-1)  # fmt: skip
    assert jacobian.triu(1).max() == 0 and jacobian.tril(-1).max() > 0
    assert jacobian[0].max() == 0  # the most confident query depends on nobody, not even on itself


def test_twins_separate_only_by_score(backend):
    """Up to W5 and the residual, which are not part of the operator."""
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.505, 0.5, 0.2, 0.2]]], dtype=torch.float64)
    c3, w4, c4 = layers()
    p = codes(1, 1).expand(1, 2, 6)
    index, count = ops.neighbor_select(boxes, torch.tensor([[0.8, 0.7]], dtype=torch.float64))
    first, second = ops.neighbor_difference(p, index, count, c3, w4, c4)[0]
    assert (first == 0).all()
    torch.testing.assert_close(second, (w4 @ c3.clamp(min=0) + c4).clamp(min=0))
    index, count = ops.neighbor_select(boxes, torch.tensor([[0.7, 0.7]], dtype=torch.float64))
    assert (ops.neighbor_difference(p, index, count, c3, w4, c4) == 0).all()


def test_nan_codes_reach_the_queries_that_see_them_and_no_others(backend, device):
    boxes, scores = crowd(device=device)
    index, count = ops.neighbor_select(boxes, scores)
    p, parameters = codes(device=device), layers(device=device)
    clean = ops.neighbor_difference(p, index, count, *parameters)
    p[0, 7] = math.nan
    sees = (index[0] == 7).any(-1)
    sees[7] = count[0, 7] > 0
    broken = ops.neighbor_difference(p, index, count, *parameters)
    assert sees.any() and broken[0, sees].isnan().all()
    assert torch.equal(broken[0, ~sees], clean[0, ~sees]) and torch.equal(broken[1], clean[1])


def test_non_contiguous_inputs(backend, device):
    boxes, scores = crowd(dtype=torch.float64, device=device)
    index, count = ops.neighbor_select(boxes, scores)
    p, (c3, w4, c4) = codes(device=device), layers(device=device)
    expected = ops.neighbor_difference(p, index, count, c3, w4, c4)
    strided = p.transpose(0, 2).contiguous().transpose(0, 2)
    w4_strided = w4.t().contiguous().t()
    index_strided = index.transpose(1, 2).contiguous().transpose(1, 2)
    actual = ops.neighbor_difference(strided, index_strided, count.t().contiguous().t(), c3, w4_strided, c4)
    torch.testing.assert_close(actual, expected, atol=1e-14, rtol=0)
    boxes_strided = boxes.flip(-1).contiguous().flip(-1).transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(ops.neighbor_select(boxes_strided, scores.t().contiguous().t())[0], index)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_codes_are_computed_in_fp32(backend, device, dtype):
    boxes, scores = crowd(device=device)
    index, count = ops.neighbor_select(boxes.to(dtype), scores.to(dtype))
    p, parameters = codes(dtype=dtype, device=device), layers(dtype=torch.float32, device=device)
    short = ops.neighbor_difference(p, index, count, *parameters)
    wide = ops.neighbor_difference(p.float(), index, count, *parameters)
    assert short.dtype == dtype and torch.equal(short, wide.to(dtype))


def test_autocast_does_not_round_the_codes(backend):
    boxes, scores = crowd()
    index, count = ops.neighbor_select(boxes, scores)
    p, parameters = codes(dtype=torch.float32).requires_grad_(), layers(dtype=torch.float32)
    expected = ops.neighbor_difference(p, index, count, *parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = ops.neighbor_difference(p, index, count, *parameters)
    assert actual.dtype == torch.float32 and torch.equal(actual, expected)
    grads = [torch.autograd.grad(out.square().sum(), p)[0] for out in (actual, expected)]
    assert torch.equal(*grads)


# ----------------------------------------------------------------------------------------------------------------------
# Gradients and registration.


@pytest.mark.parametrize("zero_fill", [True, False])
def test_gradients(backend, device, zero_fill):
    boxes, scores = crowd(2, 9, torch.float64, device=device)
    index, count = ops.neighbor_select(boxes, scores, k=3)
    assert {0, 3} <= set(count.flatten().tolist())
    leaves = [t.requires_grad_() for t in (codes(2, 9, device=device), *layers(device=device))]
    function = lambda p, *rest: ops.neighbor_difference(p, index, count, *rest, zero_fill)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves)


def test_among_equal_values_the_first_slot_receives_the_gradient(backend, device):
    p = torch.zeros(1, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    index = torch.tensor([[[2, 1], [-1, -1], [-1, -1]]], dtype=torch.int32, device=device)
    count = torch.tensor([[2, 0, 0]], dtype=torch.int32, device=device)
    one, eye = torch.ones(2, dtype=torch.float64, device=device), torch.eye(2, dtype=torch.float64, device=device)
    ops.neighbor_difference(p, index, count, one, eye, 0 * one).sum().backward()
    assert p.grad[0].tolist() == [[1, 1], [0, 0], [-1, -1]]
    # f = 0 against the zero of a free slot: the real slot comes first.
    p.grad, count[0, 0] = None, 1
    ops.neighbor_difference(p, index, count, one, eye, -one).sum().backward()
    assert p.grad[0].tolist() == [[1, 1], [0, 0], [-1, -1]]


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_are_registered_completely(device, dtype):
    native, check = torch.ops.paq_detr, torch.library.opcheck
    boxes, scores = crowd(2, 12, dtype, device=device)
    check(native.neighbor_select, (boxes, scores, 4, 0.4, 0.1))
    index, count = ops.neighbor_select(boxes, scores, k=4)
    p, c3, w4, c4 = codes(2, 12, dtype=dtype, device=device), *layers(dtype=dtype, device=device)
    leaves = [t.clone().requires_grad_() for t in (p, c3, w4, c4)]
    check(native.neighbor_difference, (leaves[0], index, count, *leaves[1:], True))
    out, slot = native.neighbor_difference(p, index, count, c3, w4, c4, True)
    check(native.neighbor_difference_backward, (out, slot, p, index, count, c3, w4))


@needs_native
def test_native_results_do_not_depend_on_the_number_of_threads():
    boxes, scores = crowd(queries=300)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            index, count = ops.neighbor_select(boxes, scores)
            p = codes(queries=300).requires_grad_()
            out = ops.neighbor_difference(p, index, count, *layers())
            results.append((index, count, out.detach(), *torch.autograd.grad(out.square().sum(), p)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Generator(torch.nn.Module):
    def forward(self, p, boxes, scores, c3, w4, c4):
        index, count = ops.neighbor_select(boxes, scores, k=5)
        return ops.neighbor_difference(p, index, count, c3, w4, c4)


def inputs_of(queries):
    return codes(queries=queries, dtype=torch.float32), *crowd(queries=queries), *layers(dtype=torch.float32)


def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()
    compiled = torch.compile(Generator(), fullgraph=True, backend="aot_eager")
    for queries in (40, 25):
        leaves = [t.requires_grad_(i != 2) for i, t in enumerate(inputs_of(queries))]
        out, expected = compiled(*leaves), Generator()(*leaves)
        torch.testing.assert_close(out, expected)
        parameters = [leaves[0], *leaves[3:]]
        for a, b in zip(
            torch.autograd.grad(out.square().sum(), parameters),
            torch.autograd.grad(expected.square().sum(), parameters),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_exports(backend):
    exported = torch.export.export(Generator(), inputs_of(40))
    torch.testing.assert_close(exported.module()(*inputs_of(40)), Generator()(*inputs_of(40)))


# ----------------------------------------------------------------------------------------------------------------------
# Bad input.


@pytest.mark.parametrize(
    "position, change, error, message",
    [
        (0, lambda t: t[0], ValueError, r"p has shape \(40, 6\), expected \(B, N, C\)"),
        (0, lambda t: t.long(), TypeError, "p is torch.int64, expected a floating point type"),
        (1, lambda t: t[:, :9], ValueError, r"index has shape \(2, 9, 10\), expected .*\(2, 40\)"),
        (1, lambda t: t.long(), TypeError, "index is torch.int64, expected torch.int32"),
        (1, lambda t: t - 100, ValueError, "index has the value -.*, but there are 40 queries"),
        (1, lambda t: t + 40, ValueError, "index has the value .*, but there are 40 queries"),
        (2, lambda t: t[:1], ValueError, r"count has shape \(1, 40\), expected .*\(2, 40\)"),
        (2, lambda t: t + 10, ValueError, "count has the value .*, but there are 10 slots"),
        (3, lambda t: t[:5], ValueError, r"hidden_bias has shape \(5,\), expected .* C = 6 of p"),
        (4, lambda t: t[:, :5], ValueError, r"weight has shape \(4, 5\), expected .* C = 6 of p"),
        (5, lambda t: t[:3], ValueError, r"bias has shape \(3,\), expected .* D = 4 of weight"),
        (4, lambda t: t.to("meta"), ValueError, "weight is on meta, p on cpu"),
    ],
)
def test_bad_input_names_the_argument_and_both_sizes(backend, position, change, error, message):
    index, count = ops.neighbor_select(*crowd())
    arguments = [codes(), index, count, *layers()]
    arguments[position] = change(arguments[position])
    with pytest.raises(error, match=message):
        ops.neighbor_difference(*arguments)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"boxes": torch.zeros(40, 4)}, ValueError, r"boxes has shape \(40, 4\), expected \(B, N, 4\)"),
        ({"scores": torch.zeros(2, 39)}, ValueError, r"scores has shape \(2, 39\), expected .*\(2, 40\)"),
        (
            {"scores": torch.zeros(2, 40, dtype=torch.int32)},
            TypeError,
            "scores is torch.int32, expected a floating point type",
        ),
        (
            {"valid": torch.ones(2, 39, dtype=torch.bool)},
            ValueError,
            r"valid has shape \(2, 39\), expected .*\(2, 40\)",
        ),
        ({"valid": torch.ones(2, 40)}, TypeError, "valid is torch.float32, expected torch.bool"),
        ({"scores": torch.zeros(2, 40, device="meta")}, ValueError, "scores is on meta, boxes on cpu"),
        ({"scores": None}, TypeError, "scores is NoneType, expected a Tensor"),
        ({"k": 0}, ValueError, "k is 0, expected 1 to 32767"),
        ({"k": 40000}, ValueError, "k is 40000, expected 1 to 32767"),
        ({"iou_threshold": 0.0}, ValueError, "iou_threshold is 0.0, expected above 0 and at most 1"),
    ],
)
def test_bad_candidates_are_named(backend, change, error, message):
    boxes, scores = crowd()
    with pytest.raises(error, match=message):
        ops.neighbor_select(**{"boxes": boxes, "scores": scores, **change})


@needs_native
def test_the_kernel_checks_indices_where_python_cannot():
    index, count = ops.neighbor_select(*crowd())
    with pytest.raises(RuntimeError, match="index has the value .*, but there are 40 queries"):
        torch.ops.paq_detr.neighbor_difference(codes(), index + 40, count, *layers(), True)
    with pytest.raises(RuntimeError, match="count has the value .*, but there are 10 slots"):
        torch.ops.paq_detr.neighbor_difference(codes(), index, count + 20, *layers(), True)
