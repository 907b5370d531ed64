# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""DH-DETR's released computation as short loops, and the code against it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import EventStorage

from paq_detr import add_paq_detr_config
from paq_detr.modeling.assignment import HungarianAssigner, MatchCost, assign
from paq_detr.modeling.encoder import EncoderLayer
from paq_detr.modeling.losses import FocalLoss, Matches
from paq_detr.modeling.objective import supervise
from paq_detr.papers.dh_detr import AdmissibleCost, Dehomo, SoftFocalLoss
from paq_detr.papers.paq import PatternContent, QualityCountAssigner
from paq_detr.structures import Assignment, DecoderState, LayerOutput, Targets

from ..boxes import centred_iou as iou
from ..modeling.assemblies import (
    ASSIGNMENT,
    DEHOMO,
    HYBRID,
    PATTERNS,
    decode,
    make_image,
    make_model,
    memory_of,
    predict,
    predictions_of,
    wake_up,
)

CONFIGS = Path(__file__).parents[2] / "configs"


def count(module, trainable=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def load(name):
    """A model of a yaml file with one class, without numbers."""
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.MODEL.DETR.CLASS_NAMES, cfg.DATASETS.TEST = ["person"], ()
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


@pytest.mark.parametrize("form", ["dh_detr", "dh_detr_released", "dh_detr_mended", "dh_detr_1000_test_queries"])
def test_dh_detr_has_its_published_size_in_every_form(form):
    assert count(load(f"crowdhuman/{form}_r50_54ep"), trainable=True) == 34_576_780  # published: 34.6 M


def test_stopping_early_saves_the_last_layer():
    model = load("crowdhuman/dh_detr_early_stop_r50_54ep")
    assert count(model, trainable=True) == 34_576_780
    model.drop_training_parts()
    assert count(model, trainable=True) == 33_752_331  # published: 33.7 M


@pytest.mark.parametrize(
    ("name", "millions"), [("deformable_detr_r50_54ep", 37.7), ("deformable_detr_two_stage_r50_54ep", 37.6)]
)
def test_the_baselines_have_their_published_sizes(name, millions):
    assert round(count(load(f"crowdhuman/{name}"), trainable=True) / 1e6, 1) == millions


def test_the_parts_have_the_sizes_that_the_arithmetic_says():
    layers = load("crowdhuman/dh_detr_r50_54ep").routes["main"].decoder.layers
    assert count(layers[1].interactions[0].generator) == 5 * (256 * 256 + 256) + 2 * 256 == 329_472
    assert count(layers[0]) == count(EncoderLayer(256, 512, 8, 4, 4)) == 494_208  # "aligned"
    assert count(layers[1]) == count(layers[2]) == 494_208 + 329_472 + 512
    assert layers[1].interactions[0] is not layers[2].interactions[0]


# ----------------------------------------------------------------------------------------------------------------------
# Layers, matching, losses


def scene(centers, counts=(1,), size=(0.2, 0.4)):
    """Objects of one size at ``centers``, all of class 0."""
    boxes = torch.tensor([[x, y, *size] for x, y in centers]).view(-1, 4)
    image = torch.tensor([b for b, n in enumerate(counts) for _ in range(n)], dtype=torch.int64)
    empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    return Targets(boxes, torch.zeros(len(boxes), dtype=torch.int64), image, counts, *empty)


def woken(options=None):
    """A model of awake heads and a batch of two images; each layer drops a quarter of the queries of the one before."""
    model = wake_up(make_model({**DEHOMO, **(options or {})}))
    images = [
        make_image(64, 96, [[4, 6, 40, 50], [30, 8, 90, 60]], [0, 2]),
        make_image(50, 120, [[10, 10, 99, 40]], [1]),
    ]
    with torch.no_grad():
        for number, head in enumerate(model.routes["main"].decoder.class_heads):
            output = decode(model, images)[number]
            best = output.logits.amax(-1)[output.valid]
            head.bias += math.log(0.05 / 0.95) - best.quantile(0.25)
    return model, images


def test_a_layer_goes_on_with_the_queries_above_the_floor():
    model, images = woken()
    outputs = decode(model.eval(), images)
    for before, after in zip(outputs, outputs[1:]):
        assert torch.equal(after.valid, before.valid & (before.logits.sigmoid().amax(-1) > 0.05))
    assert 0 < outputs[1].valid.float().mean() < outputs[0].valid.float().mean()


def test_dropped_queries_have_no_detection_no_partner_and_no_loss():
    model, images = woken()
    predictions = predictions_of(model, images)
    final = predictions["final"]
    dropped = ~final.output.valid
    assert dropped.any()
    final.output.logits.retain_grad()
    losses, assignments = supervise(list(predictions.values()), scene([(0.5, 0.5), (0.5, 0.5)], (1, 1), size=(1, 1)))
    pairs = assignments["final"]
    assert len(pairs) == 2
    assert not dropped[pairs.image, pairs.query].any()
    losses["loss_class/final"].backward()
    assert (final.output.logits.grad[dropped] == 0).all() and (final.output.logits.grad[~dropped] != 0).any()
    with torch.no_grad():
        alive = decode(model.eval(), images)[-1].valid
        for image, output in enumerate(model(images)):
            assert alive[image][output["instances"].query_indices].all()
            assert len(output["instances"]) == 3 * alive[image].sum()


def state_behind(model, images, scores):
    """The main queries behind a first layer that gave them these (B, N) scores, all in one place."""
    memory = memory_of(model, images)
    previous = LayerOutput(torch.logit(scores)[..., None], torch.full((*scores.shape, 4), 0.5))
    return replace(DecoderState.of(model.sources["main"](memory)), history=(previous,)), memory


def test_dropped_queries_do_not_touch_the_others():
    torch.manual_seed(0)
    model, images = woken()
    layer = model.eval().routes["main"].decoder.layers[1]
    scores = torch.full((2, 12), 0.6)
    scores[:, 5:8] = 0.04
    state, memory = state_behind(model, images, scores)
    results = []
    for noise in (0.0, 100.0):
        content = state.content.clone()
        content[:, 5:8] += noise
        after = layer(state.with_content(content), memory)
        results.append(after.content[:, [0, 1, 2, 3, 4, 8, 9, 10, 11]])
    assert not after.alive[:, 5:8].any() and after.alive[:, :5].all()
    assert torch.equal(*results)
    assert torch.equal(after.valid, state.valid)  # which slots are queries stays known, so that a layer could call back


def test_with_nobody_alive_the_later_layers_have_no_loss_and_finite_gradients():
    """At the beginning: scores start at 0.01, below the floor."""
    model = make_model(DEHOMO)
    losses = model(woken()[1])
    assert losses["loss_class/layer1"] > 0
    assert all(losses[f"loss_{kind}/{layer}"] == 0 for kind in ("class", "l1", "giou") for layer in ("layer2", "final"))
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_training_logs_how_many_queries_are_alive():
    model, images = woken()
    with EventStorage() as storage:
        model(images)
        logged = {name: value for name, (value, _) in storage.latest().items()}
    assert 1 == logged["alive_share/layer1"] > logged["alive_share/layer2"] > logged["alive_share/final"] > 0


def test_boxes_are_regressed_by_the_first_layer_alone():
    model, images = woken()
    predictions = list(predictions_of(model, images).values())
    losses, _ = supervise(predictions, scene([(0.5, 0.5), (0.5, 0.5)], (1, 1), size=(1, 1)))
    later = sum(losses[f"loss_{kind}/{name}"] for kind in ("l1", "giou") for name in ("layer2", "final"))
    later.backward()
    decoder = model.routes["main"].decoder
    assert all(p.grad is None for layer in decoder.layers[1:] for p in layer.parameters())
    assert decoder.box_heads[0].last.weight.grad.abs().max() > 0 and len(decoder.box_heads) == 1


@pytest.mark.parametrize(("x", "matched"), [(0.399, False), (0.401, True), (0.5, True), (0.599, True), (0.601, False)])
def test_behind_a_generator_a_box_matches_only_where_its_centre_is_inside(x, matched):
    output = LayerOutput(torch.zeros(1, 1, 1), torch.tensor([[[x, 0.5, 0.2, 0.4]]]))
    targets = scene([(0.5, 0.5)])
    (plain,) = assign([predict("layer1", output, HungarianAssigner(MatchCost()))], targets)
    (strict,) = assign([predict("layer2", output, HungarianAssigner(AdmissibleCost()))], targets)
    assert len(plain) == 1 and len(strict) == matched


def test_an_empty_box_matches_nothing_behind_a_generator():
    output = LayerOutput(torch.zeros(1, 1, 1), torch.tensor([[[0.5, 0.5, 0.0, 0.4]]]))
    (pairs,) = assign([predict("layer2", output, HungarianAssigner(AdmissibleCost()))], scene([(0.5, 0.5)]))
    assert len(pairs) == 0


def test_forbidden_pairs_leave_the_best_of_the_allowed_matching():
    """Two objects, of which only one can be had by both boxes."""
    output = LayerOutput(torch.zeros(1, 2, 1), torch.tensor([[[0.3, 0.5, 0.2, 0.4], [0.33, 0.5, 0.2, 0.4]]]))
    targets = scene([(0.3, 0.5), (0.8, 0.5)], (2,))
    (pairs,) = assign([predict("layer2", output, HungarianAssigner(AdmissibleCost()))], targets)
    assert (pairs.query.tolist(), pairs.target.tolist()) == ([0], [0])


def test_only_layers_that_are_told_so_match_by_the_stricter_rule():
    options = {**DEHOMO, "MODEL.DETR.MATCHER.COST": ["focal_l1_giou", "focal_l1_giou", "center_inside"]}
    costs = [type(o.assigner.cost) for o in make_model(options).routes["main"].objectives]
    assert costs == [MatchCost, MatchCost, AdmissibleCost]


def test_the_early_stop_is_the_second_layers_output():
    model, images = woken()
    whole = decode(model.eval(), images)
    stopped, _ = woken({"MODEL.DETR.DECODER.TEST_LAYERS": 2})
    (early,) = decode(stopped.eval(), images)[-1:]
    assert torch.equal(early.logits, whole[1].logits) and torch.equal(early.valid, whole[1].valid)


def test_more_queries_at_inference_than_in_training():
    model, images = woken({"MODEL.DETR.QUERIES.NUM_TEST": 30})
    assert decode(model, images)[-1].logits.shape[1] == 12
    assert decode(model.eval(), images)[-1].logits.shape[1] == 30


# ----------------------------------------------------------------------------------------------------------------------
# GIoU-aware query selection


def overlapping(overlap):
    """A box that covers this share of an object of side 0.4, and the object."""
    return (0.5, 0.5, 0.4, 0.4 * overlap), (0.5, 0.5, 0.4, 0.4)


def one_pair(logit, box, wanted, grad=False):
    """One query with this box, matched with one object."""
    zero = torch.tensor([0])
    boxes = torch.tensor([[box]], requires_grad=grad)
    output = LayerOutput(torch.full((1, 1, 1), float(logit)), boxes)
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    return Matches(output, Assignment(zero, zero, zero), Targets(torch.tensor([wanted]), zero, zero, (1,), *none))


@pytest.mark.parametrize(
    ("logit", "target", "loss"),
    [(0, 0.5, 0.086643), (0, 0.7, 0.069315), (0, 0.9, 0.051986), (0, 1, 0.043322), (2, 0.7, 0.035149)]
    + [(2, 0.9, 0.003743)],
)
def test_known_values_of_the_soft_focal_loss(logit, target, loss):
    """Where the hull is the object, GIoU is IoU."""
    assert SoftFocalLoss()(one_pair(logit, *overlapping(target))).item() == pytest.approx(loss, abs=1e-6)


def test_with_hard_targets_it_is_the_focal_loss():
    torch.manual_seed(0)
    image, query = torch.tensor([0, 0, 1]), torch.tensor([1, 5, 2])
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    objects = torch.tensor([0, 1, 2])
    targets = Targets(torch.rand(3, 4) * 0.3 + 0.3, torch.tensor([0, 2, 1]), image, (2, 1), *none)
    boxes = torch.rand(2, 9, 4)
    boxes[image, query] = targets.boxes
    matches = Matches(LayerOutput(torch.randn(2, 9, 3), boxes), Assignment(image, query, objects), targets)
    torch.testing.assert_close(SoftFocalLoss()(matches), FocalLoss()(matches))


@pytest.mark.parametrize(
    ("box", "wanted", "giou", "loss"),
    [
        ((0.5, 0.5, 0.4, 0.4), (0.6, 0.5, 0.4, 0.4), 0.6, 0.077979),
        ((0.2, 0.5, 0.2, 0.2), (0.8, 0.5, 0.2, 0.2), -0.5, 0.173287),
    ],
)
def test_the_target_is_the_giou_and_never_below_its_least(box, wanted, giou, loss):
    pair = one_pair(0, box, wanted)
    released = SoftFocalLoss(min_target=-1.0)
    assert released.target(pair).item() == pytest.approx(giou, abs=1e-5)
    assert released(pair).item() == pytest.approx(loss, abs=1e-5)
    assert SoftFocalLoss().target(pair).item() == pytest.approx(max(giou, 0), abs=1e-5)
    assert SoftFocalLoss(min_target=0.1).target(pair).item() == pytest.approx(max(giou, 0.1), abs=1e-5)
    assert SoftFocalLoss("iou").target(pair).item() == pytest.approx(iou(box, wanted), abs=1e-5)


@pytest.mark.parametrize(("p", "gradient"), [(0.05, 1.0904), (0.9, -0.312)])
def test_the_released_target_pushes_an_unsure_box_away(p, gradient):
    """What SOFT_TARGET.GRADIENT False mends: dL/dt is 1.09 at p 0.05, t 0.7, and -0.31 at p 0.9."""
    pair = one_pair(math.log(p / (1 - p)), *overlapping(0.7), grad=True)
    SoftFocalLoss(target_gradient=True)(pair).sum().backward()
    height = pair.output.boxes.grad[0, 0, 3].item()
    assert height == pytest.approx(gradient / 0.4, rel=2e-3)  # t = height / 0.4


@pytest.mark.parametrize("released", [False, True])
def test_the_class_loss_reaches_the_boxes_only_as_released(released):
    boxes = torch.tensor([[[0.5, 0.5, 0.3, 0.4], [0.2, 0.2, 0.1, 0.1]]], requires_grad=True)
    output = LayerOutput(torch.full((1, 2, 1), -3.0), boxes)
    zero = torch.tensor([0])
    encoder = predict(
        "encoder",
        output,
        Assignment(zero, zero, zero),
        classification=SoftFocalLoss(target_gradient=released),
    )
    losses, _ = supervise([encoder], scene([(0.5, 0.5)]))
    giou = 1 - losses["loss_giou/encoder"].item() / 2
    p = 1 / (1 + math.exp(3))
    soft = (0.25 * giou + 0.75 * (1 - giou)) * (p + giou - 2 * p * giou) ** 2 * (math.log1p(math.exp(-3)) + giou * 3)
    background = 0.75 * p**2 * math.log1p(math.exp(-3))
    assert losses["loss_class/encoder"].item() == pytest.approx(2 * (soft + background), rel=1e-4)
    if released:
        losses["loss_class/encoder"].backward()
        assert boxes.grad[0, 0].abs().max() > 0 and (boxes.grad[0, 1] == 0).all()
    else:
        assert not losses["loss_class/encoder"].requires_grad


def test_only_the_encoder_has_soft_targets():
    model, images = woken()
    kinds = {name: type(p.objective.classification) for name, p in predictions_of(model, images).items()}
    assert kinds == {"encoder": SoftFocalLoss, "layer1": FocalLoss, "layer2": FocalLoss, "final": FocalLoss}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**DEHOMO, "MODEL.DETR.SOFT_TARGET.MEASURE": "diou"}, "SOFT_TARGET.MEASURE"),
        ({**DEHOMO, "MODEL.DETR.SOFT_TARGET.MIN": 2.0}, "SOFT_TARGET.MIN is 2.0"),
    ],
)
def test_a_setting_that_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_model(options)


