# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Routes, sources and groups, with parts made for the test: what a new paper may rely on."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from paq_detr.detector import QueryDetector
from paq_detr.modeling.assignment import HungarianAssigner, MatchCost
from paq_detr.modeling.diagnostics import slot_agreement
from paq_detr.modeling.objective import matched_pairs
from paq_detr.modeling.read_out import ReadOut
from paq_detr.modeling.route import Borrowed, Route, drop_train_only
from paq_detr.registry import AUGMENTERS, Registry
from paq_detr.structures import Assignment, LayerOutput, QueryGroup, QuerySet

from .assemblies import (
    MR,
    PLUSPLUS,
    make_image,
    make_model,
    make_objective,
    memory_of,
    predictions_of,
    wake_up,
)

IMAGE = make_image(64, 96, [[4, 6, 40, 50]], [0])


class KnownPairs(nn.Module):
    """Puts three queries of known partners in front, unseen by the others."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 64))

    def forward(self, queries, targets, memory):
        count = queries.reference.shape[1]
        blocked = torch.zeros(count + 3, count + 3, dtype=torch.bool)
        blocked[3:, :3] = True

        def front(x):
            return torch.cat([x[:, :3], x], 1)

        first = torch.zeros(1, dtype=torch.int64)
        return QuerySet(
            content=torch.cat([queries.content[:, :3] + self.table, queries.content], 1),
            reference=front(queries.reference),
            position=front(queries.position),
            valid=front(queries.valid),
            attention_mask=blocked,
            groups=[QueryGroup("known", 0, 3, Assignment(first, first + 1, first), scale=0.5)],
            predictions=queries.predictions,
            losses=queries.losses,
        )


@AUGMENTERS.register("known_pairs")
def build_known_pairs(cfg, kit):
    return KnownPairs()


AUGMENTED = {**PLUSPLUS, "MODEL.DETR.QUERIES.AUGMENT": "known_pairs"}


def test_a_group_keeps_its_pairs_and_stays_out_of_the_matching():
    model = wake_up(make_model(AUGMENTED))
    grouped = predictions_of(model, [IMAGE])
    drop_train_only(model)
    plain = predictions_of(model, [IMAGE])
    assert set(grouped) - set(plain) == {"known_layer1", "known_layer2", "known_final"}
    assert grouped["known_final"].output.logits.shape[1] == 3 and grouped["known_final"].scale == 0.5
    for name in ("layer1", "layer2", "final"):  # the mask hides the group from the matching queries
        torch.testing.assert_close(grouped[name].output.logits, plain[name].output.logits)
        torch.testing.assert_close(grouped[name].output.boxes, plain[name].output.boxes)


def test_losses_may_be_divided_by_pairs_but_those_of_a_group_by_objects():
    predictions = predictions_of(make_model({**AUGMENTED, "MODEL.DETR.LOSS.NORMALIZER": "pairs"}), [IMAGE])
    assert {
        name: p.objective.normalizer for name, p in predictions.items() if "final" in name or name == "encoder"
    } == {
        "encoder": matched_pairs,
        "final": matched_pairs,
        "known_final": None,
    }


def test_a_layer_is_told_where_the_matching_queries_begin():
    model = make_model(AUGMENTED)
    begin = []
    layer = model.routes["main"].decoder.layers[1]
    layer.register_forward_pre_hook(lambda _, inputs: begin.append(inputs[0].first_matching))
    model([IMAGE])
    model.eval()([IMAGE])
    assert begin == [3, 0]


def test_an_augmenter_trains_and_is_gone_at_inference():
    model = make_model(AUGMENTED)
    sum(model([IMAGE]).values()).backward()
    assert model.augmenters["main"].table.grad.abs().max() > 0
    slim = copy.deepcopy(model)
    slim.drop_training_parts()
    assert not any("augmenters" in name for name in slim.state_dict())
    with torch.no_grad():
        before, after = (m.eval()([IMAGE])[0]["instances"] for m in (model, slim))
    assert torch.equal(before.scores, after.scores)


class Counting(nn.Module):
    """Another source, and how often it ran."""

    provides = frozenset({"boxes", "position"})

    def __init__(self, source):
        super().__init__()
        self.source, self.calls, self.targets = source, 0, None

    def forward(self, memory, targets=None):
        self.calls, self.targets = self.calls + 1, targets
        queries = self.source(memory, targets)
        return replace(queries, losses={"loss_own": torch.ones(())}, predictions=list(queries.predictions))


def rebuilt(model, sources, routes, **more):
    parts = {"backbone": model.backbone, "neck": model.neck, "encoder": model.encoder}
    settings = {"class_names": ["a", "b", "c"], "pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
    return QueryDetector(**parts, **settings, sources=sources, routes=routes, **more)


def route(model, name, source="main", **options):
    """A route with a decoder of its own."""
    decoder = make_model(PLUSPLUS, seed=7).routes["main"].decoder
    objectives = [make_objective(HungarianAssigner(MatchCost()))] * len(decoder.layers)
    return Route(name=name, source=source, decoder=decoder, objectives=objectives, **{"train_only": True, **options})


def test_routes_that_read_one_source_share_one_run_of_it():
    """Its predictions and losses go with the first route that reads it."""
    model = make_model(PLUSPLUS)
    source = Counting(model.sources["main"])
    main = model.routes["main"]
    both = rebuilt(model, {"main": source}, [main, route(model, "copy", scale=2.0)])
    losses = both([IMAGE])
    assert source.calls == 1 and source.targets.counts == (1,)
    assert losses["loss_own"] == 1 and "loss_own/copy" not in losses
    assert {"loss_class/encoder", "loss_class/final", "loss_class/copy_final", "loss_l1/copy_layer1"} <= set(losses)
    assert "loss_class/copy_encoder" not in losses


def test_a_source_of_its_own_is_named_and_scaled_like_its_route():
    model = make_model(PLUSPLUS)
    other = Counting(make_model(PLUSPLUS, seed=5).sources["main"])
    losses = [
        rebuilt(
            model,
            {"main": model.sources["main"], "more": other},
            [model.routes["main"], route(model, "more", source="more", scale=scale)],
        )([IMAGE])
        for scale in (1.0, 3.0)
    ]
    for name in ("loss_class/more_encoder", "loss_l1/more_final", "more_loss_own"):
        assert losses[1][name].item() == pytest.approx(3 * losses[0][name].item())
    assert losses[1]["loss_class/encoder"] == losses[0]["loss_class/encoder"]


def test_an_added_route_changes_nothing_of_the_main_one():
    model = make_model(PLUSPLUS)
    before = model([IMAGE])
    more = rebuilt(model, {"main": model.sources["main"]}, [model.routes["main"], route(model, "copy")])
    more.pixel_mean, more.pixel_std = model.pixel_mean, model.pixel_std
    after = more([IMAGE])
    assert before.items() <= after.items() and len(after) > len(before)
    sum(after.values()).backward()
    assert all(p.grad is not None for p in more.routes["copy"].parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: [m.routes["main"], route(m, "copy", read_out=ReadOut(5), train_only=False)], "train_only"),
        (lambda m: [m.routes["main"], route(m, "copy"), route(m, "copy")], "different names"),
        (lambda m: [m.routes["main"], route(m, "copy", source="other")], "reads the source other"),
    ],
)
def test_routes_that_cannot_be_are_refused(make, message):
    model = make_model(PLUSPLUS)
    with pytest.raises(ValueError, match=message):
        rebuilt(model, {"main": model.sources["main"]}, make(model))


def test_a_source_that_nobody_reads_is_refused():
    model = make_model(PLUSPLUS)
    with pytest.raises(ValueError, match="no route reads the queries of .'idle'"):
        rebuilt(model, {"main": model.sources["main"], "idle": nn.Identity()}, [model.routes["main"]])


def test_a_route_needs_an_objective_for_each_layer():
    decoder = make_model(PLUSPLUS).routes["main"].decoder
    with pytest.raises(ValueError, match="route main has 2 objectives for 3 decoder layers"):
        Route(name="main", decoder=decoder, objectives=[make_objective()] * 2, read_out=ReadOut(5))


def test_a_borrowed_module_may_stand_in_lists_and_is_not_registered():
    """Heads of one decoder in another's (Mr. DETR): called and trained, saved once, copied with its owner."""
    owner = nn.Linear(2, 2)
    both = nn.ModuleDict({"owner": owner, "heads": nn.ModuleList([Borrowed(owner)])})
    assert list(both.state_dict()) == ["owner.weight", "owner.bias"]
    both["heads"][0](torch.ones(1, 2)).sum().backward()
    assert owner.weight.grad is not None and both["heads"][0].out_features == 2
    twin = copy.deepcopy(both)
    assert twin["heads"][0].weight is twin["owner"].weight is not owner.weight
    with pytest.raises(AttributeError):
        _ = both["heads"][0].nothing


