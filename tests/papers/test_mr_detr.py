# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Mr. DETR's routes: against the main one, against the published attention written out, and what each may touch."""

import copy
import math
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from paq_detr import add_paq_detr_config
from paq_detr.errors import UserError
from paq_detr.modeling.assignment import assign
from paq_detr.modeling.interactions import SelfAttention
from paq_detr.papers.mr_detr import FusedLayers, InstructedSelfAttention
from paq_detr.structures import DecoderState, LayerOutput, Memory, stack_instances

from ..modeling.assemblies import (
    ASSIGNMENT,
    DAB,
    DEHOMO,
    MR,
    MR_DINO,
    PARALLEL,
    PATTERNS,
    PLUSPLUS,
    make_image,
    make_model,
    memory_of,
    predictions_of,
    wake_up,
)

IMAGE = make_image(64, 96, [[4, 6, 40, 50], [30, 8, 90, 60]], [0, 2])
SHARED_PROPOSALS = {**MR, "MODEL.DETR.MR.OWN_PROPOSALS": False}


def route_outputs(model, name):
    memory = memory_of(model, [IMAGE])
    return model.routes[name](model.sources["main"](memory), memory)


def targets_of(model):
    return stack_instances([IMAGE["instances"]], [(64, 96)], model.device)


# ----------------------------------------------------------------------------------------------------------------------
# Routes beside the main one


def test_route_1_with_the_main_feed_forward_weights_is_the_main_route():
    model = wake_up(make_model({**PLUSPLUS, "MODEL.DETR.ROUTES": ["mr_ffn"]}))
    main, own = model.routes["main"].decoder.layers, model.routes["mr_ffn"].decoder.layers
    different = route_outputs(model, "mr_ffn")[-1]
    for theirs, ours in zip(main, own):
        ours.ffn.linear1.load_state_dict(theirs.ffn.linear1.state_dict())
        ours.ffn.linear2.load_state_dict(theirs.ffn.linear2.state_dict())
    for a, b in zip(route_outputs(model, "main"), route_outputs(model, "mr_ffn")):
        assert torch.equal(a.logits, b.logits) and torch.equal(a.boxes, b.boxes)
    assert not torch.allclose(different.logits, b.logits, atol=1e-2)


def test_route_3_without_tokens_norm_and_proposals_of_its_own_is_the_main_route(monkeypatch):
    model = wake_up(make_model(SHARED_PROPOSALS))
    instructed = route_outputs(model, "mr_tokens")
    main, own = model.routes["main"].decoder.layers, model.routes["mr_tokens"].decoder.layers
    for theirs, ours in zip(main, own):
        ours.interactions[0].norm.load_state_dict(theirs.interactions[0].norm.state_dict())
    published = InstructedSelfAttention.blocked

    def without_tokens(self, state):
        mask = published(self, state)
        mask[..., : len(self.content)] = True
        return mask

    monkeypatch.setattr(InstructedSelfAttention, "blocked", without_tokens)
    for a, b, with_tokens in zip(route_outputs(model, "main"), route_outputs(model, "mr_tokens"), instructed):
        torch.testing.assert_close(a.logits, b.logits)
        torch.testing.assert_close(a.boxes, b.boxes)
        assert not torch.allclose(a.logits, with_tokens.logits, atol=1e-2)


@pytest.mark.parametrize("options", [MR, MR_DINO], ids=["deformable", "dino"])
def test_the_main_routes_losses_do_not_depend_on_the_others(options):
    model, main = wake_up(make_model(options)), make_model({**options, "MODEL.DETR.ROUTES": []})
    assert not main.load_state_dict(model.state_dict(), strict=False).missing_keys
    losses = []
    for m in (model, main):
        torch.manual_seed(3)  # denoising
        losses.append(m([IMAGE]))
    with_routes, alone = losses
    assert alone.items() <= with_routes.items()
    prefixes = {name.split("/")[1].rsplit("_", 1)[0] for name in with_routes.keys() - alone.keys()}
    assert {"mr_ffn", "mr_tokens"} <= prefixes


def parameter_names(model, route):
    """Of the route's first layer, which belong to it alone."""
    return {
        name.removeprefix("decoder.layers.0.").split(".weight")[0].split(".bias")[0]
        for name, _ in model.routes[route].named_parameters()
        if name.startswith("decoder.layers.0.")
    }


FFN = {"ffn.linear1", "ffn.linear2"}
CROSS = {"cross_attention.norm"} | {
    f"cross_attention.attention.{part}"
    for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
}