# ----------------------------------------------------------------------------------------------------------------------
# Together with the rest


def test_paq_and_dh_detr_go_into_one_model():
    """Content from patterns, quality assignment in layers 1 and 2, the stricter matching in layers 2 and 3."""
    model, images = woken({**PATTERNS, **ASSIGNMENT})
    route = model.routes["main"]
    assert isinstance(model.sources["main"].content, PatternContent)
    interactions = [[type(i) for i in layer.interactions] for layer in route.decoder.layers]
    assert interactions == [[], [Dehomo], [Dehomo]]
    assigners = [o.assigner for o in route.objectives]
    assert [type(a) for a in assigners] == [QualityCountAssigner, QualityCountAssigner, HungarianAssigner]
    assert [type(a.cost) for a in assigners] == [MatchCost, AdmissibleCost, AdmissibleCost]
    losses = model(images)
    assert losses["loss_diversity"] > 0 and losses["loss_class/final"] > 0 and sum(losses.values()).isfinite()


def test_the_hybrid_branch_follows_the_box_loss_switch():
    options = {**PATTERNS, **ASSIGNMENT, **HYBRID, "MODEL.DETR.LOSS.REPEAT_BOX_LOSSES": False}
    model, images = woken(options)
    losses = model(images)
    assert "loss_l1/hybrid_layer1" in losses and "loss_l1/hybrid_final" not in losses


def test_the_best_class_decides_with_several_classes():
    model, images = woken()
    interaction = model.routes["main"].decoder.layers[1].interactions[0]
    logits = torch.full((1, 2, 3), -9.0)
    logits[0, 1, 2] = 0.0
    zeros = torch.zeros(1, 2, 64)
    state = DecoderState(zeros, torch.zeros(1, 2, 4), zeros, None, None, history=(LayerOutput(logits, zeros[..., :4]),))
    assert interaction(state, None).alive.tolist() == [[False, True]]
