# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts one by one: initialisation, detach points, position codes, selection, norms."""

import itertools
import math
import re

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn
from torch.nn import functional as F

from paq_detr import add_paq_detr_config
from paq_detr.layers import DeformableAttention, MaskedGroupNorm, inverse_sigmoid, sine_box_code, sine_map_code
from paq_detr.modeling.backbone import FrozenStatsBatchNorm2d, build_backbone
from paq_detr.modeling.codec import LogitCodec
from paq_detr.modeling.interactions import SelfAttention
from paq_detr.modeling.proposals import taken, token_priors
from paq_detr.structures import DecoderState, QuerySet

from .assemblies import (
    ANCHORS,
    ASSIGNMENT,
    DEHOMO,
    HYBRID,
    PATTERNS,
    PLUSPLUS,
    REFINE,
    SINGLE_STAGE,
    TWO_STAGE,
    decode,
    make_image,
    make_model,
    memory_of,
    wake_up,
)


def test_inverse_sigmoid_undoes_sigmoid_and_is_bounded_by_its_eps():
    x = torch.linspace(-5, 5, 11)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x)
    assert inverse_sigmoid(torch.tensor(0.0), 1e-5).item() == pytest.approx(math.log(1e-5), rel=1e-4)
    assert inverse_sigmoid(torch.tensor(1.0), 1e-3).item() == pytest.approx(-math.log(1e-3), rel=1e-3)


def test_boxes_are_relative_to_points_in_the_centre_only():
    delta = torch.tensor([[[0.3, -0.2, 0.5, -1.0]]])
    from_point = LogitCodec().decode(delta, torch.tensor([[[0.5, 0.5]]]))
    torch.testing.assert_close(from_point, delta.sigmoid())
    from_box = LogitCodec().decode(torch.zeros(1, 1, 4), torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]))
    torch.testing.assert_close(from_box, torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]))


def test_sampling_offsets_start_in_one_direction_per_head_growing_by_a_pixel():
    attention = DeformableAttention(embed_dim=64, num_heads=8, num_levels=3, num_points=4)
    bias = attention.sampling_offsets.bias.view(8, 3, 4, 2)
    for head, level, point in itertools.product(range(8), range(3), range(4)):
        x, y = math.cos(head * math.pi / 4), math.sin(head * math.pi / 4)
        longest = max(abs(x), abs(y))
        expected = torch.tensor([x, y]) / longest * (point + 1)
        torch.testing.assert_close(bias[head, level, point], expected)
    for zero in (attention.sampling_offsets.weight, attention.attention_weights.weight):
        assert (zero == 0).all()