@pytest.mark.parametrize(
    ("route", "own"),
    [
        ("mr_shared", set()),
        ("mr_ffn", FFN),
        ("mr_ca", CROSS),
        ("mr_ca_ffn", CROSS | FFN),
        ("mr_tokens", {"interactions.0.content", "interactions.0.position", "interactions.0.norm"}),
    ],
)
def test_a_route_owns_what_its_name_says_and_no_more(route, own):
    model = make_model({**PLUSPLUS, "MODEL.DETR.ROUTES": [route]})
    assert parameter_names(model, route) == own
    assert all(name.startswith("decoder.layers.") for name, _ in model.routes[route].named_parameters())


def test_self_attention_of_a_routes_own_has_a_norm_of_its_own():
    names = parameter_names(make_model({**PLUSPLUS, "MODEL.DETR.ROUTES": ["mr_sa"]}), "mr_sa")
    assert "interactions.0.norm" in names and "interactions.0.attention.out_proj" in names


def test_tokens_stand_in_the_layers_that_have_some():
    model = make_model({**SHARED_PROPOSALS, "MODEL.DETR.MR.TOKEN_LAYERS": [2]})
    layers = model.routes["mr_tokens"].decoder.layers
    assert [isinstance(layer.interactions[0], InstructedSelfAttention) for layer in layers] == [False, True, False]


def test_the_published_model_is_6_492_244_parameters_larger_in_training():
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.merge_from_file(str(Path(__file__).parents[2] / "configs/coco/mr_detr_deformable_300_r50_12ep.yaml"))
    cfg.MODEL.DETR.CLASS_NAMES, cfg.DATASETS.TEST = [str(i) for i in range(80)], ()
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get("QueryDetector")(cfg)

    def count():
        return sum(p.numel() for p in model.parameters())

    training = count()
    model.drop_training_parts()
    assert training - count() == 6_492_244


@pytest.mark.parametrize("options", [MR, MR_DINO, {**MR, **PATTERNS, **ASSIGNMENT}], ids=["mr", "dino", "paq"])
def test_without_its_training_parts_it_predicts_the_same(options):
    model = wake_up(make_model(options)).eval()
    slim = copy.deepcopy(model)
    slim.drop_training_parts()
    assert not any("mr_" in name or "augmenters" in name for name in slim.state_dict())
    with torch.no_grad():
        (before,), (after,) = (m([IMAGE]) for m in (model, slim))
    assert torch.equal(before["instances"].scores, after["instances"].scores)


# ----------------------------------------------------------------------------------------------------------------------
# Instruction tokens


def published_attention(instructed, state, mask):
    """Tokens and queries in one attention, as queries, keys and values; ``mask`` (m + N, m + N) or None."""
    batch, count = len(state.content), len(instructed.content)
    content = torch.cat([instructed.content.expand(batch, -1, -1), state.content], 1)
    position = torch.cat([instructed.position.expand(batch, -1, -1), state.position], 1)
    query = content + position
    update = instructed.shared.attention(query, query, content, attn_mask=mask)[0][:, count:]
    return instructed.norm(state.content + update)


def published_mask(own, num_tokens, num_matching):
    """All is blocked but what the queries see of each other, and what tokens and matching queries do."""
    size = num_tokens + len(own)
    mask = torch.ones(size, size, dtype=torch.bool)
    mask[num_tokens:, num_tokens:] = own
    mask[:num_tokens, -num_matching:] = False
    mask[-num_matching:, :num_tokens] = False
    return mask


def instructed_state(groups=0, matching=5, batch=2):
    torch.manual_seed(0)
    instructed = InstructedSelfAttention(SelfAttention(16, 4), num_tokens=3)
    count = groups * 2 + matching
    mask = None
    if groups:
        group = torch.arange(groups).repeat_interleave(2)
        mask = torch.zeros(count, count, dtype=torch.bool)
        mask[: groups * 2, : groups * 2] = group[:, None] != group
        mask[groups * 2 :, : groups * 2] = True
    content, position = torch.randn(2, batch, count, 16).requires_grad_().unbind(0)
    reference = torch.rand(batch, count, 4)
    return instructed, DecoderState(content, reference, position, None, None, mask, first_matching=groups * 2)


@pytest.mark.parametrize("groups", [0, 2])
def test_instructed_attention_is_the_published_one_written_out(groups):
    instructed, state = instructed_state(groups)
    mask = None if state.attention_mask is None else published_mask(state.attention_mask, 3, 5)
    torch.testing.assert_close(instructed(state, None).content, published_attention(instructed, state, mask))


