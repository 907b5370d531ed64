# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""DAB-DETR's parts against formulas written out as loops; its size and its behaviour as a detector."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from paq_detr import add_paq_detr_config
from paq_detr.errors import UserError
from paq_detr.layers import FeedForward
from paq_detr.papers.dab_detr import (
    AnchorPosition,
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    DenseEncoder,
    DenseEncoderLayer,
)
from paq_detr.structures import DecoderState, Grid, LayerOutput, Memory, stack_instances

from ..modeling.assemblies import DAB, DN, make_image, make_model, memory_of, wake_up

WIDTH, HEADS, QUERIES = 16, 4, 5


def make_memory(generator):
    """Two images of 3 x 4 tokens; the second has a row and a column of padding."""
    grid = Grid([(3, 4)], [32], [(96, 128), (64, 96)], (96, 128), [[(3, 4)], [(2, 3)]])
    tokens, position = (torch.randn(2, 12, WIDTH, generator=generator) for _ in range(2))
    return Memory(tokens, position, grid)


def make_state(generator, **more):
    content, position, spatial = (torch.randn(2, QUERIES, WIDTH, generator=generator) for _ in range(3))
    reference = torch.rand(2, QUERIES, 4, generator=generator) * 0.8 + 0.1
    return DecoderState(content, reference, position, None, None, spatial=spatial, **more)


