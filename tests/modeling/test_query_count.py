# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Images that keep as many queries as their proposals ask for."""

import math
from dataclasses import replace

import pytest
import torch

from paq_detr.errors import UserError
from paq_detr.modeling.query_count import KeptQueries
from paq_detr.structures import LayerOutput

from .assemblies import ASSEMBLIES, DDQ, KEPT, MR_DINO, PLUSPLUS, make_model, memory_of, predictions_of, wake_up


def proposals(scores):
    """The best proposals of each image, best first; None: a slot that is none."""
    values = torch.tensor([[math.nan if s is None else s for s in image] for image in scores])
    valid = torch.tensor([[s is not None for s in image] for image in scores])
    number = torch.arange(values.numel(), dtype=torch.float32).view(*values.shape, 1)
    return LayerOutput(number, number.expand(-1, -1, 4), number, valid), values


SPARSE, DENSE, LOW, TINY = [0.9, 0.5, 0.2, 0.1, 0.0], [0.9, 0.8, 0.7, 0.6, 0.5], [0.4] * 5, [0.9, 0.3] + [None] * 3


@pytest.mark.parametrize(
    ("keep", "scores", "wanted"),
    [
        (KeptQueries(0.5), [SPARSE], [2]),
        (KeptQueries(0.5), [SPARSE, DENSE], [2, 5]),
        (KeptQueries(0.5, factor=1.5), [SPARSE, LOW], [3, 1]),
        (KeptQueries(0.5, factor=1.2), [SPARSE], [3]),  # rounded up
        (KeptQueries(0.5, factor=9.0), [SPARSE], [5]),
        (KeptQueries(0.5, minimum=3), [LOW, LOW], [3, 3]),  # nobody has a good proposal
        (KeptQueries(0.5, minimum=9), [SPARSE, LOW], [5, 5]),
        (KeptQueries(0.2), [TINY, SPARSE], [2, 3]),
        (KeptQueries(0.5, minimum=4), [TINY], [2]),  # there are no more
        (KeptQueries(0.0), [TINY, DENSE], [2, 5]),
    ],
)
def test_an_image_keeps_its_best_as_many_as_it_asks_for(keep, scores, wanted):
    chosen, values = proposals(scores)
    kept = keep(chosen, values)
    for image, (content, valid, count) in enumerate(zip(kept.content, kept.valid, wanted)):
        assert content[valid, 0].tolist() == [5 * image + place for place in range(count)]
    assert kept.valid.shape[1] == max(max(wanted), min(keep.minimum, 5))


OBJECTNESS_KEPT = {**KEPT, "MODEL.DETR.QUERIES.KEEP.MIN_SCORE": 0.15}


@pytest.mark.parametrize(
    "options",
    [{**PLUSPLUS, **OBJECTNESS_KEPT}, {**MR_DINO, **OBJECTNESS_KEPT}, {**DDQ, **KEPT}],
    ids=["plusplus", "mr_dino", "ddq"],
)
def test_cutting_is_the_same_as_all_slots_of_which_some_are_no_queries(options, two_images, monkeypatch):
    """In training, with denoising and routes: against a decoder that runs all slots."""
    found, slots = [], []
    cut = KeptQueries.__call__

    def masked(self, chosen, scores):
        kept = cut(self, chosen, scores)
        valid = torch.zeros_like(chosen.valid)
        valid[:, : kept.valid.shape[1]] = kept.valid
        slots.append(kept.valid)
        return replace(chosen, valid=valid)

    for call in (cut, masked):
        monkeypatch.setattr(KeptQueries, "__call__", call)
        model = wake_up(make_model(options))
        torch.manual_seed(3)  # denoising
        losses = model(two_images)
        sum(losses.values()).backward()
        found.append({**losses, **{name: p.grad for name, p in model.named_parameters()}})
    counts = slots[0].sum(1).tolist()
    assert counts[0] != counts[1] and max(counts) < 12  # the test has something to compare
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-4, rtol=1e-4, msg=name)


def test_the_encoder_learns_from_all_the_best_proposals_whatever_is_kept(two_images):
    options = {**PLUSPLUS, "MODEL.DETR.QUERIES.SUPERVISE": "selected"}
    kept, full = (predictions_of(wake_up(make_model(o)), two_images) for o in ({**options, **OBJECTNESS_KEPT}, options))
    assert torch.equal(kept["encoder"].output.logits, full["encoder"].output.logits)
    assert kept["encoder"].output.logits.shape[1] == 12 > kept["final"].output.logits.shape[1]


@pytest.mark.parametrize(("when", "trained", "tested"), [("never", 12, 12), ("inference", 12, 4), ("always", 4, 4)])
def test_when_queries_are_left_out(when, trained, tested, two_images):
    few = {"MIN_SCORE": 1.0, "MIN": 4, "WHEN": when}
    model = make_model(PLUSPLUS, **{f"MODEL.DETR.QUERIES.KEEP.{key}": value for key, value in few.items()})
    source, memory = model.sources["main"], memory_of(model, two_images)
    assert source(memory).reference.shape[1] == trained
    assert source.eval()(memory).reference.shape[1] == tested


def test_routes_of_one_step_keep_queries_each_by_its_own_proposals(two_images):
    model = wake_up(make_model({**MR_DINO, **OBJECTNESS_KEPT}))
    memory = memory_of(model, two_images)
    counts = [source(memory).valid.sum(1).tolist() for source in model.sources.values()]
    assert len(counts) == 2 and counts[0] != counts[1]


@pytest.mark.parametrize("name", [name for name in ASSEMBLIES if name.endswith("_kept")])
def test_images_of_these_assemblies_keep_different_numbers(name, two_images):
    """Else what test_detector.py says of them would say nothing."""
    model = wake_up(make_model(ASSEMBLIES[name])).eval()
    counts = model.sources["main"](memory_of(model, two_images)).valid.sum(1).tolist()
    assert counts[0] != counts[1] and max(counts) < 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MODEL.DETR.QUERIES.KEEP.WHEN": "always"}, "KEEP.WHEN always needs queries from the encoder"),
        ({**PLUSPLUS, "MODEL.DETR.QUERIES.KEEP.WHEN": "training"}, "KEEP.WHEN is .training., must be one of never"),
        ({**PLUSPLUS, "MODEL.DETR.QUERIES.KEEP.MIN_SCORE": 1.5}, r"KEEP.MIN_SCORE is 1.5, must be in \[0, 1\]"),
        ({**PLUSPLUS, "MODEL.DETR.QUERIES.KEEP.FACTOR": 0.5}, "KEEP.FACTOR is 0.5, must be at least 1"),
        ({**PLUSPLUS, "MODEL.DETR.QUERIES.KEEP.MIN": 0}, "KEEP.MIN is 0, must be at least 1"),
    ],
)
def test_what_makes_no_sense_says_why(options, message):
    with pytest.raises(UserError, match=message):
        make_model(options)
