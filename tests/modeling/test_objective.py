# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Matching and losses against loops."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from paq_detr.layers import intersection_over_own_area
from paq_detr.modeling import assignment as matcher
from paq_detr.modeling.assignment import HungarianAssigner, MatchCost, Pairs, assign
from paq_detr.modeling.losses import ClassificationLoss, FocalLoss, VarifocalLoss
from paq_detr.modeling.objective import box_losses, matched_pairs, supervise
from paq_detr.structures import Assignment, LayerOutput, Targets

from ..boxes import centred_giou, centred_iou
from .assemblies import predict


def scene(counts=(2, 0, 3), num_queries=6, num_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    targets = Targets(
        boxes=torch.rand(total, 4, generator=generator) * 0.4 + 0.1,
        labels=torch.randint(0, num_classes, (total,), generator=generator),
        image=torch.tensor([b for b, n in enumerate(counts) for _ in range(n)], dtype=torch.int64),
        counts=tuple(counts),
        ignore_boxes=torch.zeros(0, 4),
        ignore_image=torch.zeros(0, dtype=torch.int64),
    )
    shape = (len(counts), num_queries)
    logits = torch.randn(*shape, num_classes, generator=generator)
    return LayerOutput(logits, torch.rand(*shape, 4, generator=generator) * 0.4 + 0.1), targets


def pair_cost(output, targets, b, query, target):
    """2 focal + 5 L1 - 2 GIoU; specs of Deformable DETR."""
    p = output.logits[b, query, targets.labels[target]].sigmoid().item()
    focal = -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)
    box, wanted = output.boxes[b, query].tolist(), targets.boxes[target].tolist()
    l1 = sum(abs(u - v) for u, v in zip(box, wanted))
    return 2 * focal + 5 * l1 - 2 * centred_giou(box, wanted)


@pytest.mark.parametrize("seed", range(5))
def test_the_hungarian_assignment_is_the_cheapest_of_all(seed):
    output, targets = scene(seed=seed)
    (pairs,) = assign([predict("final", output, HungarianAssigner(MatchCost()))], targets)
    found = list(zip(pairs.image.tolist(), pairs.query.tolist(), pairs.target.tolist()))
    for b, (start, stop) in enumerate(zip(targets.offsets, targets.offsets[1:])):
        ours = sum(pair_cost(output, targets, *pair) for pair in found if pair[0] == b)
        best = min(
            sum(pair_cost(output, targets, b, q, t) for q, t in zip(chosen, range(start, stop)))
            for chosen in itertools.permutations(range(6), stop - start)
        )
        assert ours == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("kind", ["random", "alike", "mostly_forbidden"])
def test_leaving_out_hopeless_queries_keeps_the_least_total_cost(kind, copies):
    generator = np.random.default_rng(0)
    cost = generator.random((9, 2000)).astype(np.float32)
    if kind == "alike":  # all objects want the same few
        cost = 0.001 * cost + generator.random(2000, dtype=np.float32)
    elif kind == "mostly_forbidden":
        cost[generator.random(cost.shape) < 0.998] = matcher.FORBIDDEN
    targets = scene(counts=(4, 0, 5))[1]
    query, target, *_ = matcher.solve_images(cost, np.full(9, copies), targets)
    best = 0.0
    for start, stop in ((0, 4), (4, 9)):
        rows = np.repeat(np.arange(start, stop), copies)
        row, column = linear_sum_assignment(cost[rows])
        taken = cost[rows[row], column]
        best += taken[taken < matcher.FORBIDDEN].sum()
    assert cost[target, query].sum() == pytest.approx(best, rel=1e-5)


def test_all_predictions_go_to_the_host_in_one_copy(monkeypatch):
    copies = []
    to_host = matcher._to_host
    monkeypatch.setattr(matcher, "_to_host", lambda tensors: copies.append(len(tensors)) or to_host(tensors))
    assigner = HungarianAssigner(MatchCost())
    outputs = [scene(seed=s)[0] for s in range(3)] + [scene(num_queries=9)[0]]
    assign([predict(str(i), o, assigner) for i, o in enumerate(outputs)], scene()[1])
    assert copies == [2]  # one call; layers of one shape measured together


@pytest.fixture(params=[1, matcher.CROWDED], ids=["side by side", "in turn"])
def crowded(request, monkeypatch):
    monkeypatch.setattr(matcher, "CROWDED", request.param)


def test_assignments_come_back_in_the_order_of_the_predictions(crowded):
    targets = scene()[1]
    assigner = HungarianAssigner(MatchCost())
    outputs = [scene(seed=1)[0], scene(num_queries=9, seed=2)[0], scene(seed=3)[0]]
    together = assign([predict(str(i), o, assigner) for i, o in enumerate(outputs)], targets)
    for output, pairs in zip(outputs, together):
        (alone,) = assign([predict("", output, assigner)], targets)
        assert torch.equal(pairs.query, alone.query) and torch.equal(pairs.target, alone.target)