def shaken(module, generator):
    """The module with random biases and norms."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


def attention_loop(queries, keys, values, sees, scale):
    """(N, C) by one query and head at a time; ``queries`` and ``keys`` are lists of parts, each (N or S, C), that every
    head has side by side."""
    count, head = len(values), values.shape[1] // HEADS
    rows = []
    for n in range(len(queries[0])):
        out = []
        for h in range(HEADS):
            cut = slice(h * head, (h + 1) * head)
            weights = []
            for s in range(count):
                product = sum(float(q[n, cut].double() @ k[s, cut].double()) for q, k in zip(queries, keys))
                weights.append(math.exp(scale * product) if sees(n, s) else 0.0)
            out.append(sum(w * values[s, cut] for s, w in enumerate(weights)) / sum(weights))
        rows.append(torch.cat(out))
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("alive", [False, True], ids=["all_alive", "some_dropped"])
@pytest.mark.parametrize("masked", [False, True], ids=["open", "masked"])
def test_self_attention_adds_projected_positions_to_queries_and_keys(alive, masked):
    generator = torch.Generator().manual_seed(0)
    part = shaken(ConditionalSelfAttention(WIDTH, HEADS), generator)
    mask = (torch.rand(QUERIES, QUERIES, generator=generator) < 0.4) & ~torch.eye(QUERIES, dtype=torch.bool)
    state = make_state(generator, attention_mask=mask if masked else None)
    dropped = torch.tensor([[False] * QUERIES, [False, True, False, True, False]])
    if alive:
        state = replace(state, alive=~dropped)
    result = part(state, None).content
    for image in range(2):
        x, p = state.content[image], state.position[image]
        query, key = part.content_query(x) + part.position_query(p), part.content_key(x) + part.position_key(p)

        def sees(n, s, image=image):
            return n == s or not (alive and dropped[image, s]) and not (masked and mask[n, s])

        update = attention_loop([query], [key], part.value(x), sees, (WIDTH / HEADS) ** -0.5)
        torch.testing.assert_close(result[image], part.norm(x + part.output(update)))


@torch.no_grad()
@pytest.mark.parametrize("first", [True, False], ids=["first_layer", "later_layer"])
def test_cross_attention_compares_content_and_place_side_by_side(first):
    generator = torch.Generator().manual_seed(1)
    part = shaken(ConditionalCrossAttention(WIDTH, HEADS, first=first), generator)
    state, memory = make_state(generator), make_memory(generator)
    result = part(state, memory).content
    for image in range(2):
        x, m, place = state.content[image], memory.tokens[image], memory.position[image]
        query, key, key_position = part.content_query(x), part.content_key(m), part.position_key(place)
        if first:
            query, key = query + part.position_query(state.position[image]), key + key_position
        queries, keys = [query, part.spatial_query(state.spatial[image])], [key, key_position]
        update = attention_loop(
            queries,
            keys,
            part.value(m),
            lambda n, s, image=image: not memory.grid.padding[image, s],
            (2 * WIDTH / HEADS) ** -0.5,
        )
        torch.testing.assert_close(result[image], part.norm(x + part.output(update)))


@torch.no_grad()
def test_the_encoder_scales_positions_by_the_content_anew_in_every_layer():
    generator = torch.Generator().manual_seed(2)
    layers = [DenseEncoderLayer(WIDTH, 24, HEADS) for _ in range(2)]
    encoder, memory = shaken(DenseEncoder(layers, WIDTH), generator), make_memory(generator)
    result = encoder(memory)
    assert result.position is memory.position  # the decoder reads the image's own
    for image in range(2):
        x, padding = memory.tokens[image], memory.grid.padding[image]
        for layer in layers:
            w, b = layer.attention.in_proj_weight.chunk(3), layer.attention.in_proj_bias.chunk(3)
            placed = x + memory.position[image] * encoder.position_scale(x)
            query, key, value = placed @ w[0].T + b[0], placed @ w[1].T + b[1], x @ w[2].T + b[2]
            update = attention_loop([query], [key], value, lambda n, s, p=padding: not p[s], (WIDTH / HEADS) ** -0.5)
            x = layer.norm(x + layer.attention.out_proj(update))
            hidden = layer.ffn.linear1(x)
            hidden = torch.where(hidden > 0, hidden, layer.ffn.activation.weight * hidden)
            x = layer.ffn.norm(x + layer.ffn.linear2(hidden))
        torch.testing.assert_close(result.tokens[image], x)


def test_the_slope_below_zero_starts_at_a_quarter_and_is_one_number():
    assert DenseEncoderLayer(WIDTH, 24, HEADS).ffn.activation.weight.tolist() == [0.25]
    assert FeedForward(WIDTH, 24, activation="prelu").activation.weight.tolist() == [0.25]
    assert list(FeedForward(WIDTH, 24).activation.parameters()) == []


@pytest.fixture
def one_anchor():
    """The state of one query of the box (.25, .5, .1, .2)."""
    content = torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(3))
    return DecoderState(content, torch.tensor([[[0.25, 0.5, 0.1, 0.2]]]), None, None, None)


@torch.no_grad()
def test_codes_go_y_x_w_h_and_sizes_scale_each_axis_by_its_own_side(one_anchor):
    part = AnchorPosition(256)
    inputs = []
    part.mlp.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    for parameter in part.size_scale.parameters():
        parameter.zero_()  # expects sides of one half: x / .1 is times 5, y / .2 times 2.5
    _, spatial = part(one_anchor, None)
    code = inputs[0][0, 0]
    expected = {0: (0, -1, 0.408751, -0.912646), 128: (1, 0, 0.977918, 0.208991)}
    expected |= {256: (0.587785, 0.809017, 0.517650, 0.855593), 384: (0.951057, 0.309017, 0.885794, 0.464078)}
    for start, values in expected.items():
        assert code[start : start + 4].tolist() == pytest.approx(values, abs=1e-5)
    assert code.sum().item() == pytest.approx(271.3591, abs=1e-2)
    torch.testing.assert_close(spatial[0, 0], torch.cat([code[:128] * 2.5, code[128:256] * 5]))


@torch.no_grad()
def test_expected_width_belongs_to_x_and_height_to_y(one_anchor):
    part = AnchorPosition(256)
    plain = part(one_anchor, None)[1]
    part.size_scale.last.bias.copy_(torch.tensor([100.0, -100.0]))  # of width, height
    wide = part(one_anchor, None)[1][0, 0]
    assert wide[:128].abs().max() < 1e-6 < plain[0, 0, :128].abs().max()
    assert wide[128].item() == pytest.approx(10, abs=1e-4)  # sin(pi / 2) by a width of .1


@torch.no_grad()
def test_content_scales_the_centre_from_the_second_layer_on(one_anchor):
    part = AnchorPosition(256)
    position, first = part(one_anchor, None)
    before = LayerOutput(torch.zeros(1, 1, 2), one_anchor.reference)
    position_later, later = part(replace(one_anchor, history=(before,)), None)
    assert torch.equal(position, position_later)
    torch.testing.assert_close(later, first * part.content_scale(one_anchor.content))


@pytest.mark.parametrize(("names", "stride"), [([], 32), (["res4"], 16)])
def test_the_neck_reads_the_last_map_or_the_one_that_is_named(names, stride):
    every_map = {"MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"]}
    model = make_model(DAB, **every_map, **{"MODEL.DETR.NECK.IN_FEATURES": names})
    memory = memory_of(model, two_images())
    assert memory.grid.strides == (stride,)
    assert memory.grid.shapes == ((-(-64 // stride), -(-120 // stride)),)


def test_only_the_first_layer_projects_the_position_of_its_queries():
    layers = make_model(DAB).routes["main"].decoder.layers
    assert [layer.cross_attention.position_query is not None for layer in layers] == [True, False, False]


PATTERNED = {**DAB, "MODEL.DETR.QUERIES.NAME": "PatternedAnchors", "MODEL.DETR.QUERIES.CONTENT": "learned"}


@pytest.mark.parametrize("patterns", [1, 3, 12])
def test_every_anchor_has_a_query_of_each_pattern(patterns):
    source = make_model({**PATTERNED, "MODEL.DETR.DAB.PATTERNS": patterns}).sources["main"]
    anchors = 12 // patterns
    assert {name: len(table) for name, table in source.named_parameters()} == {
        "anchors": anchors,
        "content.table": patterns,
    }
    queries = source(SimpleNamespace(tokens=torch.zeros(2, 1, 1)))
    assert queries.content.shape == (2, 12, 64) and queries.reference.shape == (2, 12, 4)
    for pattern in range(patterns):
        for anchor in range(anchors):
            slot = pattern * anchors + anchor
            assert torch.equal(queries.content[1, slot], source.content.table[pattern])
            torch.testing.assert_close(queries.reference[1, slot], source.anchors[anchor].sigmoid())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"DAB.PATTERNS": 5}, "QUERIES.NUM is 12, must be a multiple of MODEL.DETR.DAB.PATTERNS 5"),
        ({"DAB.PATTERNS": 0}, "DAB.PATTERNS is 0, must be at least 1"),
        ({"QUERIES.CONTENT": "zeros"}, "PatternedAnchors needs MODEL.DETR.QUERIES.CONTENT learned in place of zeros"),
        ({"QUERIES.SUPERVISE": "selected"}, "QUERIES.SUPERVISE selected needs queries from the encoder"),
    ],
)
def test_patterns_that_do_not_fit_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_model(PATTERNED, **{f"MODEL.DETR.{key}": value for key, value in options.items()})


def two_images(objects=True):
    boxes = [[[4, 6, 40, 50], [30, 8, 90, 60]], [[10, 10, 100, 40]]] if objects else [[], []]
    labels = [[0, 2], [1]] if objects else [[], []]
    return [make_image(*size, *content) for *content, size in zip(boxes, labels, [(64, 96), (50, 120)])]


@pytest.mark.parametrize("objects", [True, False], ids=["objects", "no_objects"])
@pytest.mark.parametrize("options", [DAB, DN], ids=["dab", "dn"])
def test_every_parameter_learns(options, objects):
    model = make_model(options)
    losses = model(two_images(objects))
    sum(losses.values()).backward()
    parts = [(name, p.grad) for name, p in model.named_parameters() if not name.startswith("backbone.")]
    assert [name for name, gradient in parts if gradient is None or not gradient.isfinite().all()] == []
    assert len(losses) == (9 if options is DAB else 18)  # three layers


@torch.no_grad()
def test_matching_queries_do_not_notice_denoising_ones():
    model, images = wake_up(make_model(DN)), two_images()
    memory = memory_of(model, images)
    queries = model.sources["main"](memory)
    targets = stack_instances([x["instances"] for x in images], memory.grid.image_sizes, memory.tokens.device)
    decoder = model.routes["main"].decoder
    alone, beside = decoder(queries, memory), decoder(model.augmenters["main"](queries, targets), memory)
    for some, all_of_them in zip(alone, beside):
        added = all_of_them.boxes.shape[1] - some.boxes.shape[1]
        assert added == 3 * 2  # groups by the objects of the fuller image
        torch.testing.assert_close(all_of_them.boxes[:, added:], some.boxes, atol=1e-4, rtol=0)
        torch.testing.assert_close(all_of_them.logits[:, added:], some.logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_padded_batch_gives_what_its_images_give_alone():
    model = wake_up(make_model(DAB)).eval()
    images = [make_image(64, 224, seed=1), make_image(190, 120, seed=2)]
    for alone, together in zip(images, model(images)):
        (alone,) = model([alone])
        torch.testing.assert_close(together["instances"].scores, alone["instances"].scores, atol=1e-5, rtol=0)
        boxes = [result["instances"].pred_boxes.tensor for result in (together, alone)]
        torch.testing.assert_close(*boxes, atol=1e-2, rtol=0)  # in pixels


def test_checkpointing_the_encoder_changes_nothing():
    gradients, images = [], two_images()
    for checkpoint in (False, True):
        model = make_model(DAB, **{"MODEL.DETR.ENCODER.CHECKPOINT": checkpoint})
        sum(model(images).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("dab_detr_r50_50ep", 43_671_517),
        # The last of the 92 rows of 255 in the official label table is what all matching queries share: here a vector
        # of its own, 256 wide, whose last channel the indicator takes.
        ("dn_detr_r50_50ep", 43_694_977 + 1),
    ],
)
def test_the_models_have_the_size_of_the_official_ones(name, size):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.merge_from_file(str(Path(__file__).parents[2] / "configs" / "coco" / f"{name}.yaml"))
    cfg.MODEL.DETR.CLASS_NAMES = [str(i) for i in range(91)]
    cfg.DATASETS.TEST = ()
    with torch.device("meta"):
        parameters = list(META_ARCH_REGISTRY.get("QueryDetector")(cfg).parameters())
    assert sum(p.numel() for p in parameters) == size
    assert sum(p.numel() for p in parameters if not p.requires_grad) == 222_400  # stem and first stage


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"NECK.NUM_LEVELS": 4}, "NECK.NUM_LEVELS is 4, but MODEL.DETR.NECK.NAME single_level makes 1"),
        ({"NECK.IN_FEATURES": ["res4", "res5"]}, "single_level reads one map"),
        ({"ENCODER.NUM_LAYERS": 0}, "ENCODER.NUM_LAYERS is 0"),
        ({"ACTIVATION": "tanh"}, 'ACTIVATION is "tanh", must be one of relu, prelu, gelu'),
        ({"DECODER.QUERY_POSITION": "sine_mlp"}, "CROSS_ATTENTION \\['conditional'\\] and .* sine_mlp do not fit"),
        ({"DECODER.CROSS_ATTENTION": ["deformable"]}, "CROSS_ATTENTION \\['deformable'\\] and .* dab do not fit"),
        (
            {"DECODER.QUERY_POSITION": "none", "DECODER.CROSS_ATTENTION": ["deformable"]},
            "conditional_self_attention needs a position",
        ),
        ({"QUERIES.NAME": "LearnedQueries"}, "needs queries with boxes"),
    ],
)
def test_parts_that_do_not_fit_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_model(DAB, **{f"MODEL.DETR.{key}": value for key, value in options.items()})