def test_everything_marked_train_only_is_dropped_wherever_it_is():
    model = nn.Module()
    model.single, model.kept = nn.Linear(1, 1), nn.Linear(1, 1)
    model.table = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    model.row = nn.ModuleList([nn.Linear(1, 1) for _ in range(3)])
    for part in (model.single, model.table["a"], model.row[1], model.row[2]):
        part.train_only = True
    drop_train_only(model)
    assert model.single is None
    assert {name.rsplit(".", 1)[0] for name in model.state_dict()} == {"kept", "table.b", "row.0"}


def test_a_step_projects_each_attention_value_once_however_many_routes_run_it():
    model = make_model({**PLUSPLUS, "MODEL.DETR.ROUTES": ["hybrid"]})
    calls = []
    projection = model.routes["main"].decoder.layers[0].cross_attention.attention.value_proj
    projection.register_forward_hook(lambda *_: calls.append(1))
    proposed = []
    model.sources["main"].project.register_forward_hook(lambda *_: proposed.append(1))
    model([IMAGE])
    assert len(calls) == len(proposed) == 1


def test_the_read_out_takes_the_layer_that_it_is_told_and_suppresses_overlaps():
    memory = memory_of(make_model(PLUSPLUS), [IMAGE])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.21], [0.2, 0.2, 0.1, 0.1]]])
    first = LayerOutput(torch.tensor([[[2.0], [1.0], [0.0]]]), boxes)
    last = LayerOutput(torch.tensor([[[0.0], [1.0], [2.0]]]), boxes)
    assert ReadOut(3)([first, last], memory)[0].query_indices.tolist() == [2, 1, 0]
    assert ReadOut(3, layer=1)([first, last], memory)[0].query_indices.tolist() == [0, 1, 2]
    assert ReadOut(3, layer=1, nms_iou=0.7)([first, last], memory)[0].query_indices.tolist() == [0, 2]