def test_denoising_queries_are_not_instructed_and_matching_ones_are():
    instructed, state = instructed_state(groups=2)
    out = instructed(state, None).content
    for queries, touched in ((out[:, :4], False), (out[:, 4:], True)):
        gradients = torch.autograd.grad(
            queries.square().sum(), [instructed.content, instructed.position], retain_graph=True
        )
        assert all((gradient.abs().sum() > 0) == touched for gradient in gradients)


@pytest.mark.parametrize("groups", [0, 2])
def test_nobody_sees_a_dropped_query(groups):
    instructed, state = instructed_state(groups)
    state.alive = torch.ones(2, state.content.shape[1], dtype=torch.bool)
    torch.testing.assert_close(instructed(state, None).content, instructed(instructed_state(groups)[1], None).content)
    state.alive[0, -2] = False
    out = instructed(state, None).content
    seen = out[0, :-2].pow(3).sum() + out[0, -1].pow(3).sum() + out[1].pow(3).sum()  # a norm's own sums are constant
    (gradient,) = torch.autograd.grad(seen, [state.content])
    assert (gradient[0, -2] == 0).all() and (gradient[1, -2] != 0).any()


def test_tokens_start_within_0_150():
    tokens = InstructedSelfAttention(SelfAttention(256, 8))
    for table in (tokens.content, tokens.position):
        assert table.shape == (10, 256) and 0.145 < table.abs().max() < math.sqrt(6 / 266)


# ----------------------------------------------------------------------------------------------------------------------
# Route 3's own proposals, and what routes share


def test_route_3_takes_the_best_proposals_of_its_own_heads():
    model = wake_up(make_model(MR))
    memory = memory_of(model, [IMAGE])
    main, own = model.sources["main"], model.sources["mr_tokens"]
    queries, others = own(memory), main(memory)
    proposals = main.proposals_by(own.class_head, own.box_head, memory)
    index, _ = main.best(proposals, 12)
    assert torch.equal(queries.reference, proposals.boxes.gather(1, index[..., None].expand(-1, -1, 4)))
    assert torch.equal(queries.content, others.content)
    assert not torch.allclose(queries.reference, others.reference)
    assert torch.equal(queries.position, main.codes(queries.reference)[1])


def test_only_the_boxes_of_route_3s_proposals_start_small():
    model = make_model(MR)
    assert model.sources["mr_tokens"].box_head.last.bias.tolist() == [0, 0, -2, -2]
    assert not model.sources["main"].box_head.last.bias.any()
    assert {name.split(".")[0] for name, _ in model.sources["mr_tokens"].named_parameters()} == {
        "class_head",
        "box_head",
    }


def test_all_routes_undo_the_same_noise():
    model = make_model(MR_DINO)
    memory, targets = memory_of(model, [IMAGE]), targets_of(model)
    main, own = (model.augmenters[n](model.sources[n](memory), targets, memory) for n in ("main", "mr_tokens"))
    count = main.groups[0].stop
    assert count == own.groups[0].stop == 12
    for name in ("content", "reference", "position"):
        assert torch.equal(getattr(main, name)[:, :count], getattr(own, name)[:, :count])
    assert torch.equal(main.attention_mask, own.attention_mask)
    next_step = model.augmenters["main"](model.sources["main"](memory), targets, memory_of(model, [IMAGE]))
    assert not torch.equal(main.reference[:, :count], next_step.reference[:, :count])


def test_only_matching_queries_of_the_routes_have_the_routes_scale():
    found = predictions_of(make_model(MR_DINO), [IMAGE], targets_of(make_model(MR_DINO)))
    scales = {name: p.scale for name, p in found.items()}
    groups = found["dn_final"].scale
    for route in ("mr_ffn", "mr_tokens"):
        assert scales[f"{route}_layer1"] == scales[f"{route}_final"] == pytest.approx(1 / 3)
        assert scales[f"{route}_dn_final"] == groups
    assert scales["final"] == scales["encoder"] == scales["mr_tokens_encoder"] == 1


def test_tokens_are_projected_and_patterns_mixed_once_for_all_routes():
    model = make_model({**MR, **PATTERNS})
    calls = []
    source = model.sources["main"]
    decoder = model.routes["main"].decoder
    for module in (source.project, source.content.generator, decoder.layers[0].cross_attention.attention.value_proj):
        module.register_forward_hook(lambda module, *_: calls.append(module))
    losses = model([IMAGE])
    assert len(calls) == len(set(calls)) == 3
    assert sum("diversity" in name for name in losses) == 1


