# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Mr. DETR's one-to-many assignment on hand-made tables and against a loop; the losses that follow from it."""

import math

import numpy as np
import pytest
import torch

from paq_detr.modeling.losses import FocalLoss, Matches
from paq_detr.modeling.objective import supervise
from paq_detr.papers.mr_detr_assignment import MixedQualityAssigner, OneClassPerQuery, RankedAlignLoss
from paq_detr.structures import Assignment, LayerOutput, Targets

from ..modeling.assemblies import predict


def targets_of(*counts, labels=None):
    total = sum(counts)
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = torch.zeros(total, dtype=torch.int64) if labels is None else torch.tensor(labels)
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(total, 1)
    return Targets(boxes, labels, image, counts, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def solve(quality, *counts, **options):
    """(object, query) pairs in order."""
    quality = np.asarray(quality, dtype=np.float32)
    pairs = MixedQualityAssigner(**options).solve([quality], targets_of(*(counts or (len(quality),))))
    return list(zip(pairs.target.tolist(), pairs.query.tolist())), pairs


def by_loops(quality, tau, k):
    """The published steps, query by query, without the cap."""
    num_objects, num_queries = quality.shape
    owner, positive = {}, set()
    for query in range(num_queries):
        owner[query] = max(range(num_objects), key=lambda j: quality[j, query])
        if quality[owner[query], query] >= tau:
            positive.add(query)
    for j in range(num_objects):
        positive.add(max(range(num_queries), key=lambda query: quality[j, query]))
    pairs = []
    for j in range(num_objects):
        count = sum(owner[query] == j for query in positive)
        ranked = sorted(range(num_queries), key=lambda query: -quality[j, query])
        pairs += [(j, query) for query in ranked[: min(count, k)]]
    return pairs


@pytest.mark.parametrize("seed", range(8))
def test_the_assignment_is_the_published_loop(seed):
    generator = np.random.default_rng(seed)
    shape = generator.integers(1, 7), generator.integers(3, 40)
    quality = generator.random(shape).astype(np.float32) ** 2
    found, pairs = solve(quality, tau=0.4, k=3)
    assert found == by_loops(quality, 0.4, 3)
    for j in range(len(quality)):
        assert pairs.rank[pairs.target == j].tolist() == list(range((pairs.target == j).sum()))


# Queries that are positive belong to their best object; then objects take the best of all queries.
TABLES = {
    "threshold": ([[0.5, 0.4, 0.39, 0.1]], [(0, 0), (0, 1)]),
    "rescue_below_the_threshold": ([[0.1, 0.3, 0.2]], [(0, 1)]),
    "rescue_at_nothing": ([[0.0, 0.0]], [(0, 0)]),
    "at_most_k": ([[0.9, 0.5, 0.8, 0.7, 0.6]], [(0, 0), (0, 2), (0, 3)]),
    "a_query_of_two_objects": ([[0.9, 0.8, 0.1, 0.0], [0.8, 0.1, 0.7, 0.5]], [(0, 0), (0, 1), (1, 0), (1, 2)]),
    "an_object_without_any": ([[0.9, 0.8], [0.5, 0.2]], [(0, 0), (0, 1)]),
}


@pytest.mark.parametrize(("quality", "pairs"), TABLES.values(), ids=TABLES.keys())
def test_hand_made_tables(quality, pairs):
    assert solve(quality, tau=0.4, k=3)[0] == pairs


MENDED = {
    "contested": (TABLES["a_query_of_two_objects"][0], [(0, 0), (0, 1), (1, 2)]),
    "none_left_without": (TABLES["an_object_without_any"][0], [(0, 0), (0, 1)]),
    "the_best_that_is_free": ([[0.9, 0.8, 0.1], [0.5, 0.2, 0.3]], [(0, 0), (0, 1), (1, 2)]),
    "more_objects_than_queries": ([[0.9], [0.5]], [(0, 0)]),
}


@pytest.mark.parametrize(("quality", "pairs"), MENDED.values(), ids=MENDED.keys())
def test_mended_no_query_has_two_objects_and_no_object_none_while_there_are_queries(quality, pairs):
    assert solve(quality, tau=0.4, k=3, one_object_per_query=True)[0] == pairs


@pytest.mark.parametrize("seed", range(4))
def test_mended_pairs_are_disjoint_ranked_and_complete(seed):
    quality = np.random.default_rng(seed).random((6, 20))
    _, pairs = solve(quality, k=3, one_object_per_query=True)
    assert len(set(pairs.query)) == len(pairs.query) and set(pairs.target) == set(range(6))
    for j in range(6):
        own = pairs.target == j
        assert pairs.rank[own].tolist() == list(range(own.sum())) and own.sum() <= 3
        assert (np.diff(quality[j, pairs.query[own]]) <= 0).all()


def test_images_are_solved_apart_and_one_without_objects_has_no_pairs():
    quality = np.array([[0.5, 0.9, 0.1], [0.2, 0.6, 0.7]])
    assert solve(quality, 1, 0, 1)[0] == [(0, 1), (0, 0), (1, 2), (1, 1)]
    assert solve(np.zeros((0, 3)), 0, 0)[0] == []


def test_filling_slots_and_what_is_not_finite_are_never_taken():
    output = LayerOutput(torch.zeros(1, 1, 4, 1), torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(1, 1, 4, 1))
    output.valid = torch.tensor([[[True, False, True, True]]])
    output.boxes[0, 0, 3] = float("nan")
    assigner = MixedQualityAssigner()
    (quality,) = assigner.measure(output, targets_of(1))
    torch.testing.assert_close(quality[0, 0, [0, 2]], torch.full((2,), 0.3 * 0.5 + 0.7))
    pairs = assigner.solve([quality[0].numpy()], targets_of(1))
    assert pairs.query.tolist() == [0, 2]
    output.valid[:] = False
    (quality,) = assigner.measure(output, targets_of(1))
    assert len(assigner.solve([quality[0].numpy()], targets_of(1)).query) == 0


def test_positives_beyond_the_cap_are_left_out_by_numpys_generator():
    quality = np.full((2, 40), 0.9) - np.linspace(0, 0.1, 40)
    quality[1] -= 0.01
    quality[1, 20:] += 0.02  # 20 each
    counts = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        _, pairs = solve(quality, k=40, cap=11)
        counts.append(np.bincount(pairs.target, minlength=2).tolist())
    assert all(sum(count) == 11 for count in counts)
    assert counts[0] == counts[1] != counts[2]


# ----------------------------------------------------------------------------------------------------------------------
# Losses


def double_pairs():
    """Query 0 has object 0 (class 0) and object 1 (class 1); query 1 has none."""
    targets = targets_of(2, labels=[0, 1])
    output = LayerOutput(torch.zeros(1, 2, 3, requires_grad=True), torch.tensor([[[0.5, 0.5, 0.4, 0.2]] * 2]))
    zeros = torch.zeros(2, dtype=torch.int64)
    return output, Assignment(zeros, zeros, torch.arange(2), rank=zeros), targets


def test_a_query_of_two_objects_learns_the_class_of_the_last_and_both_boxes():
    output, pairs, targets = double_pairs()
    losses, _ = supervise([predict("x", output, pairs, classification=OneClassPerQuery(FocalLoss()))], targets)
    (gradient,) = torch.autograd.grad(losses["loss_class/x"], [output.logits])
    assert (gradient[0, 0] < 0).tolist() == [False, True, False]
    assert (gradient[0, 1] > 0).all()
    assert losses["loss_l1/x"].item() == pytest.approx(5 * 2 * 0.2 / 2)  # two pairs, over two objects


def test_values_of_a_query_of_two_objects_are_those_of_the_last_pair():
    output, pairs, targets = double_pairs()
    targets.boxes[1, 3] = 0.2  # the second object fits
    seen = []

    class Spreading(FocalLoss):
        def __call__(self, matches):
            seen.append(matches.spread(matches.iou))
            return super().__call__(matches)

    OneClassPerQuery(Spreading())(Matches(output, pairs, targets))
    assert seen[0][0, 0].tolist() == [0, 1, 0]


def align_matches(ranked):
    """Three queries of one object with scores and IoUs that rank them 2, 0, 1 by s^0.25 u^0.75."""
    ious = torch.tensor([0.3, 0.9, 0.6])
    boxes = torch.stack([torch.tensor([0.5, 0.5, 0.4, 0.4 * u]) for u in ious])[None]
    output = LayerOutput(torch.zeros(1, 3, 1), boxes)
    zeros, queries = torch.zeros(3, dtype=torch.int64), torch.arange(3)
    return Matches(output, Assignment(zeros, queries, zeros, rank=queries if ranked else None), targets_of(1)), ious


@pytest.mark.parametrize(("ranked", "ranks"), [(True, [2, 0, 1]), (False, [0, 0, 0])])
def test_rank_weights_count_where_the_assigner_ranked_and_spare_the_l1_loss(ranked, ranks):
    matches, ious = align_matches(ranked)
    loss = RankedAlignLoss()
    target, weight = loss.target_and_weight(matches)
    assert weight.tolist() == pytest.approx([math.exp(-r / 1.5) for r in ranks])
    assert target.tolist() == pytest.approx([0.5**0.25 * u**0.75 for u in ious.tolist()], rel=1e-4)
    factors = loss.pair_factors(matches)
    assert factors.keys() == {"giou"} and torch.equal(factors["giou"], weight)