def test_a_name_of_a_slot_cannot_be_taken_twice():
    slot = Registry("MODEL.DETR.SLOT")
    slot.register("part")(build_known_pairs)

    def another(cfg, kit):
        return None

    another.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="has already registered 'part'"):
        slot.register("part")(another)


@pytest.mark.parametrize(
    ("matched", "positives", "share"),
    [
        ([(0, 1), (0, 4), (1, 1)], [(0, 4), (0, 4), (1, 1), (1, 4)], 2 / 3),  # a query of two objects counts once
        ([(0, 1), (1, 2)], [(0, 2), (1, 1)], 0.0),  # the same slots, in other images
        ([(0, 1)], [], None),
        ([], [(0, 1)], None),
    ],
)
def test_agreement_of_routes_is_the_share_of_matched_queries_that_are_positive_there_too(matched, positives, share):
    def pairs(places):
        image, query = torch.tensor(places, dtype=torch.int64).view(-1, 2).T
        return Assignment(image, query, torch.arange(len(places)))

    routes = [SimpleNamespace(named=lambda layer, r=r: f"{r}{layer}", same_slots=True, objectives=[0, 0]) for r in "ab"]
    found = slot_agreement({"afinal": pairs(matched), "bfinal": pairs(positives), "blayer1": pairs([(0, 1)])}, routes)
    assert {name: value.item() for name, value in found.items()} == (
        {} if share is None else {"slot_agreement/bfinal": pytest.approx(share)}
    )
    routes[1].same_slots = False
    assert slot_agreement({"afinal": pairs([(0, 1)]), "bfinal": pairs([(0, 1)])}, routes) == {}


def test_agreement_is_logged_for_every_layer_of_mr_detrs_routes():
    with EventStorage() as storage:
        make_model({**MR, "MODEL.DETR.ROUTES": ["hybrid", "mr_ffn", "mr_tokens"]})([IMAGE])
        logged = {name for name in storage.latest() if name.startswith("slot_agreement")}
    layers = ("layer1", "layer2", "final")
    assert logged == {f"slot_agreement/{route}_{layer}" for route in ("mr_ffn", "mr_tokens") for layer in layers}
