# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""DDQ-DETR against loops over boxes, and against numbers worked out by hand from the release's formulas."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from paq_detr import add_paq_detr_config
from paq_detr.errors import UserError
from paq_detr.modeling.objective import supervise
from paq_detr.papers.ddq_detr import (
    DistinctCascade,
    DistinctSelfAttention,
    MappedToken,
    distinct,
)
from paq_detr.structures import DecoderState, LayerOutput, QuerySet, Targets, stack_instances

from ..boxes import centred_iou
from ..modeling.assemblies import (
    DDQ,
    PATTERNS,
    PLUSPLUS,
    make_image,
    make_model,
    memory_of,
    predict,
    predictions_of,
    wake_up,
)

CASCADE = {**DDQ, "MODEL.DETR.QUERIES.AUGMENT": "none", "MODEL.DETR.ROUTES": []}
IMAGES = [
    make_image(64, 96, [[4, 6, 40, 50], [30, 8, 90, 60]], [0, 2], seed=1),
    make_image(50, 120, [[10, 10, 100, 40]], [1], seed=2),
]


def count(module):
    return sum(p.numel() for p in module.parameters())


def suppress(boxes, scores, candidates, threshold):
    """The list of those that no better one overlaps, best first: a loop over one image."""
    kept = []
    for i in sorted(candidates, key=lambda i: -scores[i]):
        if all(centred_iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


# ----------------------------------------------------------------------------------------------------------------------
# Selection


def test_of_overlapping_boxes_the_best_is_distinct():
    boxes = torch.tensor(
        [
            [0.5, 0.5, 0.2, 0.4],
            [0.505, 0.5, 0.2, 0.4],
            [0.55, 0.5, 0.2, 0.4],
            [0.5, 0.5, 0.2, 0.33],
            [0.8, 0.5, 0.1, 0.2],
        ]
    )
    scores = torch.tensor([0.6, 0.7, 0.5, 0.65, 0.3])
    everybody, without_the_best = torch.ones(1, 5, dtype=torch.bool), torch.tensor([[True, False, True, True, True]])
    assert distinct(boxes[None], scores[None], everybody, 0.8)[0].tolist() == [False, True, True, True, True]
    assert suppress(boxes.tolist(), scores.tolist(), range(5), 0.8) == [1, 3, 2, 4]
    assert distinct(boxes[None], scores[None], without_the_best, 0.8)[0].tolist() == [False, False, True, True, True]


def test_distinct_queries_are_those_of_a_loop_in_every_image():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(3, 40, 4, generator=generator) * 0.1 + torch.tensor([0.5, 0.5, 0.3, 0.3])
    scores, candidates = torch.rand(3, 40, generator=generator), torch.rand(3, 40, generator=generator) < 0.7
    candidates[2] = False
    found = distinct(boxes, scores, candidates, 0.6)
    for b in range(3):
        wanted = suppress(boxes[b].tolist(), scores[b].tolist(), candidates[b].nonzero().flatten().tolist(), 0.6)
        assert found[b].nonzero().flatten().tolist() == sorted(wanted)
    assert 1 < found[0].sum() < candidates[0].sum()


def test_of_candidates_one_at_least_is_distinct_whatever_the_scores():
    boxes = torch.full((1, 3, 4), 0.5)
    for value in (float("nan"), float("-inf"), 0.0):
        assert distinct(boxes, torch.full((1, 3), value), torch.tensor([[False, True, True]]), 0.8).sum() == 1


@pytest.mark.parametrize(("threshold", "side"), [(0.8, 0.0), (0.05, 0.0), (0.05, 3.0)], ids=["few", "many", "most"])
def test_the_source_takes_the_best_distinct_proposals_in_order(threshold, side):
    """Of all tokens, though it looks at the best few first; by the threshold and boxes' sides, some are suppressed."""
    model = wake_up(make_model(CASCADE, **{"MODEL.DETR.DDQ.IOU_THRESHOLD": threshold}))
    source, memory = model.sources["main"], memory_of(model, IMAGES)
    if side:  # all boxes stand on their tokens and are as large
        torch.nn.init.zeros_(source.box_head.last.weight)
        torch.nn.init.constant_(source.box_head.last.bias[2:], side)
    proposals = source.propose(memory)
    index, usable = source.best(proposals, 12)
    for b in range(2):
        scores = proposals.logits[b].amax(-1).tolist()
        candidates = proposals.valid[b].nonzero().flatten().tolist()
        wanted = suppress(proposals.boxes[b].tolist(), scores, candidates, threshold)[:12]
        assert index[b][usable[b]].tolist() == wanted
    assert usable.all() == (side == 0.0)  # a short list is not filled up
    skipped = source.best(proposals, 3, skip=2)
    torch.testing.assert_close(skipped[0][usable[:, 2:5]], index[:, 2:5][usable[:, 2:5]])


def test_contents_are_a_map_of_the_chosen_tokens_that_the_encoder_does_not_learn_from():
    model = make_model(CASCADE)
    source, memory = model.sources["main"], memory_of(model, IMAGES)
    memory.tokens.retain_grad()
    index, _ = source.best(source.propose(memory), 12)
    queries = source(memory)
    rows = memory.tokens.detach()[torch.arange(2)[:, None], index]
    torch.testing.assert_close(queries.content, source.content.map(rows))
    queries.content.sum().backward()
    assert memory.tokens.grad is None and source.content.map.weight.grad is not None
    assert not queries.reference.requires_grad


# ----------------------------------------------------------------------------------------------------------------------
# Decoder


def kept_by_loop(states, outputs, decoder, candidates_rule, threshold):
    """Who is distinct before each layer but the first, and who counts behind it: loops over images and queries."""
    number = states[0].reference.shape[1]
    alive = [set(range(number)) for _ in states[0].reference]
    rows = []
    for layer in range(1, len(states)):
        scores = decoder.class_heads[layer - 1](outputs[layer - 1].content).amax(-1)
        kept = []
        for b, boxes in enumerate(states[layer].reference):
            candidates = range(number) if candidates_rule == "all" else sorted(alive[b])
            kept.append(set(suppress(boxes.tolist(), scores[b].tolist(), candidates, threshold)))
            alive[b] = set(range(number)) if candidates_rule == "released" and 0 in kept[b] else kept[b]
        rows.append((kept, [set(a) for a in alive]))
    return rows


@pytest.mark.parametrize("rule", DistinctCascade.CANDIDATES)
def test_selection_between_layers_is_the_loop(rule):
    model = wake_up(make_model(CASCADE, **{"MODEL.DETR.DDQ.CANDIDATES": rule, "MODEL.DETR.DECODER.NUM_LAYERS": 5}))
    decoder, memory = model.routes["main"].decoder, memory_of(model, IMAGES)
    queries = model.sources["main"](memory)
    queries.valid = torch.ones_like(queries.valid)
    decoder.iou_threshold = 0.25
    states = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    with torch.no_grad():
        outputs = decoder(queries, memory)
    expected = kept_by_loop(states, outputs, decoder, rule, 0.25)
    assert outputs[0].valid.all()
    for state, output, (kept, counted) in zip(states[1:], outputs[1:], expected):
        for b in range(2):
            assert set(state.alive[b].nonzero().flatten().tolist()) == kept[b]
            assert set(output.valid[b].nonzero().flatten().tolist()) == counted[b]
    numbers = [tuple(map(len, kept)) for kept, _ in expected]
    assert min(min(n) for n in numbers) < 12  # something was suppressed
    if rule == "distinct":
        assert all(later <= earlier for a, b in zip(expected, expected[1:]) for earlier, later in zip(a[0], b[0]))


def test_scores_are_those_of_the_content_without_the_output_norm():
    model = make_model(CASCADE)
    decoder = model.routes["main"].decoder
    seen = []
    decoder.class_heads[0].register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    outputs = decoder(model.sources["main"](memory_of(model, IMAGES)), memory_of(model, IMAGES))
    predicted, selected = seen
    assert torch.equal(selected, outputs[0].content)
    torch.testing.assert_close(predicted, decoder.output_norm(outputs[0].content))


def scripted(boxes, scores, rule, layers=3):
    """Who is alive in each layer and behind it, where layer l is told the boxes (N, 4) and scores (N,) of step l."""

    class Scripted(DistinctCascade):
        def classify(self, layer, content):
            return torch.tensor(scores[layer]).view(1, -1, 1)

        def locate(self, layer, content, start, memory):
            return torch.tensor(boxes[layer])[None]

    alive = []

    class Layer(torch.nn.Module):
        def forward(self, state, memory):
            alive.append(state.alive)
            return state

    decoder = Scripted(
        layers=[Layer() for _ in range(layers)],
        class_heads=[torch.nn.Identity()],
        box_heads=[torch.nn.Identity()],
        codec=None,
        position=lambda state, memory: None,
        candidates=rule,
    )
    number = len(scores[0])
    outputs = decoder(QuerySet(torch.zeros(1, number, 2), torch.full((1, number, 4), 0.5)), None)
    return [a[0].tolist() for a in alive[1:]], [o.valid[0].tolist() for o in outputs[1:]]


TWINS, APART = [[0.5, 0.5, 0.2, 0.2]] * 2, [[0.5, 0.5, 0.2, 0.2], [0.2, 0.5, 0.2, 0.2]]
SECOND, FIRST, BOTH = [False, True], [True, False], [True, True]


@pytest.mark.parametrize(
    ("rule", "boxes", "scores", "alive", "counted"),
    [
        ("distinct", [TWINS, APART, APART], [0.9, 0.1], [FIRST, FIRST], [FIRST, FIRST]),
        ("all", [TWINS, APART, APART], [0.9, 0.1], [FIRST, BOTH], [FIRST, BOTH]),
        ("released", [TWINS, APART, APART], [0.9, 0.1], [FIRST, BOTH], [BOTH, BOTH]),
        ("distinct", [TWINS, APART, APART], [0.1, 0.9], [SECOND, SECOND], [SECOND, SECOND]),
        ("all", [TWINS, APART, APART], [0.1, 0.9], [SECOND, BOTH], [SECOND, BOTH]),
        ("released", [TWINS, APART, APART], [0.1, 0.9], [SECOND, SECOND], [SECOND, SECOND]),
    ],
)
def test_who_returns_and_who_counts_when_twins_part(rule, boxes, scores, alive, counted):
    """In the release all count, and return, as long as the first query is distinct."""
    assert scripted(boxes, [scores] * 3, rule) == (alive, counted)


@pytest.mark.parametrize(("kept", "blocked"), [([0, 2], (1, 3)), ([1, 2], (0, 3)), ([0, 1, 2, 3], ())])
def test_only_those_that_are_out_do_not_see_each_other(kept, blocked):
    attention = DistinctSelfAttention(8, 2)
    alive = torch.tensor([[i in kept for i in range(4)]])
    state = DecoderState(torch.zeros(1, 4, 8), torch.zeros(1, 4, 4), None, None, alive)
    mask = attention.blocked(state)
    assert mask.shape == (2, 4, 4) and torch.equal(mask[0], mask[1])
    assert {tuple(pair) for pair in mask[0].nonzero().tolist()} == {(i, j) for i in blocked for j in blocked}


def test_filling_slots_are_seen_by_none_and_groups_keep_their_mask():
    """Slots: one of a group, a distinct query, one that is out, one that fills up the batch."""
    base = torch.zeros(4, 4, dtype=torch.bool)
    base[1:, 0] = True
    alive, valid = torch.tensor([[True, True, False, False]]), torch.tensor([[True, True, True, False]])
    state = DecoderState(torch.zeros(1, 4, 8), torch.zeros(1, 4, 4), None, valid, alive, base)
    mask = DistinctSelfAttention(8, 2).blocked(state)[0]
    assert mask.to(torch.int64).tolist() == [[0, 0, 0, 1], [1, 0, 0, 1], [1, 0, 1, 1], [1, 0, 0, 0]]
    nobody_is_out = replace(state, valid=None, alive=None)
    assert torch.equal(DistinctSelfAttention(8, 2).blocked(nobody_is_out), base)


def test_denoising_queries_are_never_out():
    model = wake_up(make_model(DDQ, **{"MODEL.DETR.DDQ.IOU_THRESHOLD": 0.01}))
    states = []
    model.routes["main"].decoder.layers[2].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    predictions = predictions_of(model, IMAGES, targets_of(model, IMAGES))
    main = states[0]
    assert main.first_matching > 0 and main.alive[:, : main.first_matching].all()
    assert predictions["dn_final"].output.valid.all()
    assert predictions["final"].output.valid.sum() < predictions["layer1"].output.valid.sum()


def targets_of(model, images):
    sizes = model.preprocess(images).image_sizes
    return stack_instances([x["instances"] for x in images], sizes, model.device)


def test_only_distinct_queries_are_detected():
    model = wake_up(make_model(CASCADE, **{"MODEL.DETR.DDQ.IOU_THRESHOLD": 0.05})).eval()
    with torch.no_grad():
        memory = memory_of(model, IMAGES)
        outputs = model.routes["main"](model.sources["main"](memory), memory)
        results = model.detect(memory)
    for b, result in enumerate(results):
        assert set(result.query_indices.tolist()) == set(outputs[-1].valid[b].nonzero().flatten().tolist())


def test_losses_are_divided_by_the_pairs_that_are_left():
    """Two objects, and one query that may be matched."""
    objects = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]])
    zeros = torch.zeros(2, dtype=torch.int64)
    targets = Targets(objects, zeros, zeros, (2,), torch.zeros(0, 4), zeros[:0])
    output = LayerOutput(torch.zeros(1, 2, 1), objects[None] + 0.01, valid=torch.tensor([[True, False]]))
    objective = make_model(CASCADE).routes["main"].objectives[-1]
    losses, assignments = supervise([replace(predict("x", output, None), objective=objective)], targets)
    assert len(assignments["x"]) == 1
    assert losses["loss_l1/x"].item() == pytest.approx(5 * 4 * 0.01, rel=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# The whole


def test_every_layer_and_the_encoder_have_dense_losses_beside_dinos():
    losses = make_model(DDQ)(IMAGES)
    plain = make_model({**DDQ, "MODEL.DETR.ROUTES": []})(IMAGES)
    layers = ("encoder", "layer1", "layer2", "final")
    assert set(losses) - set(plain) == {f"loss_{kind}/dense_{layer}" for kind in ("class", "giou") for layer in layers}


def test_a_model_without_numbers_detects_nothing_and_does_not_hang():
    model = make_model(DDQ)
    with torch.no_grad():
        model.neck.convs[0].bias.fill_(float("nan"))
    assert not torch.isfinite(sum(model(IMAGES).values()))
    with torch.no_grad():
        assert all(len(output["instances"]) == 0 for output in model.eval()(IMAGES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**DDQ, "MODEL.DETR.DDQ.IOU_THRESHOLD": 0.0}, "DDQ.IOU_THRESHOLD is 0.0"),
        (
            {**DDQ, "MODEL.DETR.DDQ.CANDIDATES": "best"},
            'DDQ.CANDIDATES is "best", must be one of distinct, all, released',
        ),
        ({**DDQ, "MODEL.DETR.DDQ.DENSE_RATIO": 0.0}, "DDQ.DENSE_RATIO is 0.0"),
        ({**DDQ, "MODEL.DETR.DDQ.DENSE_COPIES": 0}, "DDQ.DENSE_COPIES is 0"),
        ({**DDQ, **PATTERNS}, "ROUTES dense needs .* DistinctTopN and a content from the proposals"),
        ({**PLUSPLUS, "MODEL.DETR.ROUTES": ["dense"]}, "ROUTES dense needs .* these are EncoderTopN and learned"),
        ({"MODEL.DETR.DECODER.NAME": "distinct_cascade"}, "distinct_cascade needs queries with boxes"),
        ({"MODEL.DETR.QUERIES.CONTENT": "mapped_token"}, "mapped_token needs queries from the encoder"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_model(options)


def test_the_published_model_has_its_size():
    """detrex's DINO at 80 classes, with the query map in place of the content table and seven more pairs of heads."""
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.merge_from_file(str(Path(__file__).parents[2] / "configs" / "coco" / "ddq_detr_r50_12ep.yaml"))
    cfg.MODEL.DETR.CLASS_NAMES = [str(i) for i in range(80)]
    cfg.DATASETS.TEST = ()
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get("QueryDetector")(cfg)
    assert count(MappedToken(256)) == 65_792
    assert count(model) == 47_650_316 - 230_400 + 65_792 + 1_072_204
    model.drop_training_parts()
    assert count(model) == 47_650_316 - 230_400 + 65_792 - 20_480