def test_known_pairs_are_kept():
    output, targets = scene()
    known = Assignment(torch.tensor([0]), torch.tensor([4]), torch.tensor([1]))
    assert assign([predict("dn", output, known)], targets) == [known]


def test_more_objects_than_queries_leaves_objects_out():
    output, targets = scene(counts=(9,))
    (pairs,) = assign([predict("final", output, HungarianAssigner(MatchCost()))], targets)
    assert sorted(pairs.query.tolist()) == list(range(6))


def losses_by_hand(output, targets, pairs, varifocal):
    """Sums over all queries and pairs, not yet divided."""
    found = {(b, q): t for b, q, t in zip(pairs.image.tolist(), pairs.query.tolist(), pairs.target.tolist())}
    classification = l1 = giou = 0.0
    for b, q, k in np.ndindex(*output.logits.shape):
        p = output.logits[b, q, k].sigmoid().item()
        target = found.get((b, q))
        hit = target is not None and targets.labels[target] == k
        if varifocal:
            t = centred_iou(output.boxes[b, q].tolist(), targets.boxes[target].tolist()) if hit else 0.0
            weight = t if hit else 0.75 * p**2
            classification += weight * -(t * math.log(p) + (1 - t) * math.log(1 - p))
        else:
            classification += -0.25 * (1 - p) ** 2 * math.log(p) if hit else -0.75 * p**2 * math.log(1 - p)
    for (b, q), target in found.items():
        box, wanted = output.boxes[b, q].tolist(), targets.boxes[target].tolist()
        l1 += sum(abs(u - v) for u, v in zip(box, wanted))
        giou += 1 - centred_giou(box, wanted)
    return classification, l1, giou


@pytest.mark.parametrize("loss", [FocalLoss(), VarifocalLoss()], ids=["focal", "varifocal"])
def test_losses_are_sums_over_queries_and_pairs_by_the_number_of_objects(loss):
    output, targets = scene()
    assigner = HungarianAssigner(MatchCost(), copies=2)
    p = predict("layer1", output, assigner, scale=0.25, classification=loss, class_weight=1.5)
    p.objective = replace(p.objective, scale=2.0)
    losses, assignments = supervise([p], targets)
    assert len(assignments["layer1"]) == 10  # the divisor is still 5
    expected = losses_by_hand(output, targets, assignments["layer1"], isinstance(loss, VarifocalLoss))
    for name, weight, value in zip(("class", "l1", "giou"), (1.5, 5.0, 2.0), expected):
        assert losses[f"loss_{name}/layer1"].item() == pytest.approx(0.5 * weight * value / 5, rel=1e-4)


def test_pair_weights_scale_the_losses_of_their_pair():
    output, targets = scene()
    image, query, target = torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([0, 4])

    def total(weight):
        pairs = Assignment(image, query, target, weight)
        return {k: v.item() for k, v in supervise([predict("x", output, pairs)], targets)[0].items()}

    plain, doubled = total(None), total(torch.tensor([2.0, 2.0]))
    assert doubled["loss_l1/x"] == pytest.approx(2 * plain["loss_l1/x"])
    assert doubled["loss_giou/x"] == pytest.approx(2 * plain["loss_giou/x"])
    assert total(torch.ones(2)) == pytest.approx(plain)


def test_binary_predictions_know_one_class_only():
    output, targets = scene()
    pairs = Assignment(torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))
    targets.labels[:] = 2
    output.logits.requires_grad_()
    losses, _ = supervise([predict("encoder", output, pairs, view=Targets.binary)], targets)
    losses["loss_class/encoder"].backward()
    assert output.logits.grad[0, 1, 0] < 0 < output.logits.grad[0, 1, 2]


def test_filling_slots_have_no_loss():
    output, targets = scene()
    output.valid = torch.ones(3, 6, dtype=torch.bool)
    output.valid[1] = False
    output.logits.requires_grad_()
    losses, _ = supervise([predict("x", output, HungarianAssigner(MatchCost()))], targets)
    losses["loss_class/x"].backward()
    assert (output.logits.grad[1] == 0).all() and (output.logits.grad[0] != 0).all()


def test_overlap_with_a_region_is_measured_by_the_boxs_own_area():
    boxes = torch.tensor([[[0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 1.0], [0.9, 0.5, 0.1, 0.1]]])
    regions = torch.tensor([[0.25, 0.5, 0.5, 1.0]])
    torch.testing.assert_close(intersection_over_own_area(boxes, regions), torch.tensor([[1.0, 0.5, 0.0]]))