def test_map_code_is_the_published_formula():
    code = sine_map_code((3, 5), torch.tensor([[2, 4]]), 16, temperature=10000, offset=-0.5)[0].view(3, 5, 16)
    for row, column, channel in itertools.product(range(3), range(5), range(16)):
        of_y = channel < 8
        position, size, c = (row, 2, channel) if of_y else (column, 4, channel - 8)
        angle = (position + 1 - 0.5) / (size + 1e-6) * 2 * math.pi / 10000 ** (2 * (c // 2) / 8)
        expected = math.cos(angle) if c % 2 else math.sin(angle)
        assert code[row, column, channel].item() == pytest.approx(expected, abs=1e-5)


def test_box_code_has_one_block_per_coordinate():
    boxes = torch.rand(1, 2, 4)
    code = sine_box_code(boxes, 8)
    assert code.shape == (1, 2, 32)
    torch.testing.assert_close(code[..., 16:24], sine_box_code(boxes[..., 2:3], 8))
    assert code[0, 0, 0].item() == pytest.approx(math.sin(2 * math.pi * boxes[0, 0, 0].item()), abs=1e-5)


def test_masked_norm_equals_the_norm_of_the_image_alone():
    norm = MaskedGroupNorm(4, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    image = torch.randn(1, 8, 5, 6)
    padded = F.pad(image, (0, 3, 0, 2), value=7.0)
    padding = torch.ones(1, 7, 9, dtype=torch.bool)
    padding[:, :5, :6] = False
    out = norm(padded, padding)
    torch.testing.assert_close(out[..., :5, :6], norm(image))
    assert (out.masked_select(padding[:, None].expand_as(out)) == 0).all()


@pytest.mark.parametrize("look_twice", [False, True])
def test_look_forward_twice_is_the_gradient_from_the_next_layers_loss(look_twice, two_images):
    """It reaches the layer before, and no earlier one (DINO, 3.5)."""
    options = {"MODEL.DETR.DECODER.LOOK_FORWARD_TWICE": look_twice, "MODEL.DETR.DECODER.NUM_LAYERS": 3}
    model = wake_up(make_model(REFINE, **options))
    outputs = decode(model, two_images)
    outputs[2].boxes.sum().backward()
    learns = [head.last.weight.grad is not None for head in model.routes["main"].decoder.box_heads]
    assert learns == [False, look_twice, True]


def test_proposals_are_detached_before_the_decoder(two_images):
    model = wake_up(make_model(PLUSPLUS))
    outputs = decode(model, two_images)
    (outputs[-1].boxes.sum() + outputs[-1].logits.sum()).backward()
    source = model.sources["main"]
    assert source.box_head.last.weight.grad is None and source.class_head.weight.grad is None


@pytest.mark.parametrize(
    ("options", "size"), [(SINGLE_STAGE, -2.0), (REFINE, -2.0), (TWO_STAGE, 0.0), (ANCHORS, 0.0)], ids=str
)
def test_only_queries_without_a_size_start_with_small_boxes(options, size):
    heads = make_model(options).routes["main"].decoder.box_heads
    assert heads[0].last.bias.tolist() == [0.0, 0.0, size, size]
    assert all(head.last.bias.tolist() == [0.0] * 4 for head in list(heads)[1:])
    assert all((head.last.weight == 0).all() for head in heads)


def test_scores_start_at_one_percent():
    for head in make_model().routes["main"].decoder.class_heads:
        assert head.bias.sigmoid().tolist() == pytest.approx([0.01] * 3)


def test_heads_are_shared_without_refinement_and_own_with_it():
    assert len(make_model(SINGLE_STAGE).routes["main"].decoder.class_heads) == 1
    assert len(make_model(REFINE).routes["main"].decoder.class_heads) == 3


def test_layers_without_a_box_head_hand_the_boxes_on_with_their_gradient(two_images):
    model = wake_up(make_model(PLUSPLUS, **{"MODEL.DETR.DECODER.BOX_LAYERS": 1}))
    assert len(model.routes["main"].decoder.box_heads) == 1 and len(model.routes["main"].decoder.class_heads) == 3
    first, second, third = decode(model, two_images)
    assert first.boxes is second.boxes is third.boxes and third.boxes.requires_grad
    assert not torch.equal(first.logits, third.logits)


@pytest.mark.parametrize("repeat", [True, False])
def test_handed_on_boxes_have_box_losses_where_these_are_repeated(repeat, two_images):
    options = {"MODEL.DETR.DECODER.BOX_LAYERS": 1, "MODEL.DETR.LOSS.REPEAT_BOX_LOSSES": repeat}
    losses = make_model(PLUSPLUS, **options)(two_images)
    assert {"loss_l1/layer1", "loss_giou/layer1", "loss_class/layer2", "loss_class/final"} <= set(losses)
    assert ("loss_l1/layer2" in losses) == ("loss_giou/final" in losses) == repeat


def test_only_the_test_layers_run_at_inference(two_images):
    model = wake_up(make_model(PLUSPLUS, **{"MODEL.DETR.DECODER.TEST_LAYERS": 2}))
    trained = decode(model, two_images)
    stopped = decode(model.eval(), two_images)
    assert len(trained) == 3 and len(stopped) == 2
    assert torch.equal(stopped[-1].logits, trained[1].logits) and torch.equal(stopped[-1].boxes, trained[1].boxes)
    model.drop_training_parts()
    assert torch.equal(decode(model, two_images)[-1].logits, stopped[-1].logits)
    assert len(model.routes["main"].decoder.layers) == len(model.routes["main"].decoder.box_heads) == 2


@pytest.mark.parametrize("count", [4, -1])
@pytest.mark.parametrize("key", ["BOX_LAYERS", "TEST_LAYERS"])
def test_a_layer_count_beyond_the_layers_is_named(key, count):
    with pytest.raises(ValueError, match=rf"DECODER.{key} is {count}, must be in 0..3 \(0: all layers\)"):
        make_model(PLUSPLUS, **{f"MODEL.DETR.DECODER.{key}": count})


@pytest.mark.parametrize(
    ("options", "key", "value", "wanted"),
    [
        (DEHOMO, "DEHOMO.NUM_NEIGHBORS", 0, "at least 1"),
        (DEHOMO, "DEHOMO.IOU_THRESHOLD", 2.0, "in (0, 1]"),
        (DEHOMO, "DEHOMO.LOW_SCORE", 1.5, "in [0, 1)"),
        (DEHOMO, "DEHOMO.FLOOR_SCORE", 1.0, "in [0, 1)"),
        (DEHOMO, "SOFT_TARGET.MIN", 2.0, "in [-1, 1]"),
        (DEHOMO, "SOFT_TARGET.MIN", -5.0, "in [-1, 1]"),
        (DEHOMO, "QUERIES.NUM_TEST", -4, "at least 0"),
        ({**PLUSPLUS, **PATTERNS}, "PATTERNS.NUM", 0, "at least 1"),
        ({**PLUSPLUS, **PATTERNS, "MODEL.DETR.PATTERNS.HEAD": "factored"}, "PATTERNS.RANK", 0, "at least 1"),
        ({**PLUSPLUS, **ASSIGNMENT}, "QUALITY_ASSIGNMENT.K", 0, "at least 1"),
        ({**PLUSPLUS, **ASSIGNMENT}, "QUALITY_ASSIGNMENT.MIN_COUNT", 0, "at least 1"),
        ({**PLUSPLUS, **HYBRID}, "HYBRID.COPIES", 0, "at least 1"),
        ({**PLUSPLUS, **HYBRID}, "HYBRID.NUM_QUERIES", 0, "at least 1"),
    ],
)
def test_a_number_out_of_range_is_named_when_the_model_is_built(options, key, value, wanted):
    with pytest.raises(ValueError, match=re.escape(f"{key} is {value}, must be {wanted}")):
        make_model(options, **{f"MODEL.DETR.{key}": value})


def test_without_self_attention_no_query_sees_another(two_images):
    model = wake_up(make_model(PLUSPLUS, **{"MODEL.DETR.DECODER.INTERACTION": ["none"]})).eval()
    memory = memory_of(model, two_images)
    queries = model.sources["main"](memory)
    before = model.routes["main"](queries, memory)[-1].logits
    queries.content = torch.cat([queries.content[:, :3] + 1, queries.content[:, 3:]], 1)
    after = model.routes["main"](queries, memory)[-1].logits
    assert torch.equal(before[:, 3:], after[:, 3:]) and not torch.equal(before[:, :3], after[:, :3])


def test_priors_grow_with_the_level_and_stay_inside(two_images):
    model = make_model(PLUSPLUS)
    memory = memory_of(model, two_images)
    priors, usable = token_priors(memory)
    start = 0
    for level, (h, w) in enumerate(memory.grid.shapes):
        assert (priors[:, start : start + h * w, 2:] == 0.05 * 2**level).all()
        start += h * w
    inside = ((priors > 0.01) & (priors < 0.99)).all(-1)
    assert torch.equal(usable, inside & ~memory.grid.padding)
    torch.testing.assert_close(priors[0, 0, :2], torch.tensor([0.5 / 12, 0.5 / 8]))  # 64 x 96 pixels, stride 8


@pytest.mark.parametrize("score", ["binary", "max"])
def test_the_best_usable_tokens_become_queries(score, two_images):
    model = wake_up(make_model(PLUSPLUS, **{"MODEL.DETR.QUERIES.SCORE": score}))
    source = model.sources["main"]
    proposals = source.propose(memory_of(model, two_images))
    queries = source.queries(taken(proposals, *source.best(proposals, 12)))
    for image in range(2):
        rank = proposals.logits[image, :, 0] if score == "binary" else proposals.logits[image].amax(-1)
        allowed = [i for i in range(len(rank)) if proposals.valid[image, i]]
        best = sorted(allowed, key=lambda i: -rank[i].item())[:12]
        torch.testing.assert_close(queries.reference[image], proposals.boxes[image, best])
    assert not queries.reference.requires_grad


def test_invalid_and_masked_queries_are_not_seen():
    torch.manual_seed(0)
    attention = SelfAttention(16, 2).eval()
    content, position = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    valid = torch.tensor([[True, True, True, False, False], [True] * 5])
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[0, 2] = True

    def attend(content):
        queries = QuerySet(content, torch.rand(2, 5, 4), position, valid=valid, attention_mask=mask)
        return attention(DecoderState.of(queries), None).content

    out = attend(content)
    changed = content.clone()
    changed[0, 3:] = 100.0
    torch.testing.assert_close(attend(changed)[0, :3], out[0, :3])
    changed = content.clone()
    changed[0, 2] = 100.0
    moved = attend(changed)
    torch.testing.assert_close(moved[0, 0], out[0, 0])
    assert not torch.allclose(moved[0, 1], out[0, 1])


def test_a_batch_without_any_valid_query_is_finite():
    attention = SelfAttention(16, 2)
    queries = QuerySet(torch.randn(1, 3, 16), torch.rand(1, 3, 4), valid=torch.zeros(1, 3, dtype=torch.bool))
    assert attention(DecoderState.of(queries), None).content.isfinite().all()


def resnet_cfg(norm, freeze_at):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    cfg.merge_from_list(["MODEL.RESNETS.NORM", norm, "MODEL.BACKBONE.FREEZE_AT", freeze_at])
    return cfg


def test_frozen_statistics_with_a_trained_affine():
    backbone = build_backbone(resnet_cfg("FrozenStatsBN", 2)).train()
    norms = [m for m in backbone.modules() if isinstance(m, FrozenStatsBatchNorm2d)]
    assert norms and all(not m.training and m.weight.requires_grad for m in norms)
    before = [m.running_mean.clone() for m in norms]
    backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(a, m.running_mean) for a, m in zip(before, norms))


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, ()), (1, ("stem",)), (2, ("stem", "res2"))])
def test_the_freeze_depth_is_what_the_config_says(freeze_at, frozen):
    backbone = build_backbone(resnet_cfg("BN", freeze_at))
    trained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"stem", "res2", "res3", "res4", "res5"} - set(frozen)


def test_a_reference_is_a_share_of_the_unpadded_image():
    """Token centres, seen through the valid ratios, are pixel centres of the padded map."""
    model = make_model(PLUSPLUS)
    grid = memory_of(model, [make_image(64, 96), make_image(40, 48)]).grid
    centers, start = grid.centers, 0
    for level, (h, w) in enumerate(grid.shapes):
        pixel = centers[:, start : start + h * w] * grid.valid_ratios[:, None, level] * torch.tensor([w, h])
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        expected = torch.stack([x, y], -1).view(1, -1, 2).expand(2, -1, -1)
        torch.testing.assert_close(pixel, expected)
        start += h * w
