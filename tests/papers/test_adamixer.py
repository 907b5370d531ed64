# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""AdaMixer: numbers worked out by hand, sampling, mixing and attention as loops, gradients, sizes."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from paq_detr.errors import UserError
from paq_detr.layers import boxes_cxcywh_to_xyxy, boxes_xyxy_to_cxcywh
from paq_detr.modeling.codec import XYZRCodec
from paq_detr.modeling.iof_attention import IoFSelfAttention, intersection_over_foreground, xyzr_code
from paq_detr.papers.adamixer import AdaptiveMixing, AdaptiveSampling, LateralNeck, sample_3d
from paq_detr.structures import DecoderState

from ..modeling.assemblies import ADAMIXER, decode, make_model, memory_from_maps, memory_of
from .test_sparse_rcnn import count, stage_of, two_images

STRIDES = (4, 8, 16, 32)


def maps_of(size, channels=1, fill=torch.randn):
    return [fill(1, channels, *(-(-side // s) for side in size)) for s in STRIDES]


def columns(batch, channels, height, width):
    """Maps that count their columns."""
    return torch.arange(float(width)).expand(batch, channels, height, width)


def grid_of(*image_sizes):
    padded = [max(sides) for sides in zip(*image_sizes)]
    maps = [torch.zeros(len(image_sizes), 1, *(-(-side // s) for side in padded)) for s in STRIDES]
    return memory_from_maps(maps, STRIDES, image_sizes).grid


@pytest.mark.parametrize(("classes", "size"), [(80, 18_378_716), (1, 18_358_413)])
def test_a_stage_has_the_published_size(classes, size):
    layer, class_head, box_head = stage_of("coco/adamixer_100_r50_12ep", classes)
    assert count(layer, class_head, box_head) == size
    assert count(layer.cross_attention.mixing.kernels) == 8_421_376
    assert count(layer.cross_attention.mixing.output) == 8_388_864
    assert count(layer.cross_attention.sampling) == 98_688


def test_the_neck_has_the_published_size_and_one_norm():
    names = ["res2", "res3", "res4", "res5"]
    neck = LateralNeck(in_features=names, in_channels=[256, 512, 1024, 2048], in_strides=STRIDES)
    assert count(neck) == 984_576


# ----------------------------------------------------------------------------------------------------------------------
# (x, y, z, r)


def test_the_whole_image_as_xyzr_does_not_know_the_padding():
    grid = grid_of((800, 1333), (800, 800))
    boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(2, 1, 4)
    expected = torch.tensor([[666.5, 400.0, 10.012159, -0.736605], [400.0, 400.0, 9.643856, 0.0]])
    torch.testing.assert_close(XYZRCodec().to_xyzr(boxes, grid)[:, 0], expected)


def test_a_box_moves_as_worked_out_by_hand():
    grid = grid_of((800, 1333))
    xyzr = torch.tensor([[[100.0, 50.0, 6.0, 1.0]]])
    box = XYZRCodec().to_boxes(xyzr, grid)
    corners = boxes_cxcywh_to_xyxy(box * grid.image_scale)[0, 0]
    torch.testing.assert_close(corners, torch.tensor([77.372583, 4.745166, 122.627417, 95.254834]))
    moved = XYZRCodec().decode(torch.tensor([[[0.5, -0.25, 0.1, -0.2]]]), box, grid)
    torch.testing.assert_close(XYZRCodec().to_xyzr(moved, grid)[0, 0], torch.tensor([132.0, 34.0, 6.1, 0.8]))
    torch.testing.assert_close(moved[0, 0], torch.tensor([0.099025, 0.0425, 0.038998, 0.113137]), atol=1e-6, rtol=0)
    asag = XYZRCodec(r_scale=0.5, unit=4.0)
    torch.testing.assert_close(asag.to_xyzr(box, grid)[0, 0], torch.tensor([25.0, 12.5, 4.0, 0.5]))
    torch.testing.assert_close(asag.to_boxes(asag.to_xyzr(box, grid), grid), box)


def test_a_box_without_a_side_has_finite_xyzr():
    assert XYZRCodec().to_xyzr(torch.tensor([[[0.5, 0.5, 0.0, 0.1]]]), grid_of((64, 96))).isfinite().all()


def test_the_code_of_xyzr():
    code = xyzr_code(torch.tensor([[[500.0, 250.0, 6.0, 1.0]]]), 256)[0, 0]
    starts = {0: [0.479426, 0.877583, 0.366223, 0.930527], 64: [0.247404, 0.968912], 128: [-0.279415, 0.960170]}
    for first, values in {**starts, 192: [0.841471, 0.540302]}.items():
        torch.testing.assert_close(code[first : first + len(values)], torch.tensor(values), atol=1e-5, rtol=0)


# ----------------------------------------------------------------------------------------------------------------------
# Self-attention


def test_overlap_is_relative_to_the_one_that_asks():
    xyxy = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 25.0, 10.0], [50.0, 50.0, 60.0, 60.0]]])
    iof = intersection_over_foreground(boxes_xyxy_to_cxcywh(xyxy))[0]
    expected = [[0.0, -0.693147, -16.118096], [-1.386294, 0.0, -16.118096], [-16.118096, -16.118096, 0.0]]
    torch.testing.assert_close((iof + 1e-7).log(), torch.tensor(expected), atol=1e-5, rtol=0)


def attention_and_state(mask=None, alive=None, dim=16, queries=5):
    torch.manual_seed(0)
    attention = IoFSelfAttention(dim, 2, XYZRCodec())
    torch.nn.init.normal_(attention.norm.weight)
    boxes = torch.rand(1, queries, 4) * 0.5 + 0.2
    return attention, DecoderState(torch.randn(1, queries, dim), boxes, None, alive, alive, mask)


MASK = torch.zeros(5, 5, dtype=torch.bool)
MASK[2:, :2] = True
ALIVE = torch.tensor([[True, True, True, False, True]])


@pytest.mark.parametrize(("mask", "alive"), [(None, None), (MASK, None), (None, ALIVE), (MASK, ALIVE)])
def test_attention_is_its_loop(mask, alive):
    """Query, key, value and residual are content plus code; tau log(IoF) is added to each head's logits."""
    attention, state = attention_and_state(mask, alive)
    memory = memory_from_maps(maps_of((64, 96)), STRIDES, [(64, 96)])
    out = attention(state, memory).content[0]
    scale = memory.grid.image_scale
    u = (state.content + xyzr_code(XYZRCodec().to_xyzr(state.reference, memory.grid), 16))[0]
    bias = (intersection_over_foreground(state.reference * scale)[0] + 1e-7).log()
    q, k, v = F.linear(u, attention.attention.in_proj_weight, attention.attention.in_proj_bias).chunk(3, -1)
    for i in range(5):
        hidden = [(mask is not None and mask[i, j]) or (alive is not None and not alive[0, j]) for j in range(5)]
        sees = [j for j in range(5) if j == i or not hidden[j]]
        heads = []
        for h in range(2):
            cut = slice(8 * h, 8 * h + 8)
            logits = [q[i, cut] @ k[j, cut] / math.sqrt(8) + attention.tau[h] * bias[i, j] for j in sees]
            heads.append(torch.stack(logits).softmax(0) @ v[sees][:, cut])
        expected = attention.norm(u[i] + attention.attention.out_proj(torch.cat(heads)))
        torch.testing.assert_close(out[i], expected, atol=1e-5, rtol=1e-4)


def test_attention_teaches_tau_and_no_box():
    attention, state = attention_and_state()
    state.reference.requires_grad_()
    memory = memory_from_maps(maps_of((64, 96)), STRIDES, [(64, 96)])
    attention(state, memory).content.square().sum().backward()
    assert attention.tau.grad.all() and state.reference.grad is None
    assert (attention.tau >= 0).all() and (attention.tau <= 4).all()


# ----------------------------------------------------------------------------------------------------------------------
# Sampling


def level_weights(z):
    """What each level contributes, from maps of which each is one in a channel of its own."""
    maps = [torch.eye(4)[level].view(1, 4, 1, 1).expand(1, 4, 128 // s, 128 // s) for level, s in enumerate(STRIDES)]
    memory = memory_from_maps(maps, STRIDES, [(128, 128)])
    return sample_3d(memory, torch.full((1, 1, 1, 1, 2), 64.0), torch.full((1, 1, 1, 1), z))[0, 0, 0, 0]


@pytest.mark.parametrize(
    ("z", "weights"),
    [
        (3.5, [0.134471, 0.365529, 0.365529, 0.134471]),
        (2.0, [0.570459, 0.346001, 0.077203, 0.006337]),
    ],
)
def test_levels_weigh_by_their_distance_in_scale(z, weights):
    torch.testing.assert_close(level_weights(z), torch.tensor(weights), atol=1e-6, rtol=0)


def test_a_query_of_the_whole_image_starts_on_the_coarsest_level():
    assert level_weights(10.012159 - 1)[3].item() == pytest.approx(0.989101, abs=1e-5)


@pytest.mark.parametrize(("groups", "z", "value"), [(1, 3.5, 4.605118), (2, 3.5, 4.605118)])
def test_a_point_reads_pixel_p_at_p_over_stride_less_half(groups, z, value):
    memory = memory_from_maps(maps_of((128, 128), groups, columns), STRIDES, [(128, 128)])
    points = torch.tensor([48.0, 24.0]).expand(1, 1, groups, 1, 2)
    sampled = sample_3d(memory, points, torch.full((1, 1, groups, 1), z))
    torch.testing.assert_close(sampled.flatten(), torch.full((groups,), value), atol=1e-5, rtol=0)


def test_zero_lies_outside_of_the_map():
    memory = memory_from_maps([torch.ones(1, 1, 8, 8)], [4], [(32, 32)])
    points = torch.tensor([[1.0, 16.0], [-2.0, 16.0], [31.0, 16.0]]).view(1, 3, 1, 1, 2)
    assert sample_3d(memory, points, torch.full((1, 3, 1, 1), 2.0)).flatten().tolist() == [0.75, 0.0, 0.75]


def read(level, channel, x, y):
    """Bilinear, zero outside; by hand."""
    height, width = level.shape[-2:]
    total = 0.0
    for column, row in itertools.product((math.floor(x), math.floor(x) + 1), (math.floor(y), math.floor(y) + 1)):
        if 0 <= column < width and 0 <= row < height:
            total += (1 - abs(x - column)) * (1 - abs(y - row)) * level[channel, row, column].item()
    return total


def test_sampling_is_its_loop():
    """Two images, the second smaller and its padding full of rubbish, which counts as zero."""
    torch.manual_seed(0)
    sizes, groups, points, width = [(64, 96), (50, 70)], 2, 3, 4
    maps = [torch.randn(2, width, -(-64 // s), -(-96 // s)) for s in STRIDES]
    memory = memory_from_maps(maps, STRIDES, sizes)
    sampling = AdaptiveSampling(width, groups, points)
    torch.nn.init.normal_(sampling.sampling_offsets.weight, std=0.5)
    query, boxes = torch.randn(2, 3, width), torch.rand(2, 3, 4) * 0.6 + 0.2
    out = sampling(query, boxes, memory)
    offsets = sampling.sampling_offsets(query)
    for image, n, g, p in itertools.product(range(2), range(3), range(groups), range(points)):
        height, wide = sizes[image]
        cx, cy, w, h = (boxes[image, n] * torch.tensor([wide, height, wide, height])).tolist()
        dx, dy, dz = offsets[image, n, 3 * (g * points + p) : 3 * (g * points + p) + 3].tolist()
        scale = math.log2(math.sqrt(w * h)) + dz
        weights = torch.tensor([-((scale - math.log2(s)) ** 2) / 2 for s in STRIDES]).softmax(0).tolist()
        for c in range(width // groups):
            value = 0.0
            for level, s, weight in zip(maps, STRIDES, weights):
                inside = level[image, :, : -(-height // s), : -(-wide // s)]
                x, y = (cx + dx * w) / s - 0.5, (cy + dy * h) / s - 0.5
                value += weight * read(inside, g * width // groups + c, x, y)
            assert out[image, n, g, p, c].item() == pytest.approx(value, abs=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# Mixing


def test_mixing_as_worked_out_by_hand():
    mixing = AdaptiveMixing(embed_dim=2, groups=1, in_points=2, out_points=3)
    with torch.no_grad():
        mixing.kernels.bias.copy_(torch.tensor([1.0, 2, 3, 4, 1, 0, 0, 1, 1, 1]))
        mixing.output.weight[0] = torch.arange(1.0, 7)
        mixing.output.bias.zero_()
    out = mixing(torch.zeros(1, 1, 2), torch.tensor([[[[[1.0, 0.0], [0.0, 2.0]]]]]))
    assert 10 + out[0, 0, 0].item() == pytest.approx(22.510133, abs=1e-4)


def test_mixing_is_its_loop():
    torch.manual_seed(0)
    groups, into, out_points, dim = 2, 3, 5, 4
    mixing = AdaptiveMixing(groups * dim, groups, into, out_points)
    torch.nn.init.normal_(mixing.kernels.weight)
    query, samples = torch.randn(1, 2, groups * dim), torch.randn(1, 2, groups, into, dim)
    out, size = mixing(query, samples), dim * dim + into * out_points
    for n in range(2):
        numbers, flat = mixing.kernels(query[0, n]).tolist(), []
        for g in range(groups):
            own, x = numbers[g * size : (g + 1) * size], samples[0, n, g].tolist()
            rows = normed([[sum(row[c] * own[c * dim + d] for c in range(dim)) for d in range(dim)] for row in x])
            for_point = [own[dim * dim + o * into :] for o in range(out_points)]
            rows = [[sum(k[p] * rows[p][d] for p in range(into)) for d in range(dim)] for k in for_point]
            flat += [value for row in normed(rows) for value in row]
        torch.testing.assert_close(out[0, n], mixing.output(torch.tensor(flat)), atol=1e-4, rtol=1e-4)


def normed(rows):
    """Mean and variance over all numbers, then ReLU."""
    numbers = [value for row in rows for value in row]
    mean = sum(numbers) / len(numbers)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in numbers) / len(numbers) + 1e-5)
    return [[max(0.0, (value - mean) / deviation) for value in row] for row in rows]


# ----------------------------------------------------------------------------------------------------------------------
# Start and gradients


def test_it_starts_at_the_whole_image_with_one_mixing_for_all():
    model = make_model(ADAMIXER)
    source, decoder = model.sources["main"], model.routes["main"].decoder
    assert not source.boxes.requires_grad and not any(name.endswith("boxes") for name, _ in source.named_parameters())
    content = source(memory_of(model, two_images())).content
    torch.testing.assert_close(content.mean(-1), torch.zeros(2, 12), atol=1e-5, rtol=0)
    torch.testing.assert_close(content.var(-1, unbiased=False), torch.ones(2, 12), atol=1e-3, rtol=0)
    for layer in decoder.layers:
        sampling, mixing = layer.cross_attention.sampling, layer.cross_attention.mixing
        offsets = sampling.sampling_offsets.bias.view(-1, 3)
        assert (offsets[:, 2] == -1).all() and offsets[:, :2].abs().max() <= 0.5
        assert offsets[:, :2].unique().numel() == 2 * 4 * 6  # all different
        assert not sampling.sampling_offsets.weight.any() and not mixing.kernels.weight.any()
        assert mixing.kernels.bias.all()
    for output in decode(model, two_images()):
        torch.testing.assert_close(output.boxes, torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(2, 12, 4))


def test_boxes_are_detached_and_contents_are_not():
    model = make_model(ADAMIXER)
    decode(model, two_images())[2].boxes.sum().backward()
    decoder = model.routes["main"].decoder
    assert decoder.box_heads[0].last.weight.grad is None and decoder.box_heads[2].last.weight.grad.any()
    decode(model, two_images())[2].logits.sum().backward()
    assert model.sources["main"].content.content.table.grad.any()


def test_groups_must_divide_the_channels():
    with pytest.raises(UserError, match="ADAMIXER.GROUPS is 3, must divide MODEL.DETR.HIDDEN_DIM 64"):
        make_model(ADAMIXER, **{"MODEL.DETR.ADAMIXER.GROUPS": 3})
