# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""DDQ-DETR's dense queries, which are there in training only, against numbers worked out by hand."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from paq_detr.modeling.losses import Matches
from paq_detr.modeling.objective import supervise
from paq_detr.papers.ddq_detr import DenseAssigner, DenseCost, DenseLoss, build_dense_objective
from paq_detr.structures import Assignment, DecoderState, LayerOutput, QuerySet, Targets

from ..modeling.assemblies import DDQ, make_cfg, make_model, memory_of, predict, wake_up
from .test_ddq_detr import IMAGES, count


def logit(p):
    return math.log(p / (1 - p))


def dense_scene(pairs, others=(), num_objects=1, images=1):
    """Queries of known (score, IoU, object) and others of known scores, one class, and their matches.

    All objects are the middle box; a box of the same width and a share of the height overlaps by that share.
    """
    boxes = [[0.5, 0.5, 0.4, 0.4 * iou] for _, iou, _ in pairs] + [[0.1, 0.1, 0.1, 0.1]] * len(others)
    logits = torch.tensor([logit(s) for s, *_ in pairs] + [logit(s) for s in others])[None, :, None]
    output = LayerOutput(logits.repeat(images, 1, 1).requires_grad_(), torch.tensor([boxes]).repeat(images, 1, 1))
    zeros, number = torch.zeros(num_objects, dtype=torch.int64), len(pairs)
    targets = Targets(
        torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(num_objects, 1),
        zeros,
        zeros,
        (num_objects,) + (0,) * (images - 1),
        torch.zeros(0, 4),
        zeros[:0],
    )
    objects = torch.tensor([o for *_, o in pairs], dtype=torch.int64)
    return output, Assignment(torch.zeros(number, dtype=torch.int64), torch.arange(number), objects), targets


def layer_of(scene):
    """The scene's output as a stack of one layer, as costs want it, and its targets."""
    output, _, targets = scene
    return LayerOutput(output.logits.detach()[None], output.boxes[None]), targets


FOUR = [(0.9, 0.8, 0), (0.5, 0.9, 0), (0.2, 0.5, 0), (0.1, 0.3, 0)]
TARGETS = [0.799097, 0.900000, 0.010584, 0.000247]


def test_targets_of_an_objects_queries_rise_with_score_and_iou():
    output, pairs, targets = dense_scene(FOUR)
    loss, matches = DenseLoss(), Matches(output, pairs, targets)
    assert loss.target(matches).tolist() == pytest.approx(TARGETS, abs=2e-6)
    assert loss.normalizer(matches).item() == pytest.approx(1.709928, abs=2e-6)
    assert loss(matches).flatten().tolist() == pytest.approx([0.005567, 0.110903, 0.008532, 0.001054], abs=2e-6)


def test_each_object_has_a_best_query_of_its_own():
    output, pairs, targets = dense_scene([*FOUR, (0.3, 0.6, 1)], num_objects=2)
    found = DenseLoss().target(Matches(output, pairs, targets)).tolist()
    assert found == pytest.approx([*TARGETS, 0.6], abs=1e-5)


def test_the_dense_losses_are_divided_by_the_sum_of_targets_and_have_no_l1():
    output, pairs, targets = dense_scene(FOUR)
    objective = build_dense_objective(make_cfg(DDQ))
    losses, _ = supervise([replace(predict("x", output, pairs), objective=objective)], targets)
    assert set(losses) == {"loss_class/x", "loss_giou/x"}
    assert losses["loss_class/x"].item() == pytest.approx(0.073720, abs=2e-6)
    by_hand = sum(t * (1 - iou) for t, (_, iou, _) in zip(TARGETS, FOUR))  # nested boxes: GIoU is IoU
    assert losses["loss_giou/x"].item() == pytest.approx(2 * by_hand / sum(TARGETS), abs=1e-5)


def test_other_entries_are_weighted_by_their_score_with_a_gradient():
    output, pairs, targets = dense_scene([], others=[0.4])
    loss = DenseLoss()(Matches(output, pairs, targets)).sum()
    assert loss.item() == pytest.approx(0.081732, abs=2e-6)
    loss.backward()
    s = 0.4  # d/dz of -s^2 log(1 - s), s = sigmoid(z)
    assert output.logits.grad.item() == pytest.approx(s**3 - 2 * s**2 * (1 - s) * math.log(1 - s), abs=1e-5)


def test_images_without_objects_have_no_dense_loss():
    output, pairs, targets = dense_scene(FOUR, others=[0.7], images=2)
    losses = DenseLoss()(Matches(output, pairs, targets))
    assert (losses[0] > 0).all() and (losses[1] == 0).all()
    nothing = dense_scene([], others=[0.7], num_objects=0)
    loss = DenseLoss()(Matches(*nothing)).sum() / DenseLoss().normalizer(Matches(*nothing)).clamp(min=1)
    loss.backward()
    assert loss == 0 and (nothing[0].logits.grad == 0).all()


@pytest.mark.parametrize(
    ("score", "intended", "released"),
    [(0.01, 2.256762, -0.179273), (0.5, -0.173287, -0.532331), (0.9, -2.797114, -0.926759)],
)
def test_a_second_sigmoid_makes_the_dense_class_cost_flat(score, intended, released):
    output, targets = layer_of(dense_scene([(score, 1.0, 0)]))
    for second, cost in ((False, intended), (True, released)):
        assert DenseCost(2.0, 5.0, 0.0, second_sigmoid=second)(output, targets).item() == pytest.approx(cost, abs=5e-6)


