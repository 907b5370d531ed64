# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Pair quality against loops written from the equations (PaQ-DETR Eq. 6 and 7)."""

import math

import pytest
import torch
from torch import Tensor

from paq_detr import ops
from paq_detr.layers import paired_giou, paired_iou
from paq_detr.ops import _extension

needs_native = pytest.mark.skipif(
    not _extension.library().loaded, reason=f"no native operators: {_extension.library().reason}"
)
QUALITY = {"score_weight": -0.4, "iou_weight": 1.0}
COUNT = {**QUALITY, "k": 4, "min_count": 1}


def scene(layers=2, queries=7, classes=3, objects=(3, 0, 2), dtype=torch.float32, seed=0, device="cpu"):
    """Logits, boxes, labels, objects and their images; image 1 has no object unless told otherwise."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return (torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) + low).to(dtype)

    images, total = len(objects), sum(objects)
    boxes = torch.cat(
        [uniform(0.3, 0.7, layers, images, queries, 2), uniform(0.1, 0.5, layers, images, queries, 2)], -1
    )
    gt_boxes = torch.cat([uniform(0.3, 0.7, total, 2), uniform(0.1, 0.5, total, 2)], -1)
    logits = uniform(-4, 4, layers, images, queries, classes)
    labels = torch.randint(0, classes, (total,), generator=generator)
    image = torch.arange(images).repeat_interleave(torch.tensor(objects))
    return tuple(tensor.to(device) for tensor in (logits, boxes, labels, gt_boxes, image))


def overlap_of(a, b) -> tuple[float, float]:
    """IoU and GIoU of two cxcywh boxes, from the definition."""
    ax0, ay0, ax1, ay1 = a[0] - a[2] / 2, a[1] - a[3] / 2, a[0] + a[2] / 2, a[1] + a[3] / 2
    bx0, by0, bx1, by1 = b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2
    inter = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = a[2] * a[3] + b[2] * b[3] - inter
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return inter / union, inter / union - (hull - union) / hull


def by_loops(pair, logits, boxes, labels, gt_boxes, image) -> Tensor:
    """(L, M, N) of pair(logits of the query, box, label, object) in plain Python floats."""
    out = torch.empty(len(boxes), len(gt_boxes), boxes.shape[2], dtype=torch.float64)
    for layer in range(len(boxes)):
        for m, b in enumerate(image.tolist()):
            for n in range(boxes.shape[2]):
                query = logits[layer, b, n].tolist(), boxes[layer, b, n].tolist()
                out[layer, m, n] = pair(*query, int(labels[m]), gt_boxes[m].tolist())
    return out


def quality_of(logits, box, label, gt_box):
    return overlap_of(gt_box, box)[0] - 0.4 / (1 + math.exp(-logits[label]))


def cost_of(logits, box, label, gt_box):
    p = 1 / (1 + math.exp(-logits[label]))
    focal = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
    l1 = sum(abs(x - y) for x, y in zip(box, gt_box, strict=True))
    return 2 * focal + 5 * l1 - 2 * overlap_of(gt_box, box)[1]


def close(actual: Tensor, expected: Tensor):
    tolerance = 1e-12 if actual.dtype == torch.float64 else 2e-5
    torch.testing.assert_close(actual.cpu().double(), expected.double(), atol=tolerance, rtol=tolerance)


# ----------------------------------------------------------------------------------------------------------------------
# Values.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_equal_the_loops(backend, device, dtype):
    inputs = scene(dtype=dtype)
    logits, boxes, labels, gt_boxes, image = inputs
    moved = [tensor.to(device) for tensor in inputs]
    iou, giou = ops.pair_iou(moved[1], moved[3], moved[4])
    close(iou, by_loops(lambda _, box, __, gt: overlap_of(gt, box)[0], *inputs))
    close(giou, by_loops(lambda _, box, __, gt: overlap_of(gt, box)[1], *inputs))
    close(ops.pair_quality(*moved, **QUALITY), by_loops(quality_of, *inputs))
    close(ops.match_cost(*moved), by_loops(cost_of, *inputs))


@pytest.mark.parametrize("seed", range(5))
def test_topk_equals_sorting_each_row_by_quality_then_index(backend, device, seed):
    inputs = scene(queries=23, seed=seed)
    quality = ops.pair_quality(*inputs, **QUALITY)
    values, indices, count = ops.quality_topk(*(tensor.to(device) for tensor in inputs), **COUNT)
    for layer in range(2):
        for m in range(len(inputs[3])):
            row = quality[layer, m].tolist()
            best = sorted(range(len(row)), key=lambda n: (-row[n], n))[:4]
            assert indices[layer, m].tolist() == best
            assert count[layer, m] == max(math.ceil(sum(row[n] for n in best) - 1e-6), 1)
            close(values[layer, m], torch.tensor([row[n] for n in best]))


@needs_native
@pytest.mark.parametrize("queries", [1, 5, 64, 333])
def test_native_overlaps_equal_the_twin_bit_for_bit(device, queries):
    _, boxes, _, gt_boxes, image = scene(layers=3, queries=queries, objects=(4, 1), device=device)
    gt_boxes[0] = boxes[0, 0, 0]
    for native, twin in zip(
        ops.pair_iou(boxes, gt_boxes, image), ops.pair_iou_torch(boxes, gt_boxes, image), strict=True
    ):
        assert torch.equal(native, twin)


@needs_native
def test_native_results_do_not_depend_on_the_number_of_threads():
    inputs = scene(layers=6, queries=700, objects=(20, 30))
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 3):
            torch.set_num_threads(n)
            results.append((ops.match_cost(*inputs), *ops.quality_topk(*inputs, **COUNT)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_focal_exponent_other_than_two(backend):
    inputs = scene(dtype=torch.float64)

    def cost(logits, box, label, gt_box):
        p = 1 / (1 + math.exp(-logits[label]))
        return 0.3 * (1 - p) ** 1.5 * -math.log(p) - 0.7 * p**1.5 * -math.log(1 - p)

    actual = ops.match_cost(*inputs, class_weight=1, l1_weight=0, giou_weight=0, alpha=0.3, gamma=1.5)
    close(actual, by_loops(cost, *inputs))


def test_mix_of_mr_detr_is_a_choice_of_weights(backend):
    inputs = scene(dtype=torch.float64)
    quality = ops.pair_quality(*inputs, score_weight=0.3, iou_weight=0.7)
    iou = by_loops(lambda _, box, __, gt: overlap_of(gt, box)[0], *inputs)
    score = by_loops(lambda logits, _, label, __: 1 / (1 + math.exp(-logits[label])), *inputs)
    close(quality, 0.3 * score + 0.7 * iou)


# ----------------------------------------------------------------------------------------------------------------------
# Cases worked out by hand.


def chosen_qualities(qualities, device="cpu"):
    """A scene of one object in which query n has IoU qualities[n] (and a confidence of zero)."""
    # A box inside the object, q times as wide, has IoU q; an empty box with full confidence has quality -0.4.
    boxes = torch.tensor([[0.5, 0.5, 0.4 * max(q, 0.0), 0.4] for q in qualities])
    logits = torch.tensor([[-60.0 if q >= 0 else 60.0] for q in qualities])
    return (
        logits[None, None].to(device),
        boxes[None, None].to(device),
        torch.zeros(1, dtype=torch.long, device=device),
        torch.tensor([[0.5, 0.5, 0.4, 0.4]], device=device),
        torch.zeros(1, dtype=torch.long, device=device),
    )


@pytest.mark.parametrize(
    "qualities, min_count, expected",
    [
        ((0.66, 0.66, 0.60, 0.50, 0.1), 1, 3),  # 2.42 is rounded up
        ((-0.4, -0.4, -0.4, -0.4, -0.4), 1, 1),  # all negative: the floor l acts
        ((-0.4, -0.4, -0.4, -0.4, -0.4), 2, 2),
        ((1.0, 1.0, 1.0, 1.0, 0.0), 1, 4),  # k perfect boxes without confidence
        ((1.0, 1.0, 0.0, 0.0, 0.0), 1, 2),  # a sum of exactly 2 is not 3
    ],
)
def test_positive_count_by_hand(backend, device, qualities, min_count, expected):
    _, _, count = ops.quality_topk(*chosen_qualities(qualities, device), **QUALITY, k=4, min_count=min_count)
    assert count.tolist() == [[expected]]


def test_equal_qualities_are_ordered_by_query(backend, device):
    values, indices, _ = ops.quality_topk(*chosen_qualities([0.5, 0.7, 0.5, 0.7, 0.5, 0.5], device), **COUNT)
    assert indices.tolist() == [[[1, 3, 0, 2]]]
    assert values[0, 0, 0] == values[0, 0, 1] and values[0, 0, 2] == values[0, 0, 3]


@pytest.mark.parametrize("queries, k", [(15, 3), (16, 16), (70, 1), (300, 16), (300, 17)])
def test_topk_of_long_rows_with_many_equal_qualities(backend, device, queries, k):
    levels = torch.randint(0, 8, (queries,), generator=torch.Generator().manual_seed(k)).tolist()
    scene_of_one = chosen_qualities([level / 8 for level in levels], device)
    _, indices, _ = ops.quality_topk(*scene_of_one, **QUALITY, k=k, min_count=1)
    assert indices[0, 0].tolist() == sorted(range(queries), key=lambda n: (-levels[n], n))[:k]


def test_a_box_has_iou_exactly_one_with_itself_and_no_iou_exceeds_one(backend, device):
    _, boxes, _, _, _ = scene(layers=1, queries=500, objects=(0,), device=device)
    gt_boxes = boxes[0, 0].clone()
    iou, giou = ops.pair_iou(boxes, gt_boxes, torch.zeros(500, dtype=torch.long, device=device))
    assert torch.equal(iou[0].diagonal(), torch.ones(500, device=device))
    assert torch.equal(giou[0].diagonal(), torch.ones(500, device=device))
    assert iou.max() <= 1


# ----------------------------------------------------------------------------------------------------------------------
# Edges.


@pytest.mark.parametrize("side", [1e-1, 1e-4, 1e-7, 1e-12, 1e-18])
def test_overlaps_of_small_boxes_are_those_of_the_losses(backend, device, side):
    """Far from 0, where corners in fp32 are rounded to 6e-8, of boxes that share a centre or lie half a side apart."""
    middle = torch.tensor([0.7, 0.9])
    sizes = torch.tensor([[1.0, 1.0], [0.5, 1.0], [2.0, 0.25], [3.0, 4.0]]) * side
    gt_boxes = torch.cat([middle, torch.tensor([side, side])])[None].to(device)
    apart = torch.tensor([[0.0, 0.0], [0.5, 0.25]]) * max(side, 1e-7)  # what fp32 can tell apart at all
    boxes = torch.cat([(middle + apart).repeat_interleave(4, 0), sizes.repeat(2, 1)], 1).to(device)
    found = ops.pair_iou(boxes[None, None], gt_boxes, torch.zeros(1, dtype=torch.int64, device=device))
    for got, exact in zip(found, (paired_iou, paired_giou)):
        torch.testing.assert_close(got[0, 0], exact(gt_boxes.expand(8, 4), boxes), rtol=1e-5, atol=1e-6)


def test_no_objects_give_empty_results(backend, device):
    inputs = scene(objects=(0, 0), device=device)
    assert ops.pair_iou(inputs[1], inputs[3], inputs[4])[0].shape == (2, 0, 7)
    assert ops.match_cost(*inputs).shape == (2, 0, 7)
    assert [tuple(t.shape) for t in ops.quality_topk(*inputs, **COUNT)] == [(2, 0, 4), (2, 0, 4), (2, 0)]


def test_fewer_queries_than_k(backend, device):
    inputs = scene(queries=3, device=device)
    values, indices, count = ops.quality_topk(*inputs, **QUALITY, k=10, min_count=5)
    assert values.shape == indices.shape == (2, 5, 3)
    assert (count == 3).all()  # never more positives than queries
    assert (indices.sort(-1).values.cpu() == torch.arange(3)).all()


def test_no_queries(backend, device):
    inputs = scene(queries=0, device=device)
    assert ops.match_cost(*inputs).shape == (2, 5, 0)
    values, _, count = ops.quality_topk(*inputs, **COUNT)
    assert values.shape == (2, 5, 0) and (count == 0).all()


def test_one_class(backend):
    inputs = scene(classes=1)
    close(ops.pair_quality(*inputs, **QUALITY), by_loops(quality_of, *inputs))


def test_batch_of_images_equals_the_images_one_by_one(backend, device):
    logits, boxes, labels, gt_boxes, image = scene(objects=(3, 0, 2), device=device)
    together = ops.match_cost(logits, boxes, labels, gt_boxes, image)
    for b in range(3):
        own = image == b
        alone = ops.match_cost(
            logits[:, b : b + 1], boxes[:, b : b + 1], labels[own], gt_boxes[own], torch.zeros_like(image[own])
        )
        assert torch.equal(together[:, own], alone)


def test_objects_in_any_order(backend):
    logits, boxes, labels, gt_boxes, image = scene()
    order = torch.tensor([4, 1, 0, 3, 2])
    shuffled = ops.match_cost(logits, boxes, labels[order], gt_boxes[order], image[order])
    assert torch.equal(shuffled, ops.match_cost(logits, boxes, labels, gt_boxes, image)[:, order])


def test_non_contiguous_inputs(backend, device):
    inputs = scene(device=device)
    strided = [t.repeat_interleave(2, 0)[::2] for t in inputs]
    strided[0] = inputs[0].transpose(0, 3).contiguous().transpose(0, 3)
    strided[1] = inputs[1].flip(-1).contiguous().flip(-1).transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided[1].is_contiguous()
    assert torch.equal(ops.match_cost(*strided), ops.match_cost(*inputs))
    assert torch.equal(ops.pair_iou(strided[1], *strided[3:])[1], ops.pair_iou(inputs[1], *inputs[3:])[1])


def test_degenerate_boxes_give_finite_overlaps(backend, device):
    flat = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.2, 0.0], [0.2, 0.5, 0.0, 0.3], [0.5, 0.5, -0.2, 0.3]])
    boxes = flat[None, None].to(device).requires_grad_()
    gt_boxes = torch.cat([flat, torch.tensor([[0.5, 0.5, 0.4, 0.4]])]).to(device).requires_grad_()
    iou, giou = ops.pair_iou(boxes, gt_boxes, torch.zeros(5, dtype=torch.long, device=device))
    assert (iou == 0).all()
    assert (giou >= -1).all() and (giou <= 0).all()
    assert giou[0, 0, 0] == 0  # one point twice: nothing overlaps and nothing is enclosed
    assert giou[0, 0, 1] == 0  # a point on a line encloses no area either
    (iou.sum() + giou.sum()).backward()
    assert boxes.grad.isfinite().all() and gt_boxes.grad.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_predictions_cost_much_and_rank_last(backend, device, value):
    logits, boxes, labels, gt_boxes, image = scene(queries=9, device=device)
    boxes[:, :, 2, 1] = value
    logits[:, :, 5] = math.nan
    inputs = (logits, boxes, labels, gt_boxes, image)
    cost, quality = ops.match_cost(*inputs), ops.pair_quality(*inputs, **QUALITY)
    assert (cost[..., [2, 5]] == ops.NON_FINITE_COST).all()
    assert (quality[..., 5] == ops.NON_FINITE_QUALITY).all()
    assert cost.isfinite().all() and quality.isfinite().all()
    _, indices, count = ops.quality_topk(*inputs, **COUNT)
    assert not (indices == 5).any()
    assert (count >= 1).all() and (count <= 4).all()


def test_all_predictions_nan_still_give_a_count(backend, device):
    logits, boxes, *rest = scene(device=device)
    values, indices, count = ops.quality_topk(logits * math.nan, boxes * math.nan, *rest, **COUNT)
    assert (values == ops.NON_FINITE_QUALITY).all() and (count == 1).all()
    assert indices[0, 0].tolist() == [0, 1, 2, 3]


def test_nan_boxes_give_nan_overlaps_and_leave_the_others_alone(backend, device):
    _, boxes, _, gt_boxes, image = scene(device=device)
    clean = ops.pair_iou(boxes, gt_boxes, image)
    for coordinate in range(4):
        broken = boxes.clone()
        broken[:, :, 1, coordinate] = math.nan
        for before, after in zip(clean, ops.pair_iou(broken, gt_boxes, image), strict=True):
            assert after[..., 1].isnan().all()
            assert torch.equal(after[..., 2:], before[..., 2:])


@pytest.mark.parametrize("logit", [-1e4, -200.0, -90.0, 90.0, 200.0, 1e4])
def test_extreme_logits_stay_finite_and_exact(backend, logit):
    inputs = scene(dtype=torch.float32)
    inputs[0].fill_(logit)
    weights = {"class_weight": 1, "l1_weight": 0, "giou_weight": 0}
    expected = 0.25 * max(-logit, 0) if logit < 0 else -0.75 * logit
    torch.testing.assert_close(ops.match_cost(*inputs, **weights), torch.full((2, 5, 7), expected))
    quality = ops.pair_quality(*inputs, score_weight=1, iou_weight=0)
    torch.testing.assert_close(quality, torch.full((2, 5, 7), float(logit > 0)), atol=1e-30, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_inputs_are_widened_before_the_arithmetic(backend, device, dtype):
    inputs = scene(device=device)
    short = [t.to(dtype) if t.is_floating_point() else t for t in inputs]
    wide = [t.float() if t.is_floating_point() else t for t in short]
    for function in (ops.match_cost, lambda *a: ops.pair_quality(*a, **QUALITY)):
        assert function(*short).dtype == torch.float32
        assert torch.equal(function(*short), function(*wide))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(backend, dtype):
    inputs = scene()
    boxes = inputs[1].requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        cost, (iou, _) = ops.match_cost(*inputs), ops.pair_iou(boxes, *inputs[3:])
    assert torch.equal(cost, ops.match_cost(*inputs))
    assert torch.equal(iou, ops.pair_iou(boxes, *inputs[3:])[0])
    assert iou.requires_grad and not cost.requires_grad


# ----------------------------------------------------------------------------------------------------------------------
# Gradients and registration.


def test_gradients_of_both_boxes(backend, device):
    _, boxes, _, gt_boxes, image = scene(layers=2, queries=3, dtype=torch.float64, device=device)
    inputs = (boxes.requires_grad_(), gt_boxes.requires_grad_(), image)
    assert torch.autograd.gradcheck(ops.pair_iou, inputs)
    assert torch.autograd.gradcheck(lambda *a: ops.pair_iou(*a)[1], inputs)


@needs_native
def test_native_gradients_equal_the_twin_where_edges_coincide(device):
    _, boxes, _, gt_boxes, image = scene(dtype=torch.float64, device=device)
    gt_boxes[:2] = boxes[0, 0, :2]  # identical boxes: every minimum and maximum is a tie
    gt_boxes[2] = boxes[0, 0, 2] * torch.tensor([1.0, 1.0, 0.5, 1.0], device=device)
    grads = []
    for function in (ops.pair_iou, ops.pair_iou_torch):
        leaves = boxes.clone().requires_grad_(), gt_boxes.clone().requires_grad_()
        iou, giou = function(*leaves, image)
        grads.append(torch.autograd.grad((iou**2).sum() + (3 * giou).sin().sum(), leaves))
    for native, twin in zip(*grads, strict=True):
        torch.testing.assert_close(native, twin, atol=1e-12, rtol=1e-12)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_are_registered_completely(device, dtype):
    logits, boxes, labels, gt_boxes, image = scene(dtype=dtype, device=device)
    native, check = torch.ops.paq_detr, torch.library.opcheck
    inputs = (logits, boxes, labels, gt_boxes, image)
    check(native.pair_iou, (boxes.clone().requires_grad_(), gt_boxes.clone().requires_grad_(), image))
    check(native.pair_quality, (*inputs, -0.4, 1.0))
    check(native.quality_topk, (*inputs, -0.4, 1.0, 4, 1))
    check(native.match_cost, (*inputs, 2.0, 5.0, 2.0, 0.25, 2.0))
    grad = torch.randn(2, 5, 7, dtype=dtype, device=device)
    check(native.pair_iou_backward, (grad, grad, boxes, gt_boxes, image))


class Assign(torch.nn.Module):
    def forward(self, logits, boxes, labels, gt_boxes, image):
        iou, _ = ops.pair_iou(boxes, gt_boxes, image)
        cost = ops.match_cost(logits, boxes, labels, gt_boxes, image)
        return iou, cost, *ops.quality_topk(logits, boxes, labels, gt_boxes, image, **COUNT)


def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()
    compiled = torch.compile(Assign(), fullgraph=True, backend="aot_eager")
    for objects in ((3, 0, 2), (4, 4, 1)):
        inputs = scene(objects=objects)
        for actual, expected in zip(compiled(*inputs), Assign()(*inputs), strict=True):
            torch.testing.assert_close(actual, expected)


def test_exports(backend):
    inputs = scene()
    exported = torch.export.export(Assign(), inputs)
    for actual, expected in zip(exported.module()(*inputs), Assign()(*inputs), strict=True):
        torch.testing.assert_close(actual, expected)


@needs_native
def test_explain_names_the_backend():
    assert "cpu: runs" in " ".join(map(str, ops.explain("match_cost", torch.zeros(1))))


@pytest.mark.skipif(not _extension.library().loaded, reason="the native library is not loaded")
def test_a_second_derivative_is_refused():
    _, boxes, _, gt_boxes, image = scene()
    boxes.requires_grad_()
    (grad,) = torch.autograd.grad(ops.pair_iou(boxes, gt_boxes, image)[1].sum(), boxes, create_graph=True)
    with pytest.raises(RuntimeError, match="paq_detr::pair_iou is differentiable once, not twice"):
        grad.sum().backward()


# ----------------------------------------------------------------------------------------------------------------------
# Bad input.


def replaced(position, tensor):
    inputs = list(scene())
    inputs[position] = tensor(inputs[position])
    return inputs


@pytest.mark.parametrize(
    "position, change, error, message",
    [
        (0, lambda t: None, TypeError, "logits is NoneType, expected a Tensor"),
        (1, lambda t: t.tolist(), TypeError, "boxes is list, expected a Tensor"),
        (4, lambda t: t.numpy(), TypeError, "gt_image is ndarray, expected a Tensor"),
        (0, lambda t: t[:, :, :5], ValueError, r"logits has shape \(2, 3, 5, 3\), expected .*\(2, 3, 7\)"),
        (0, lambda t: t.long(), TypeError, "logits is torch.int64, expected a floating point type"),
        (1, lambda t: t[0], ValueError, r"boxes has shape \(3, 7, 4\), expected \(L, B, N, 4\)"),
        (1, lambda t: t[..., :3], ValueError, r"boxes has shape \(2, 3, 7, 3\), expected"),
        (2, lambda t: t[:4], ValueError, r"gt_labels has shape \(4,\), expected \(M,\) with the M = 5"),
        (2, lambda t: t.int(), TypeError, "gt_labels is torch.int32, expected torch.int64"),
        (2, lambda t: t + 3, ValueError, "gt_labels has the value .*, but there are 3 classes"),
        (2, lambda t: t - 5, ValueError, "gt_labels has the value -.*, but there are 3 classes"),
        (3, lambda t: t[:, :2], ValueError, r"gt_boxes has shape \(5, 2\), expected \(M, 4\)"),
        (4, lambda t: t[None], ValueError, r"gt_image has shape \(1, 5\), expected .* M = 5"),
        (4, lambda t: t + 1, ValueError, "gt_image has the value 3, but there are 3 images"),
        (4, lambda t: t.to("meta"), ValueError, "gt_image is on meta, gt_boxes on cpu"),
        (3, lambda t: t.to("meta"), ValueError, "is on cpu, gt_boxes on meta"),
        (0, lambda t: t.to("meta"), ValueError, "logits is on meta, boxes on cpu"),
    ],
)
def test_bad_input_names_the_argument_and_both_sizes(backend, position, change, error, message):
    with pytest.raises(error, match=message):
        ops.match_cost(*replaced(position, change))


@pytest.mark.parametrize("argument, value", [("k", 0), ("min_count", -1)])
def test_bad_limits_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value}, expected at least"):
        ops.quality_topk(*scene(), **{**COUNT, argument: value})


@needs_native
def test_the_kernel_checks_indices_where_python_cannot():
    logits, boxes, labels, gt_boxes, image = scene()
    with pytest.raises(RuntimeError, match="gt_labels has the value 9, but there are 3 classes"):
        torch.ops.paq_detr.match_cost(logits, boxes, labels * 0 + 9, gt_boxes, image, 2.0, 5.0, 2.0, 0.25, 2.0)
    with pytest.raises(RuntimeError, match="gt_image has the value -1, but there are 3 images"):
        torch.ops.paq_detr.pair_iou(boxes, gt_boxes, image * 0 - 1)