def test_what_routes_share_changes_neither_losses_nor_gradients(monkeypatch):
    """Against three passes that compute all for themselves."""
    found = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(Memory, "once", lambda self, owner, compute: compute(self))
        model = wake_up(make_model({**MR, **PATTERNS}))
        losses = model([IMAGE])
        sum(losses.values()).backward()
        found.append({**losses, **{name: p.grad for name, p in model.named_parameters()}})
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=1e-4)


def test_a_bf16_step_trains():
    model = make_model({**MR_DINO, "MODEL.DETR.LOSS.CLASSIFICATION": "mr_align"})
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([IMAGE])
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_proposals_matched_on_priors_find_their_objects_whatever_they_predict():
    found = []
    for seed in (1, 2):
        model = wake_up(make_model(MR), seed)
        predictions = predictions_of(model, [IMAGE], targets_of(model))
        chosen = [predictions["encoder"], predictions["mr_tokens_encoder"]]
        found += [a.query.tolist() for a in assign(chosen, targets_of(model))]
        assert chosen[0].match.boxes.shape == chosen[0].output.boxes.shape
    assert found[0] == found[1] == found[2] == found[3] and len(found[0]) == 2


# ----------------------------------------------------------------------------------------------------------------------
# Read-out, and what does not fit


def test_fused_scores_are_the_published_mixture():
    torch.manual_seed(0)
    outputs = [LayerOutput(torch.randn(1, 4, 2) * 3, torch.rand(1, 4, 4)) for _ in range(3)]
    fused = FusedLayers(10).combine(outputs, None)
    for query in range(4):
        for label in range(2):
            mixed = outputs[0].logits[0, query, label].sigmoid().item()
            for output in outputs[1:]:
                score = output.logits[0, query, label].sigmoid().item()
                mixed = math.sqrt((score**2.001 + mixed**1.853) / 2)
            assert fused.logits[0, query, label].sigmoid().item() == pytest.approx(mixed, abs=1.1e-3)
    assert fused.boxes is outputs[-1].boxes
    assert FusedLayers(10, layer=2).combine(outputs, None).boxes is outputs[1].boxes


def test_fused_scores_are_read_out_where_they_are_asked_for():
    plain, fused = (
        wake_up(make_model({**MR, "MODEL.DETR.READ_OUT.NAME": n})).eval() for n in ("layer", "fused_layers")
    )
    with torch.no_grad():
        (a,), (b,) = plain([IMAGE]), fused([IMAGE])
    assert not torch.allclose(a["instances"].scores, b["instances"].scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {**DEHOMO, "MODEL.DETR.ROUTES": ["mr_tokens"]},
            r"mr_tokens puts its tokens into self_attention, which .*'dehomo', 'dehomo'\] lacks in layer 1, 2, 3",
        ),
        (
            {**DEHOMO, "MODEL.DETR.ROUTES": ["mr_sa_ffn"]},
            "mr_sa_ffn has its own self-attention, which .* lacks in layer 1",
        ),
        (
            {**DAB, "MODEL.DETR.ROUTES": ["mr_tokens"]},
            r"tokens into self_attention, which .*\['conditional_self_attention'\] lacks",
        ),
        ({"MODEL.DETR.ROUTES": ["mr_tokens"]}, "MR.OWN_PROPOSALS needs queries from the encoder"),
        (
            {**MR, **PARALLEL},
            "mr_ffn .* needs MODEL.DETR.DECODER.NAME cascade in place of paral",
        ),
        ({**MR, "MODEL.DETR.MR.TOKEN_LAYERS": [4]}, r"MR.TOKEN_LAYERS is 4, must be in \[1, 3\]"),
        ({**MR, "MODEL.DETR.MR.TOKENS": 0}, "MR.TOKENS is 0, must be at least 1"),
        ({**MR, "MODEL.DETR.MR.ASSIGNER": "best"}, 'MR.ASSIGNER is "best", must be one of .*mr_quality'),
        ({**MR, "MODEL.DETR.MR.ALPHA": 2.0}, r"MR.ALPHA is 2.0, must be in \[0, 1\]"),
        ({"MODEL.DETR.QUERIES.MATCH_ON_PRIORS": True}, "QUERIES.MATCH_ON_PRIORS True needs queries from the encoder"),
    ],
)
def test_what_makes_no_sense_says_why(options, message):
    with pytest.raises(UserError, match=message):
        make_model(options)