def test_the_dense_cost_measures_l1_between_corners():
    """Of a box half as high, moved by 0.05: two edges are 0.1 off, two 0.05."""
    output, targets = layer_of(dense_scene([(0.5, 0.5, 0)]))
    moved = replace(output, boxes=output.boxes + torch.tensor([0.05, 0.0, 0.0, 0.0]))
    with_l1, without = (DenseCost(0.0, weight, 2.0)(moved, targets).item() for weight in (5.0, 0.0))
    assert with_l1 - without == pytest.approx(5 * (0.1 + 0.1 + 0.05 + 0.05), abs=1e-5)
    broken = replace(output, boxes=torch.full_like(output.boxes, float("nan")))
    assert DenseCost()(broken, targets).isfinite().all()


@pytest.mark.parametrize(("objects", "copies"), [(337, 4), (338, 3), (451, 2), (676, 1), (1351, 1)])
def test_objects_are_repeated_as_often_as_there_are_queries(objects, copies, monkeypatch):
    asked = []
    monkeypatch.setattr("paq_detr.papers.ddq_detr.solve_images", lambda cost, n, targets: asked.append(n))
    _, _, targets = dense_scene([], num_objects=objects, images=2)
    DenseAssigner(DenseCost(), 4).solve([torch.zeros(objects, 1350).numpy()], targets)
    assert asked[0].tolist() == [copies] * objects


def test_distinct_proposals_can_be_matched_on_their_priors_too():
    model = make_model({**DDQ, "MODEL.DETR.QUERIES.MATCH_ON_PRIORS": True})
    (encoder,) = model.sources["main"](memory_of(model, IMAGES)).predictions
    assert encoder.match is not None and not torch.equal(encoder.match.boxes, encoder.output.boxes)


def test_the_dense_route_takes_more_proposals_of_its_own_heads_whether_distinct_or_not():
    model = wake_up(make_model(DDQ))
    dense, memory = model.sources["dense"], memory_of(model, IMAGES)
    queries = dense(memory)
    assert queries.content.shape == (2, 18, 64) and queries.valid.all()
    main = model.sources["main"]
    usable = main.propose(memory).valid
    state = main.project_norm(main.project(memory.tokens * usable[..., None]))
    scores = dense.class_head(state).amax(-1).masked_fill(~usable, -math.inf)
    index = scores.topk(18).indices
    rows = memory.tokens.detach()[torch.arange(2)[:, None], index]
    torch.testing.assert_close(queries.content, model.sources["main"].content.map(rows))
    (encoder,) = queries.predictions
    torch.testing.assert_close(encoder.output.boxes.detach(), queries.reference)
    assert encoder.name == "encoder" and encoder.objective is model.routes["dense"].objectives[0]


def test_heads_of_dense_queries_start_as_copies():
    model = make_model(DDQ)
    main, dense = model.routes["main"].decoder, model.routes["dense"].decoder
    for own in dense.class_heads:
        assert torch.equal(own.weight, main.class_heads[-1].weight) and own.weight is not main.class_heads[-1].weight
    names = {name.split(".")[3] for name, _ in model.named_parameters() if name.startswith("routes.dense")}
    assert names == {"class_heads", "box_heads"}
    assert {name.split(".")[2] for name, _ in model.named_parameters() if name.startswith("sources.dense")} == {
        "class_head",
        "box_head",
    }


def test_a_pass_of_their_own_is_the_pass_beside_distinct_queries_behind_a_mask():
    """As the release runs them; dense queries have no selection."""
    model = wake_up(make_model(DDQ))
    memory = memory_of(model, IMAGES)
    main, dense = model.sources["main"](memory), model.sources["dense"](memory)
    decoder, split = model.routes["main"].decoder, main.content.shape[1]
    mask = torch.ones(split + dense.content.shape[1], split + dense.content.shape[1], dtype=torch.bool)
    mask[:split, :split] = mask[split:, split:] = False
    both = QuerySet(
        content=torch.cat([main.content, dense.content], 1),
        reference=torch.cat([main.reference, dense.reference], 1),
        valid=torch.cat([main.valid, dense.valid], 1),
        attention_mask=mask,
    )
    together = decoder.step(0, DecoderState.of(both), memory).content
    apart = [decoder.step(0, DecoderState.of(queries), memory).content for queries in (main, dense)]
    torch.testing.assert_close(together, torch.cat(apart, 1))
    alive = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: alive.append(inputs[0].alive))
    model.routes["dense"](dense, memory)
    assert len(alive) == 3 and all(a.all() for a in alive)


def test_deleted_dense_queries_change_nothing_that_is_predicted():
    model = wake_up(make_model(DDQ)).eval()
    slim = copy.deepcopy(model)
    slim.drop_training_parts()
    pair = count(model.sources["main"].class_head) + count(model.sources["main"].box_head)
    assert count(model) - count(slim) == 4 * pair + 3 * 64  # dense pairs of the encoder and three layers, label table
    with torch.no_grad():
        for a, b in zip(model(IMAGES), slim(IMAGES)):
            assert torch.equal(a["instances"].scores, b["instances"].scores)
            assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
