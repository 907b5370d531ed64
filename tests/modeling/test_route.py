# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Routes and groups, with parts made for the test: what a new paper may rely on."""

import pytest
import torch
from torch import nn

from paq_detr.detector import QueryDetector
from paq_detr.modeling.matcher import HungarianAssigner, MatchCost
from paq_detr.modeling.route import Borrowed, Route
from paq_detr.structures import Assignment, QueryGroup, QuerySet

from .conftest import PLUSPLUS, make_image, make_model, wake_up


class WithKnownPairs(nn.Module):
    """Puts three queries of known partners in front of another source's, unseen by them."""

    def __init__(self, source):
        super().__init__()
        self.source = source

    def forward(self, memory):
        queries = self.source(memory)
        batch, count = queries.reference.shape[:2]
        blocked = torch.zeros(count + 3, count + 3, dtype=torch.bool)
        blocked[3:, :3] = True

        def front(x):
            return torch.cat([x[:, :3], x], 1)

        first = torch.zeros(1, dtype=torch.int64)
        return QuerySet(
            content=front(queries.content) + torch.cat([torch.ones(3), torch.zeros(count)])[:, None],
            reference=front(queries.reference),
            position=front(queries.position),
            attention_mask=blocked,
            groups=[QueryGroup("known", 0, 3, Assignment(first, first + 1, first), scale=0.5)],
        )


def test_a_group_keeps_its_pairs_and_stays_out_of_the_matching():
    model = wake_up(make_model(PLUSPLUS)).eval()
    route = model.routes[0]
    image = make_image(64, 96, [[4, 6, 40, 50]], [0])
    memory = model.encode(model.preprocess([image]))
    plain = {p.name: p for p in route.predict_for_training(memory)[0]}
    route.source = WithKnownPairs(route.source)
    grouped = {p.name: p for p in route.predict_for_training(memory)[0]}
    assert set(grouped) == {"layer1", "layer2", "final", "known_layer1", "known_layer2", "known_final"}
    assert grouped["known_final"].output.logits.shape[1] == 3 and grouped["known_final"].scale == 0.5
    for name in ("layer1", "layer2", "final"):  # the mask hides the group from the matching queries
        torch.testing.assert_close(grouped[name].output.logits, plain[name].output.logits)
        torch.testing.assert_close(grouped[name].output.boxes, plain[name].output.boxes)


def parallel_route(model, name="copy", train_only=True):
    """A route on the main route's source, borrowed, with a decoder of its own."""
    assigner = HungarianAssigner(MatchCost())
    main = model.routes[0]
    decoder = make_model(PLUSPLUS, seed=7).routes[0].decoder
    return Route(
        name=name,
        source=Borrowed(main.source),
        decoder=decoder,
        assigners=[assigner] * len(decoder.layers),
        scale=2.0,
        train_only=train_only,
    )


def test_a_parallel_decoder_is_a_route():
    model = make_model(PLUSPLUS)
    images = [make_image(64, 96, [[4, 6, 40, 50]], [0])]
    before = model(images)
    model.routes.append(parallel_route(model))
    after = model(images)
    assert before.items() <= after.items()
    assert {"loss_class/copy_final", "loss_l1/copy_layer1"} <= set(after)
    sum(after.values()).backward()
    assert all(p.grad is not None for p in model.routes[1].parameters())


def test_only_the_first_route_may_predict():
    model = make_model(PLUSPLUS)
    parts = {"backbone": model.backbone, "neck": model.neck, "encoder": model.encoder, "criterion": model.criterion}
    settings = {"class_names": ["a"], "top_k": 5, "pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
    with pytest.raises(ValueError, match="train_only"):
        QueryDetector(routes=[model.routes[0], parallel_route(model, train_only=False)], **parts, **settings)
