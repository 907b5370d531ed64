# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Sparse R-CNN: numbers worked out by hand, the dynamic convolution as a loop, gradients, sizes."""

import itertools
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch.nn import functional as F

from paq_detr import add_paq_detr_config
from paq_detr.engine.solver import build_optimizer
from paq_detr.errors import UserError
from paq_detr.layers import boxes_cxcywh_to_xyxy, boxes_xyxy_to_cxcywh
from paq_detr.modeling.assignment import MatchCost
from paq_detr.modeling.codec import DeltaCodec
from paq_detr.modeling.decoder import build_layers
from paq_detr.modeling.fpn import FPN
from paq_detr.modeling.losses import FocalLoss, Matches, corner_l1_loss, l1_loss
from paq_detr.papers.sparse_rcnn import DynamicConv
from paq_detr.registry import HEADS, Kit
from paq_detr.structures import Assignment, LayerOutput, Targets

from ..modeling.assemblies import SPARSE_RCNN, decode, make_image, make_model

CONFIGS = Path(__file__).parents[2] / "configs"


def two_images():
    return [
        make_image(64, 96, [[4, 6, 40, 50], [30, 8, 90, 60]], [0, 2], seed=1),
        make_image(50, 120, [[10, 10, 100, 40]], [1], seed=2),
    ]


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def config_of(name):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    return cfg


def stage_of(config, classes):
    """A decoder layer and its two heads as a config has them, without numbers."""
    cfg = config_of(config)
    cfg.MODEL.DETR.DECODER.NUM_LAYERS = 1
    kit = Kit(num_classes=classes)
    with torch.device("meta"):
        heads = HEADS.build(cfg.MODEL.DETR.DECODER.HEADS, cfg, kit)
        return build_layers(cfg, kit)[0], heads.class_head(), heads.box_head(0.0)


@pytest.mark.parametrize(
    ("config", "classes", "size"),
    [("coco/sparse_rcnn_100_r50_36ep", 80, 13_235_412), ("crowdhuman/sparse_rcnn_500_r50_50ep", 1, 13_215_109)],
)
def test_a_stage_has_the_published_size(config, classes, size):
    layer, class_head, box_head = stage_of(config, classes)
    assert count(layer, class_head, box_head) == size
    assert count(layer.cross_attention.dynamic_conv.kernels) == 8_421_376
    assert count(layer.cross_attention.dynamic_conv.output) == 3_211_520
    assert count(layer.interactions[0].attention) == 263_168


@pytest.mark.parametrize(
    ("config", "trained"),
    [
        ("coco/sparse_rcnn_100_r50_36ep", 106_015_368),
        ("coco/adamixer_100_r50_12ep", 134_790_904 - 225_344 - 4 * 100),  # the last ones, its boxes, get no gradient
    ],
)
def test_all_but_stem_and_first_stage_learn_at_one_rate(config, trained):
    cfg = config_of(config)
    cfg.MODEL.DETR.CLASS_NAMES, cfg.DATASETS.TEST = [str(i) for i in range(80)], ()
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get("QueryDetector")(cfg)
    groups = build_optimizer(cfg, model).param_groups
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(2.5e-5, 1e-4)}
    assert sum(p.numel() for group in groups for p in group["params"]) == trained


def test_the_pyramid_has_the_published_size():
    names = ["res2", "res3", "res4", "res5"]
    fpn = FPN(in_features=names, in_channels=[256, 512, 1024, 2048], in_strides=[4, 8, 16, 32])
    assert count(fpn) == 3_344_384