def test_two_predictions_of_one_name_are_refused():
    output, targets = scene()
    twins = [predict("final", output, HungarianAssigner(MatchCost())) for _ in range(2)]
    with pytest.raises(ValueError, match="several predictions are called final"):
        supervise(twins, targets)


def test_pairs_can_be_found_on_one_output_and_losses_taken_on_another():
    """Matching on priors (Mr. DETR's encoder)."""
    (priors, targets), (output, _) = scene(seed=1), scene(seed=2)
    p = predict("encoder", output, HungarianAssigner(MatchCost()))
    p.match = priors
    losses, assignments = supervise([p], targets)
    (on_priors,) = assign([predict("x", priors, HungarianAssigner(MatchCost()))], targets)
    assert torch.equal(assignments["encoder"].query, on_priors.query)
    by_hand = losses_by_hand(output, targets, on_priors, varifocal=False)
    assert losses["loss_l1/encoder"].item() == pytest.approx(5 * by_hand[1] / 5, rel=1e-4)


def test_a_prediction_can_bring_targets_of_its_own():
    """Patches are small images: their objects are not the batch's, the divisor is (ASAG)."""
    (output, targets), (patches, patch_targets) = scene(seed=1), scene(counts=(1, 2, 0, 1), seed=2)
    p = predict("anchors", patches, HungarianAssigner(MatchCost()))
    p.targets = patch_targets
    final = predict("final", output, HungarianAssigner(MatchCost()))
    losses, assignments = supervise([p, final], targets)
    assert assignments["anchors"].target.tolist() == [0, 1, 2, 3] and len(assignments["final"]) == 5
    by_hand = losses_by_hand(patches, patch_targets, assignments["anchors"], varifocal=False)
    assert losses["loss_class/anchors"].item() == pytest.approx(2 * by_hand[0] / 5, rel=1e-4)


class Ranked(HungarianAssigner):
    """Weights and ranks beside the pairs, and a look at the layer before."""

    def __init__(self):
        super().__init__(MatchCost())
        self.seen = []

    def solve(self, measured, targets, previous=None):
        self.seen.append(previous)
        pairs = super().solve(measured, targets)
        return Pairs(pairs.query, pairs.target, np.arange(len(pairs.query)) + 0.5, np.arange(len(pairs.query)) % 2)


def test_an_assigners_weights_and_ranks_reach_the_loss_and_it_sees_the_layer_before(crowded):
    output, targets = scene()
    assigner = Ranked()
    layers = [predict(name, output, assigner, view=None) for name in ("layer1", "final")]
    layers[1].after = "layer1"
    losses, assignments = supervise(layers, targets)
    assert assigner.seen[0] is None and assigner.seen[1].query.tolist() == assignments["layer1"].query.tolist()
    final = assignments["final"]
    assert final.rank.tolist() == [0, 1, 0, 1, 0]
    torch.testing.assert_close(final.weight, torch.arange(5) + 0.5)
    by_pair = (output.boxes[final.image, final.query] - targets.boxes[final.target]).abs().sum(-1)
    assert losses["loss_l1/final"].item() == pytest.approx((5 * by_pair * final.weight).sum().item() / 5, rel=1e-5)


class HalvedGIoU(ClassificationLoss):
    """A class loss whose view of a pair scales GIoU, and not L1."""

    def __call__(self, matches):
        return matches.spread(1 - matches.scores)

    def pair_factors(self, matches):
        return {"giou": torch.full((len(matches.pairs),), 0.5)}


def test_a_class_loss_can_scale_giou_and_not_l1():
    output, targets = scene()
    plain, _ = supervise([predict("x", output, HungarianAssigner(MatchCost()))], targets)
    halved, _ = supervise([predict("x", output, HungarianAssigner(MatchCost()), classification=HalvedGIoU())], targets)
    assert halved["loss_l1/x"] == plain["loss_l1/x"]
    assert halved["loss_giou/x"].item() == pytest.approx(plain["loss_giou/x"].item() / 2)


def test_losses_of_pairs_and_normalizers_can_be_exchanged():
    """One without boxes; one more loss (as masks are); a divisor of matched pairs."""
    output, targets = scene()
    assigner = HungarianAssigner(MatchCost(), copies=2)
    without, _ = supervise([predict("x", output, assigner, pair_losses={})], targets)
    assert set(without) == {"loss_class/x"}
    more = {**box_losses(), "ones": (3.0, lambda matches: torch.ones(len(matches.pairs)))}
    with_ones, _ = supervise([predict("x", output, assigner, pair_losses=more)], targets)
    assert with_ones["loss_ones/x"].item() == pytest.approx(3 * 10 / 5)
    by_pairs, _ = supervise([predict("x", output, assigner, normalizer=matched_pairs)], targets)
    assert by_pairs["loss_l1/x"].item() == pytest.approx(with_ones["loss_l1/x"].item() / 2)
