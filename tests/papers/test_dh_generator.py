# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""DH-DETR's generator against the released computation, query by query and pair by pair."""

import pytest
import torch
from torch.nn import functional as F

from paq_detr.papers.dh_detr import DehomoGenerator, ranked

from ..boxes import centred_iou as iou


def make_generator(dim=8, seed=0, **options):
    torch.manual_seed(seed)
    return DehomoGenerator(dim, **options).double()


def crowd_of_queries(batch=2, num_queries=14, dim=8, seed=0):
    """Content, boxes that overlap each other in all degrees, and scores on both sides of every threshold."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    boxes = torch.cat([0.45 + 0.1 * rand(batch, num_queries, 2), 0.3 + 0.1 * rand(batch, num_queries, 2)], -1)
    content = torch.randn(batch, num_queries, dim, generator=generator, dtype=torch.float64)
    return content, boxes, rand(batch, num_queries) ** 2


def neighbors_by_hand(boxes, scores, i, k):
    """The more confident queries that overlap query i, by falling IoU."""
    overlap = [(iou(boxes[i], boxes[j]), j) for j in range(len(scores)) if scores[i] < scores[j] and scores[j] > 0.1]
    return [j for o, j in sorted(overlap, key=lambda pair: -pair[0]) if o >= 0.4][:k]


def generate_by_hand(module, content, boxes, scores):
    """The released computation, query by query and pair by pair."""
    e = F.layer_norm(
        module.identity(content), content.shape[-1:], module.identity_norm.weight, module.identity_norm.bias
    )
    rows = []
    for b in range(len(content)):
        for i in range(content.shape[1]):
            found = neighbors_by_hand(boxes[b].tolist(), scores[b].tolist(), i, module.num_neighbors)
            codes = [module.difference(e[b, i] - e[b, j]) for j in found]
            if module.zero_fill or not found:  # free slots are zero
                codes += [torch.zeros_like(content[b, i])] * (module.num_neighbors - len(found))
            rows.append(content[b, i] + module.output(torch.stack(codes).amax(0)).relu())
    return torch.stack(rows).view_as(content)


@pytest.mark.parametrize("zero_fill", [True, False])
@pytest.mark.parametrize("num_neighbors", [3, 10])
def test_the_generator_is_the_released_computation(zero_fill, num_neighbors):
    module = make_generator(zero_fill=zero_fill, num_neighbors=num_neighbors)
    results = []
    for generate in (module, lambda *inputs: generate_by_hand(module, *inputs)):
        content, boxes, scores = crowd_of_queries()
        content.requires_grad_()
        out = generate(content, boxes, scores)
        module.zero_grad()
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        results.append([out, content.grad, *(p.grad.clone() for p in module.parameters())])
    for ours, by_hand in zip(*results):
        torch.testing.assert_close(ours, by_hand, atol=1e-11, rtol=1e-11)
    found = [neighbors_by_hand(boxes[0].tolist(), scores[0].tolist(), i, 3) for i in range(14)]
    assert {len(row) for row in found} >= {0, 1, 3}  # else the test says little


def test_neighbours_of_the_known_scene():
    """Five boxes whose overlaps and scores are known: who listens to whom."""
    xyxy = torch.tensor([[0, 0, 0.4, 0.4], [0.1, 0, 0.5, 0.4], [0.2, 0, 0.6, 0.4], [0, 0, 0.4, 0.4], [0, 0, 0.4, 0.4]])
    boxes = torch.cat([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], 1).double()[None]
    scores = torch.tensor([[0.9, 0.6, 0.3, 0.08, 0.9]], dtype=torch.float64)
    content = crowd_of_queries(1, 5, dim=64)[0]
    module = make_generator(64, zero_fill=False)
    jacobian = torch.autograd.functional.jacobian(lambda c: module(c, boxes, scores), content)[0, :, :, 0]
    listens = [{j for j in range(5) if j != i and jacobian[i, :, j].abs().max() > 0} for i in range(5)]
    assert listens == [set(), {0, 4}, {1}, {0, 1, 4}, set()]


@pytest.mark.parametrize("why", ["equal_scores", "little_overlap", "low_scores"])
def test_without_neighbours_a_query_gets_the_constant_of_the_output_layer(why):
    module = make_generator()
    content, boxes, scores = crowd_of_queries()
    if why == "equal_scores":
        scores = torch.full_like(scores, 0.7)
    elif why == "low_scores":
        scores = scores * 0.1
    else:
        boxes = torch.cat([torch.rand_like(boxes[..., :2]), torch.full_like(boxes[..., 2:], 1e-3)], -1)
    assert torch.equal(module(content, boxes, scores), content + module.output.bias.relu())


def test_a_free_slot_holds_the_maximum_at_zero():
    """Ten neighbours whose codes are all negative give a negative maximum; with nine, the free slot's zero wins."""
    module = make_generator()
    with torch.no_grad():
        module.difference.last.weight.zero_()
        module.difference.last.bias.fill_(-1.0)
        module.output.weight.copy_(-torch.eye(8))  # turns the sign, so that relu shows it
        module.output.bias.zero_()
    boxes = torch.full((1, 11, 4), 0.5, dtype=torch.float64)
    scores = torch.linspace(0.9, 0.5, 11, dtype=torch.float64)[None]  # query i has i neighbours
    content = torch.zeros(1, 11, 8, dtype=torch.float64)
    change = module(content, boxes, scores)[0]
    assert (change[:10] == 0).all() and (change[10] == 1).all()
    module.zero_fill = False
    assert (module(content, boxes, scores)[0, 1:] == 1).all()