def test_deltas_move_a_box_as_worked_out_by_hand():
    image = torch.tensor([1333.0, 800.0, 1333.0, 800.0])
    start = boxes_xyxy_to_cxcywh(torch.tensor([[[100.0, 200.0, 300.0, 600.0]]])) / image
    moved = DeltaCodec().decode(torch.tensor([[[0.4, -0.2, 0.1, -0.3]]]), start)
    torch.testing.assert_close(moved[0, 0], torch.tensor([0.180045, 0.45, 0.165817, 0.370409]), atol=1e-6, rtol=0)
    corners = boxes_cxcywh_to_xyxy(moved * image)[0, 0]
    torch.testing.assert_close(corners, torch.tensor([129.482908, 211.836356, 350.517092, 508.163644]))
    wide = DeltaCodec().decode(torch.tensor([[[0.0, 0.0, 20.0, -20.0]]]), start)
    assert (wide / start)[0, 0, 2:].tolist() == pytest.approx([100000 / 16, 2.0611537e-9], rel=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# The dynamic convolution


def test_the_kernels_lie_in_the_query_as_worked_out_by_hand():
    """Width 4, inner width 2, kernels 0, 0.1, ..., 1.5: a transposed layout gives (2, 6) first."""
    conv, seen = DynamicConv(embed_dim=4, inner_dim=2, num_positions=1), {}
    with torch.no_grad():
        conv.kernels.weight.zero_()
        conv.kernels.bias.copy_(torch.arange(16) * 0.1)
    for name in ("norm1", "norm2", "output"):
        getattr(conv, name).register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0][0, 0]}))
    conv(torch.zeros(1, 1, 4), torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]))
    torch.testing.assert_close(seen["norm1"], torch.tensor([[4.0, 5.0]]))
    torch.testing.assert_close(seen["norm2"], torch.tensor([[1.199976, 1.299974, 1.399972, 1.499970]]))
    torch.testing.assert_close(seen["output"], torch.tensor([0.0, 0.0, 0.447035, 1.341104]), atol=1e-5, rtol=0)


