# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""PaQ-DETR's equations as short loops, and the code against them."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from paq_detr import ops
from paq_detr.errors import UserError
from paq_detr.modeling.assignment import HungarianAssigner, MatchCost, assign
from paq_detr.modeling.losses import Matches, VarifocalLoss
from paq_detr.modeling.proposals import taken
from paq_detr.papers.paq import PatternContent, QualityCountAssigner, WeightGenerator, diversity_loss
from paq_detr.structures import Assignment, Grid, LayerOutput, Memory, Targets

from ..boxes import centred_iou as iou
from ..modeling.assemblies import (
    ASSIGNMENT,
    HYBRID,
    PATTERNS,
    PLUSPLUS,
    make_image,
    make_model,
    memory_of,
    predict,
    predictions_of,
    wake_up,
)


def make_memory(sizes=((64, 96), (40, 70)), padded=(64, 96), dim=64, levels=3, seed=0):
    strides = (8, 16, 32)[:levels]
    shapes = [tuple(-(-side // s) for side in padded) for s in strides]
    valid = [[tuple(-(-side // s) for side in size) for s in strides] for size in sizes]
    grid = Grid(shapes, strides, sizes, padded, valid)
    tokens = torch.randn(len(sizes), sum(grid.level_sizes), dim, generator=torch.Generator().manual_seed(seed))
    if grid.padding is not None:
        tokens = tokens * ~grid.padding[..., None]
    return Memory(tokens, torch.zeros_like(tokens), grid)


def make_generator(**options):
    torch.manual_seed(0)
    sizes = {"num_queries": 7, "num_patterns": 5, "embed_dim": 64, "num_levels": 3, "rank": 16}
    return WeightGenerator(**{**sizes, **options})


variants = pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "eca_coord"},
        {"fusion": "mean"},
        {"head": "factored"},
        {"fusion": "mean", "head": "factored"},
        {"masked_pool": False},
    ],
    ids=lambda o: "-".join(map(str, o.values())) or "default",
)


@variants
def test_weights_are_rows_that_sum_to_one(options):
    weights = make_generator(**options)(make_memory())
    assert weights.shape == (2, 7, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 7))
    assert (weights >= 0).all()


@variants
def test_weights_depend_on_the_image(options):
    weights = make_generator(**options)(make_memory())
    assert (weights[0] - weights[1]).abs().max() > 1e-3


def test_content_lies_in_the_hull_of_the_patterns():
    content = PatternContent(num_patterns=5, embed_dim=64, generator=make_generator())
    queries = content(make_memory())
    longest = content.patterns.norm(dim=-1).max()
    assert (queries.norm(dim=-1) <= longest + 1e-5).all()
    weights = content.generator(make_memory())
    for image in range(2):
        for i in range(7):
            by_hand = sum(weights[image, i, j] * content.patterns[j] for j in range(5))  # Eq. 4
            torch.testing.assert_close(queries[image, i], by_hand)


def test_one_matched_query_reaches_every_pattern():
    content = PatternContent(num_patterns=5, embed_dim=64, generator=make_generator())
    content(make_memory())[0, 3].sum().backward()
    assert (content.patterns.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("options", [{}, {"attention": "eca_coord"}, {"fusion": "mean"}], ids=str)
def test_padding_an_image_further_leaves_its_weights(options):
    tight = make_memory(sizes=((64, 96),))
    wide = make_memory(sizes=((64, 96),), padded=(96, 160))
    wide.tokens = torch.cat(
        [F.pad(m, (0, w2 - m.shape[-1], 0, h2 - m.shape[-2])).flatten(2).transpose(1, 2)
         for m, (h2, w2) in zip(tight.levels(), wide.grid.shapes)], 1)  # fmt: skip
    generator = make_generator(**options)
    torch.testing.assert_close(generator(tight), generator(wide), atol=1e-5, rtol=0)


def test_diversity_is_one_for_equal_patterns_and_zero_for_orthogonal_ones():
    assert diversity_loss(torch.ones(4, 8)).item() == pytest.approx(1)
    assert diversity_loss(torch.eye(4)).item() == pytest.approx(0)
    patterns = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    pairs = [abs(F.cosine_similarity(patterns[i], patterns[j], dim=0)) for i in range(6) for j in range(6) if i != j]
    assert diversity_loss(patterns).item() == pytest.approx(float(sum(pairs)) / 30)  # Eq. 8


def test_random_patterns_of_width_256_start_at_a_mean_cosine_of_about_five_percent():
    patterns = torch.randn(150, 256, generator=torch.Generator().manual_seed(0))
    assert diversity_loss(patterns).item() == pytest.approx(0.05, abs=0.005)


# ----------------------------------------------------------------------------------------------------------------------


def random_scene(counts=(3, 0, 5), num_queries=20, num_classes=4, seed=0, spread=0.05):
    """Predictions that lie near the objects, so that IoUs are of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    boxes = torch.rand(total, 4, generator=generator) * 0.4 + 0.2
    labels = torch.randint(0, num_classes, (total,), generator=generator)
    image = torch.tensor([b for b, n in enumerate(counts) for _ in range(n)], dtype=torch.int64)
    empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    targets = Targets(boxes, labels, image, tuple(counts), *empty)
    predicted = torch.rand(len(counts), num_queries, 4, generator=generator) * 0.4 + 0.2
    for b in range(len(counts)):
        own = boxes[image == b]
        if len(own):
            near = own[torch.randint(0, len(own), (num_queries,), generator=generator)]
            predicted[b] = near + spread * torch.randn(num_queries, 4, generator=generator)
    logits = torch.randn(len(counts), num_queries, num_classes, generator=generator)
    return LayerOutput(logits, predicted.clamp(0.05, 0.95)), targets


def quality_by_hand(output, targets, gamma):
    """Eq. 6, (M, N)."""
    rows = []
    for box, label, b in zip(targets.boxes.tolist(), targets.labels.tolist(), targets.image.tolist()):
        scores = output.logits[b, :, label].sigmoid().tolist()
        rows.append([iou(p, box) - gamma * c for p, c in zip(output.boxes[b].tolist(), scores)])
    return np.array(rows)


def count_by_hand(row, k, least):
    """Eq. 7."""
    return max(math.ceil(sum(sorted(row, reverse=True)[:k]) - 1e-6), least)


@pytest.mark.parametrize(
    ("ious", "count"),
    [([0.66, 0.66, 0.60, 0.50], 3), ([0.0] * 6, 1), ([1.0] * 4, 4), ([0.5, 0.5, 0.5, 0.5], 2), ([0.9], 1)],
)
def test_the_positive_count_of_known_overlaps(ious, count):
    """Queries that score nothing: their quality is their IoU. Eq. 7 with k 4 and l 1."""
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4 * iou] for iou in ious])  # within the object, that share of its area
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    zero = torch.zeros(1, dtype=torch.int64)
    targets = Targets(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), zero, zero, (1,), *none)
    stacked = LayerOutput(torch.full((1, 1, len(ious), 1), -30.0), boxes[None, None])
    assigner = QualityCountAssigner(MatchCost(), gamma=0.4, k=4, min_count=1)
    assert assigner.measure(stacked, targets)[1].item() == count


@pytest.mark.parametrize("seed", range(4))
def test_counts_follow_equations_6_and_7(seed):
    output, targets = random_scene(seed=seed)
    assigner = QualityCountAssigner(MatchCost(), gamma=0.4, k=4, min_count=1, max_share=100)
    stacked = LayerOutput(output.logits[None], output.boxes[None])
    count = assigner.measure(stacked, targets)[1][0].tolist()
    assert count == [count_by_hand(row, 4, 1) for row in quality_by_hand(output, targets, 0.4)]
    assert max(count) > 1  # else the test says nothing


def positives(assigner, output, targets):
    (pairs,) = assign([predict("layer1", output, assigner)], targets)
    return pairs


@pytest.mark.parametrize("seed", range(4))
def test_hungarian_selection_solves_the_matching_with_repeated_objects(seed):
    output, targets = random_scene(seed=seed)
    assigner = QualityCountAssigner(MatchCost(), select="hungarian", max_share=100)
    pairs = positives(assigner, output, targets)
    quality = quality_by_hand(output, targets, 0.4)
    cost = ops.match_cost(output.logits[None], output.boxes[None], targets.labels, targets.boxes, targets.image)[0]
    for start, stop in zip(targets.offsets, targets.offsets[1:]):
        rows = [j for j in range(start, stop) for _ in range(count_by_hand(quality[j], 4, 1))]
        row, column = linear_sum_assignment(cost[rows].numpy())
        ours = sorted((t, q) for q, t in zip(pairs.query.tolist(), pairs.target.tolist()) if start <= t < stop)
        assert ours == sorted((rows[r], c) for r, c in zip(row, column))


@pytest.mark.parametrize("seed", range(4))
def test_score_selection_reserves_one_query_each_then_gives_conflicts_to_the_better(seed):
    output, targets = random_scene(seed=seed)
    pairs = positives(QualityCountAssigner(MatchCost(), select="score", max_share=100), output, targets)
    one_to_one = positives(HungarianAssigner(MatchCost()), output, targets)
    quality = quality_by_hand(output, targets, 0.4)
    expected = set()
    for b, (start, stop) in enumerate(zip(targets.offsets, targets.offsets[1:])):
        reserved = {t: q for q, t in zip(one_to_one.query.tolist(), one_to_one.target.tolist()) if start <= t < stop}
        wish = {}
        for j in range(start, stop):
            free = [i for i in np.argsort(-quality[j], kind="stable") if i not in reserved.values()]
            expected.add((b, reserved[j], j))
            for i in free[: count_by_hand(quality[j], 4, 1) - 1]:
                wish.setdefault(i, []).append(j)
        expected |= {(b, i, max(js, key=lambda j: quality[j][i])) for i, js in wish.items()}
    assert set(zip(pairs.image.tolist(), pairs.query.tolist(), pairs.target.tolist())) == expected


@pytest.mark.parametrize("select", ["hungarian", "score"])
def test_no_query_has_two_objects_and_every_object_has_one(select):
    for seed in range(6):
        output, targets = random_scene(seed=seed, spread=0.02)
        pairs = positives(QualityCountAssigner(MatchCost(), select=select), output, targets)
        taken = list(zip(pairs.image.tolist(), pairs.query.tolist()))
        assert len(taken) == len(set(taken))
        assert set(pairs.target.tolist()) == set(range(len(targets.boxes)))
        assert torch.equal(targets.image[pairs.target], pairs.image)


def test_copies_never_exceed_their_share_of_the_queries():
    output, targets = random_scene(counts=(9,), num_queries=20, spread=0.001)
    pairs = positives(QualityCountAssigner(MatchCost(), max_share=0.5), output, targets)
    assert np.bincount(pairs.target).max() == 1  # floor(0.5 * 20 / 9)


@pytest.mark.parametrize("select", ["hungarian", "score"])
def test_no_objects_give_no_pairs(select):
    output, targets = random_scene(counts=(0, 0))
    assert len(positives(QualityCountAssigner(MatchCost(), select=select), output, targets)) == 0


@pytest.mark.parametrize("select", ["hungarian", "score"])
def test_predictions_that_are_not_finite_still_find_a_matching(select):
    output, targets = random_scene()
    output.boxes[0, :7] = float("nan")
    output.logits[2] = float("inf")
    output.logits[0, 8:] = float("nan")
    pairs = positives(QualityCountAssigner(MatchCost(), select=select), output, targets)
    assert set(pairs.target.tolist()) == set(range(8))


@pytest.mark.parametrize("select", ["hungarian", "score"])
def test_filling_slots_are_never_positive(select):
    output, targets = random_scene()
    output.valid = torch.ones(3, 20, dtype=torch.bool)
    output.valid[2, 3:] = False
    pairs = positives(QualityCountAssigner(MatchCost(), select=select), output, targets)
    assert (pairs.query[pairs.image == 2] < 3).all()
    assert (pairs.image == 2).sum() == 3  # five objects, three queries


def test_the_final_layer_and_the_encoder_stay_one_to_one(two_images):
    model = wake_up(make_model({**PLUSPLUS, **PATTERNS, **ASSIGNMENT}))
    kinds = {name: type(p.objective.assigner) for name, p in predictions_of(model, two_images).items()}
    assert kinds["final"] is HungarianAssigner and kinds["encoder"] is HungarianAssigner
    assert kinds["layer1"] is QualityCountAssigner and kinds["layer2"] is QualityCountAssigner


def test_the_encoder_can_be_one_to_many():
    options = {**PLUSPLUS, **ASSIGNMENT, "MODEL.DETR.ASSIGNER.ENCODER": "quality_count"}
    assert type(make_model(options).sources["main"].objective.assigner) is QualityCountAssigner


def test_the_assignment_changes_nothing_at_inference(two_images):
    outputs = []
    for options in ({}, {"MODEL.DETR.QUALITY_ASSIGNMENT.GAMMA": 0.8, "MODEL.DETR.QUALITY_ASSIGNMENT.K": 6}):
        model = wake_up(make_model({**PLUSPLUS, **PATTERNS, **ASSIGNMENT, **options})).eval()
        with torch.no_grad():
            outputs.append(model(two_images)[0]["instances"])
    assert torch.equal(outputs[0].scores, outputs[1].scores)


def test_varifocal_loss_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, generator=generator)
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.28]).expand(2, 5, 4)  # IoU 0.7 with the object
    image = torch.tensor([0, 1])
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    targets = Targets(torch.tensor([[0.5, 0.5, 0.4, 0.4]] * 2), torch.tensor([2, 0]), image, (1, 1), *none)
    pairs = Assignment(image, torch.tensor([1, 4]), image)
    loss = VarifocalLoss()(Matches(LayerOutput(logits, boxes), pairs, targets))
    for index in np.ndindex(*loss.shape):
        p, t = logits[index].sigmoid().item(), 0.7 if index in ((0, 1, 2), (1, 4, 0)) else 0.0
        weight = t or 0.75 * p**2
        by_hand = -weight * (t * math.log(p) + (1 - t) * math.log(1 - p))
        assert loss[index].item() == pytest.approx(by_hand, rel=1e-5)


def test_varifocal_weights_carry_no_gradient():
    logits = torch.zeros(1, 1, 1, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    targets = Targets(torch.zeros(0, 4), nothing, nothing, (0,), torch.zeros(0, 4), nothing)
    output = LayerOutput(logits, torch.rand(1, 1, 4))
    VarifocalLoss()(Matches(output, Assignment(nothing, nothing, nothing), targets)).sum().backward()
    assert logits.grad.item() == pytest.approx(0.75 * 0.25 * 0.5)  # 0.75 p^2 times d BCE / d logit = p


def test_the_full_head_has_the_parameters_that_the_arithmetic_says():
    count = sum(p.numel() for p in make_generator(num_queries=900, num_patterns=150, embed_dim=256).head.parameters())
    assert count == 256 * 256 + 256 + 512 + 257 * 900 * 150  # 34.8M: not the paper's +1.8M, see papers/README.md


def test_a_model_with_patterns_trains_on_one_image_without_objects():
    model = make_model({**PLUSPLUS, **PATTERNS, **ASSIGNMENT})
    losses = model([make_image(40, 56)])
    assert losses["loss_diversity"] > 0 and torch.isfinite(sum(losses.values()))


def test_the_hybrid_branch_takes_the_next_best_proposals(two_images):
    """Ranks behind the main queries, and losses by the number of repeated objects (H-DETR)."""
    model = wake_up(make_model({**PLUSPLUS, **ASSIGNMENT, **HYBRID, "MODEL.DETR.HYBRID.COPIES": 6})).eval()
    memory = memory_of(model, two_images)
    main = model.sources["main"]
    proposals = main.propose(memory)
    everyone = main.queries(taken(proposals, *main.best(proposals, 12 + 20))).reference
    torch.testing.assert_close(model.sources["hybrid"](memory).reference, everyone[:, 12:])
    assert model.routes["hybrid"].scale == pytest.approx(1 / 6)
    assert [o.assigner.copies for o in model.routes["hybrid"].objectives] == [6, 6, 6]


def test_the_hybrid_branch_may_have_proposals_of_its_own(two_images):
    """The best of its own heads, which learn from repeated objects, as the queries do (Relation-DETR)."""
    hybrid = {**HYBRID, "MODEL.DETR.HYBRID.OWN_PROPOSALS": True}
    model = wake_up(make_model({**PLUSPLUS, "MODEL.DETR.QUERIES.SCORE": "max", **ASSIGNMENT, **hybrid}))
    memory = memory_of(model, two_images)
    main, own = model.sources["main"], model.sources["hybrid"]
    proposals = main.proposals_by(own.class_head, own.box_head, memory)
    best = main.queries(taken(proposals, *main.best(proposals, 20))).reference
    torch.testing.assert_close(own(memory).reference, best)
    found = predictions_of(model, two_images)
    assert found["hybrid_encoder"].objective.assigner.copies == 6
    assert found["hybrid_encoder"].scale == found["hybrid_final"].scale == pytest.approx(1 / 6)
    model(two_images)["loss_giou/hybrid_encoder"].backward()
    assert own.box_head.last.weight.grad.any() and main.box_head.last.weight.grad is None
    assert main.project.weight.grad.any()
    with pytest.raises(UserError, match="OWN_PROPOSALS is True, but .*LearnedQueries has no proposals"):
        make_model({**hybrid})


def test_repeated_objects_are_divided_by_once():
    """Also where other losses are divided by their pairs: the branch's scale counts the copies already."""
    model = make_model({**PLUSPLUS, **HYBRID, "MODEL.DETR.LOSS.NORMALIZER": "pairs"})
    assert all(o.normalizer is None for o in model.routes["hybrid"].objectives)


@pytest.fixture
def two_images():
    return [make_image(64, 96, [[4, 6, 40, 50]], [0]), make_image(50, 120, [[10, 10, 100, 40]], [1])]