def test_the_order_of_the_queries_does_not_matter():
    module, (content, boxes, scores) = make_generator(), crowd_of_queries()
    order = torch.randperm(14)
    moved = module(content[:, order], boxes[:, order], scores[:, order])
    torch.testing.assert_close(moved, module(content, boxes, scores)[:, order])


def test_nobody_hears_a_less_confident_query():
    """Sorted by falling score the Jacobian is lower triangular."""
    module, (content, boxes, scores) = make_generator(), crowd_of_queries(batch=1)
    order = scores[0].argsort(descending=True)
    content, boxes, scores = content[:, order], boxes[:, order], scores[:, order]
    jacobian = torch.autograd.functional.jacobian(lambda c: module(c, boxes, scores), content)[0, :, :, 0]
    heard = jacobian.abs().amax((1, 3))
    assert (heard.triu(1) == 0).all() and (heard.tril(-1) > 0).any()


def test_scores_act_through_their_order_and_the_threshold_alone():
    module, (content, boxes, scores) = make_generator(), crowd_of_queries()
    same_order = torch.where(scores > 0.1, 0.1 + (scores - 0.1) ** 2, scores)
    assert torch.equal(module(content, boxes, scores), module(content, boxes, same_order))


def twins(scores):
    """Two queries of one content and nearly one box (IoU 0.9)."""
    content = torch.randn(1, 1, 8, dtype=torch.float64).expand(1, 2, 8)
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.36]]], dtype=torch.float64)
    return content, boxes, torch.tensor([scores], dtype=torch.float64)


def test_the_less_confident_of_two_twins_moves_by_the_code_of_no_difference():
    module, inputs = make_generator(), twins([0.8, 0.7])
    upper, lower = module(*inputs)[0]
    constant = module.difference(torch.zeros(8, dtype=torch.float64)).clamp(min=0)  # W4 relu(c3) + c4
    torch.testing.assert_close(lower, inputs[0][0, 1] + module.output(constant).relu())
    torch.testing.assert_close(upper, inputs[0][0, 0] + module.output.bias.relu())


@pytest.mark.parametrize("break_ties", [False, True])
def test_twins_of_equal_score_part_only_where_ties_are_broken(break_ties):
    upper, lower = make_generator(break_ties=break_ties)(*twins([0.8, 0.8]))[0]
    assert torch.equal(upper, lower) != break_ties


def test_breaking_ties_changes_nothing_where_there_are_none():
    content, boxes, scores = crowd_of_queries()
    results = [make_generator(break_ties=flag)(content, boxes, scores) for flag in (False, True)]
    assert torch.equal(*results)


def test_ranks_are_distinct_ordered_and_positive_above_the_threshold():
    scores = torch.tensor([[0.05, 0.7, 0.7, 0.1, 0.9]])
    assert ranked(scores, 0.1).tolist() == [[-1.0, 2.0, 1.0, 0.0, 3.0]]