def test_the_dynamic_convolution_is_its_loop():
    torch.manual_seed(0)
    width, inner, positions = 6, 3, 4
    conv = DynamicConv(width, inner, positions)
    for norm in (conv.norm1, conv.norm2, conv.norm3):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    query, features = torch.randn(2, 5, width), torch.randn(2, 5, positions, width)
    out = conv(query, features)
    for image, n in itertools.product(range(2), range(5)):
        numbers = conv.kernels(query[image, n]).tolist()
        rows = []
        for p in range(positions):
            f = features[image, n, p].tolist()
            hidden = [sum(f[c] * numbers[c * inner + i] for c in range(width)) for i in range(inner)]
            hidden = F.relu(conv.norm1(torch.tensor(hidden))).tolist()
            second = numbers[width * inner :]
            back = [sum(hidden[i] * second[i * width + c] for i in range(inner)) for c in range(width)]
            rows.append(F.relu(conv.norm2(torch.tensor(back))))
        expected = F.relu(conv.norm3(conv.output(torch.cat(rows))))
        torch.testing.assert_close(out[image, n], expected, atol=1e-5, rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# Start and gradients


def test_boxes_start_as_the_whole_image_and_deltas_at_random():
    model = make_model(SPARSE_RCNN)
    assert (model.sources["main"].boxes == torch.tensor([0.5, 0.5, 1.0, 1.0])).all()
    decoder = model.routes["main"].decoder
    assert all(head.last.weight.any() for head in decoder.box_heads)
    for head in decoder.class_heads:
        torch.testing.assert_close(head.last.bias.sigmoid(), torch.full((3,), 0.01))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_table_of_boxes_learns_from_the_first_layer_alone(layer):
    model = make_model(SPARSE_RCNN)
    decode(model, two_images())[layer].boxes.sum().backward()
    table = model.sources["main"].boxes
    assert (table.grad is not None and bool(table.grad.any())) == (layer == 0)
    assert model.sources["main"].content.table.grad.any()  # contents are never detached


def test_the_towers_have_the_published_depths_and_no_biases():
    for kind, depth in (("class_heads", 1), ("box_heads", 3)):
        for head in getattr(make_model(SPARSE_RCNN).routes["main"].decoder, kind):
            linears = [module for module in head.tower if isinstance(module, torch.nn.Linear)]
            assert len(linears) == depth and all(linear.bias is None for linear in linears)


# ----------------------------------------------------------------------------------------------------------------------
# Cost and losses


def one_pair(score):
    """A predicted box beside its object, both cxcywh."""
    logits, boxes = torch.tensor([[[score]]]).logit(), torch.tensor([[[0.5, 0.5, 0.4, 0.4]]])
    zero = torch.zeros(1, dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.int64)
    targets = Targets(torch.tensor([[0.52, 0.5, 0.44, 0.4]]), zero, zero, (1,), torch.zeros(0, 4), none)
    return LayerOutput(logits, boxes), targets, Assignment(zero, zero, zero)


@pytest.mark.parametrize(
    ("score", "corners", "total"),
    [
        (0.6, True, 2 * -0.226965 + 5 * 0.04 - 2 * 0.909091),
        (0.6, False, 2 * -0.226965 + 5 * 0.06 - 2 * 0.909091),
        (0.1, True, 0.930967 + 5 * 0.04 - 2 * 0.909091),
    ],
)
def test_the_cost_of_a_pair(score, corners, total):
    output, targets, _ = one_pair(score)
    stacked = LayerOutput(output.logits[None], output.boxes[None])
    assert MatchCost(corners=corners)(stacked, targets).item() == pytest.approx(total, abs=1e-5)


def test_the_l1_loss_is_of_corners():
    output, targets, pairs = one_pair(0.6)
    matches = Matches(output, pairs, targets)
    assert corner_l1_loss(matches).item() == pytest.approx(0.04, abs=1e-6)
    assert l1_loss(matches).item() == pytest.approx(0.06, abs=1e-6)


def test_a_cost_of_corners_is_finite_and_the_switch_reaches_cost_and_loss():
    output, targets, _ = one_pair(0.6)
    broken = LayerOutput(output.logits[None], torch.full((1, 1, 1, 4), torch.nan))
    assert MatchCost(corners=True)(broken, targets).isfinite().all()
    for corners in (True, False):
        name = "corners" if corners else "cxcywh"
        (objective, *_) = make_model(SPARSE_RCNN, **{"MODEL.DETR.LOSS.L1_FORMAT": name}).routes["main"].objectives
        assert objective.assigner.cost.corners == corners
        assert (objective.pair_losses["l1"][1] is corner_l1_loss) == corners


@pytest.mark.parametrize(("queries", "loss"), [(100, 0.006030), (300, 0.018091)])
def test_the_first_focal_loss_of_an_image_without_objects(queries, loss):
    output, targets, _ = one_pair(0.6)
    none = torch.zeros(0, dtype=torch.int64)
    output = LayerOutput(torch.full((1, queries, 80), 0.01).logit(), output.boxes)
    matches = Matches(output, Assignment(none, none, none), targets)
    assert FocalLoss()(matches).sum().item() == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"QUERIES.NAME": "LearnedQueries"}, "needs queries with boxes"),
        ({"SPARSE_RCNN.POOL_SIZE": 0}, "SPARSE_RCNN.POOL_SIZE is 0, must be at least 1"),
        ({"DECODER.CROSS_ATTENTION": ["dynamic_conv", "none"]}, "CROSS_ATTENTION has 2 entries .* each of 3 layers"),
        ({"DECODER.HEADS": "tower"}, 'DECODER.HEADS is "tower", must be one of mlp, towers'),
        ({"DECODER.TOWERS.BOX_INIT": "one"}, 'TOWERS.BOX_INIT is "one", must be one of zeros, xavier'),
        ({"LOSS.L1_FORMAT": "xyxy"}, 'LOSS.L1_FORMAT is "xyxy", must be one of cxcywh, corners'),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(UserError, match=message):
        make_model(SPARSE_RCNN, **{f"MODEL.DETR.{key}": value for key, value in options.items()})


def test_layers_of_several_kinds_and_one_that_does_not_read_the_image():
    kinds = ["dynamic_conv", "none", "adaptive_mixing"]
    model = make_model(SPARSE_RCNN, **{"MODEL.DETR.DECODER.CROSS_ATTENTION": kinds})
    assert [type(layer.cross_attention).__name__ for layer in model.routes["main"].decoder.layers] == [
        "RoIInteraction",
        "NoCrossAttention",
        "SamplingAndMixing",
    ]
    sum(model(two_images()).values()).backward()
