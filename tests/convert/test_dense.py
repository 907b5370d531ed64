# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""DAB-DETR and DN-DETR in three spellings: every tensor of a file finds its place, and it is the right one."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from paq_detr import add_paq_detr_config
from paq_detr.convert import convert_if_foreign, dense
from paq_detr.convert.layout import apply_rules
from paq_detr.errors import UserError

from .published import LAYERS, WIDTH, detectron2_r50, linear, merged, mlp, norm, self_attention, torchvision_r50

DECODER = "routes.main.decoder"
STEMS = {
    "official": ("{}_qcontent_proj", "{}_kcontent_proj", "{}_qpos_proj", "{}_kpos_proj", "{}_v_proj"),
    "long": ("{}_query_content_proj", "{}_key_content_proj", "{}_query_pos_proj", "{}_key_pos_proj", "{}_value_proj"),
}


def attentions(stems, own, cross, spatial, layer):
    """The projections of both attentions of a decoder layer."""
    content_query, content_key, position_query, position_key, value = stems
    names = [stem.format(own) for stem in stems]
    names += [stem.format(cross) for stem in (content_query, content_key, position_key, value, spatial)]
    names += [position_query.format(cross)] if layer == 0 else []
    return [linear(name, WIDTH, WIDTH) for name in names]


def once(transformer, norm_name, last):
    """What a transformer has beside its layers."""
    decoder = f"{transformer}.decoder"
    scales = [mlp(f"{transformer}.{part}.query_scale", WIDTH, WIDTH, WIDTH) for part in ("encoder", "decoder")]
    return [
        *scales,
        mlp(f"{decoder}.ref_point_head", 2 * WIDTH, WIDTH, WIDTH),
        mlp(f"{decoder}.ref_anchor_head", WIDTH, WIDTH, 2),
        norm(f"{decoder}.{norm_name}"),
        *(mlp(name, WIDTH, WIDTH, WIDTH, 4) for name in (f"{decoder}.bbox_embed", last)),
    ]


def ends(projection, anchors, classes):
    inputs = {f"{projection}.weight": (WIDTH, 2048, 1, 1), f"{projection}.bias": (WIDTH,)}
    return {**inputs, f"{anchors}.weight": (300, 4), **linear("class_embed", classes, WIDTH)}


def ffn(first, second, *slopes):
    return [linear(first, 2048, WIDTH), linear(second, WIDTH, 2048), *({f"{slope}.weight": (1,)} for slope in slopes)]


def official():
    parts = [torchvision_r50("backbone.0.body."), ends("input_proj", "refpoint_embed", 91)]
    for i in range(LAYERS):
        at = f"transformer.encoder.layers.{i}"
        parts += [self_attention(f"{at}.self_attn"), norm(f"{at}.norm1"), norm(f"{at}.norm2")]
        parts += ffn(f"{at}.linear1", f"{at}.linear2", f"{at}.activation")
        at = f"transformer.decoder.layers.{i}"
        parts += attentions(STEMS["official"], f"{at}.sa", f"{at}.ca", "{}_qpos_sine_proj", i)
        parts += [linear(f"{at}.{name}.out_proj", WIDTH, WIDTH) for name in ("self_attn", "cross_attn")]
        parts += [norm(f"{at}.norm{n}") for n in (1, 2, 3)]
        parts += ffn(f"{at}.linear1", f"{at}.linear2", f"{at}.activation")
    return merged([*parts, *once("transformer", "norm", "bbox_embed")])


def detrex():
    parts = [detectron2_r50("backbone."), ends("input_proj", "anchor_box_embed", 80)]
    stems = [stem.replace("{}_", "{}.") for stem in STEMS["long"]]
    for part, count in (("encoder", 2), ("decoder", 3)):
        for i in range(LAYERS):
            at = f"transformer.{part}.layers.{i}"
            parts += [norm(f"{at}.norms.{n}") for n in range(count)]
            slopes = (f"{at}.ffns.0.activation", f"{at}.ffns.0.layers.0.1")
            parts += ffn(f"{at}.ffns.0.layers.0.0", f"{at}.ffns.0.layers.1", *slopes)
            if part == "encoder":
                parts += [self_attention(f"{at}.attentions.0.attn")]
            else:
                own, cross = f"{at}.attentions.0", f"{at}.attentions.1"
                parts += attentions(stems, own, cross, "{}.query_pos_sine_proj", i)
                parts += [linear(f"{name}.out_proj", WIDTH, WIDTH) for name in (own, cross)]
    return merged([*parts, *once("transformer", "post_norm_layer", "bbox_embed")])


def transformers():
    backbone = torchvision_r50("model.backbone.conv_encoder.model._backbone.")
    parts = [backbone, ends("model.input_projection", "model.query_refpoint_embeddings", 91)]
    for i in range(LAYERS):
        at = f"model.encoder.layers.{i}"
        parts += [linear(f"{at}.self_attn.{name}_proj", WIDTH, WIDTH) for name in ("q", "k", "v", "out")]
        parts += [norm(f"{at}.self_attn_layer_norm"), norm(f"{at}.final_layer_norm")]
        parts += ffn(f"{at}.fc1", f"{at}.fc2", f"{at}.activation_fn")
        at = f"model.decoder.layers.{i}"
        own, cross = f"{at}.self_attn.self_attn", f"{at}.cross_attn.cross_attn"
        parts += attentions(STEMS["long"], own, cross, "{}_query_pos_sine_proj", i)
        parts += [linear(f"{name}.output_proj", WIDTH, WIDTH) for name in (own, cross)]
        parts += [norm(name) for name in (f"{own}_layer_norm", f"{cross}_layer_norm", f"{at}.mlp.final_layer_norm")]
        parts += ffn(f"{at}.mlp.fc1", f"{at}.mlp.fc2", f"{at}.mlp.activation_fn")
    return merged([*parts, *once("model", "layernorm", "bbox_predictor")])


PATTERNS = {"transformer.patterns.weight": (3, WIDTH)}
OFFICIAL_LABELS = {"label_enc.weight": (92, WIDTH - 1)}
DETREX_LABELS = {"denoising_generator.label_encoder.weight": (81, WIDTH - 1)}
# title, names and shapes, keys, further copies, parameters
FILES = {
    "dab": ("the official DAB-DETR", official(), 590, 6, 43_671_517),
    "dab_patterns": ("the official DAB-DETR, 3 patterns", official() | PATTERNS, 591, 6, 43_672_285),
    "dn": ("the official DN-DETR", official() | OFFICIAL_LABELS, 591, 6, 43_694_977),
    "detrex_dab": ("detrex's DAB-DETR", detrex(), 602, 18, 43_668_690),
    "detrex_dn": ("detrex's DN-DETR", detrex() | DETREX_LABELS, 603, 18, 43_689_345),
    "transformers": ("transformers' DAB-DETR", transformers(), 614, 6, 43_671_517),
}
files = pytest.mark.parametrize("file", FILES)


def stored(shapes):
    """A tensor for every name, filled with a number of its own; copies have their owner's."""
    numbers, weights = {}, {}
    for name, shape in shapes.items():
        number = numbers.setdefault(owner(name), len(numbers) + 1)
        weights[name] = torch.tensor(float(number)).expand(shape)
    return weights


def numbers_of(weights):
    """The numbers that the rows of tensors are filled with."""
    rows = (tensor[(slice(None), *[0] * (tensor.dim() - 1))] for tensor in weights.values())
    return {number for row in rows for number in row.unique().tolist()}


def owner(name):
    name = re.sub(r"^(transformer|model)\.decoder\.bbox_embed", "box", name)
    name = re.sub(r"^(bbox_embed|bbox_predictor)", "box", name)
    return name.replace("ffns.0.activation", "ffns.0.layers.0.1")


def is_statistic(name):
    return "backbone" in name and bool(re.search(r"\.bn\d\.|downsample\.1\.|(conv\d|shortcut)\.norm\.", name))


def our_shapes(file):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    name = "dn" if "dn" in file else "dab"
    cfg.merge_from_file(str(Path(__file__).parents[2] / "configs" / "coco" / f"{name}_detr_r50_50ep.yaml"))
    cfg.MODEL.DETR.CLASS_NAMES = [str(i) for i in range(80 if "detrex" in file else 91)]
    if "patterns" in file:
        cfg.merge_from_file(str(Path(__file__).parents[2] / "configs/coco/dab_detr_3patterns_r50_50ep.yaml"))
    cfg.DATASETS.TEST = ()
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get("QueryDetector")(cfg)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@files
def test_the_names_here_are_as_many_as_the_published_models_have(file):
    _, shapes, keys, _, parameters = FILES[file]
    assert len(shapes) == keys
    unique = {owner(name): shape for name, shape in shapes.items() if not is_statistic(name)}
    assert sum(torch.Size(shape).numel() for shape in unique.values()) == parameters


@files
def test_every_tensor_finds_a_place_and_none_stays_empty(file):
    title, shapes, _, copies, _ = FILES[file]
    conversion = convert_if_foreign(stored(shapes))
    assert conversion.layout == title
    assert (conversion.dropped, conversion.aliases) == ([], copies)
    assert {name: tuple(tensor.shape) for name, tensor in conversion.weights.items()} == our_shapes(file)
    assert len(conversion.class_names) == (80 if "detrex" in file else 91)
    assert numbers_of(conversion.weights) == numbers_of(stored(shapes))


SELF, CROSS = f"{DECODER}.layers.4.interactions.0", f"{DECODER}.layers.4.cross_attention"
OFFICIAL_LAYER, DETREX_LAYER = "transformer.decoder.layers.4", "transformer.decoder.layers.4"
OUR_NAMES = {
    "dab": {
        f"{OFFICIAL_LAYER}.norm1.weight": f"{SELF}.norm.weight",  # the deformable models' is the cross-attention's
        f"{OFFICIAL_LAYER}.norm2.weight": f"{CROSS}.norm.weight",
        f"{OFFICIAL_LAYER}.sa_qpos_proj.bias": f"{SELF}.position_query.bias",
        f"{OFFICIAL_LAYER}.sa_kcontent_proj.bias": f"{SELF}.content_key.bias",
        f"{OFFICIAL_LAYER}.ca_kpos_proj.weight": f"{CROSS}.position_key.weight",
        f"{OFFICIAL_LAYER}.ca_qpos_sine_proj.weight": f"{CROSS}.spatial_query.weight",
        f"{OFFICIAL_LAYER}.cross_attn.out_proj.weight": f"{CROSS}.output.weight",
        f"{OFFICIAL_LAYER}.activation.weight": f"{DECODER}.layers.4.ffn.activation.weight",
        "transformer.decoder.layers.0.ca_qpos_proj.weight": f"{DECODER}.layers.0.cross_attention.position_query.weight",
        "transformer.decoder.ref_point_head.layers.1.weight": f"{DECODER}.position.mlp.2.weight",
        "transformer.decoder.ref_anchor_head.layers.1.bias": f"{DECODER}.position.size_scale.2.bias",
        "transformer.decoder.query_scale.layers.0.weight": f"{DECODER}.position.content_scale.0.weight",
        "transformer.encoder.query_scale.layers.1.weight": "encoder.position_scale.2.weight",
        "transformer.encoder.layers.2.norm2.bias": "encoder.layers.2.ffn.norm.bias",
        "bbox_embed.layers.2.bias": f"{DECODER}.box_heads.0.4.bias",
    },
    "detrex_dab": {
        f"{DETREX_LAYER}.norms.1.weight": f"{CROSS}.norm.weight",
        f"{DETREX_LAYER}.attentions.0.query_pos_proj.bias": f"{SELF}.position_query.bias",
        f"{DETREX_LAYER}.attentions.1.query_pos_sine_proj.bias": f"{CROSS}.spatial_query.bias",
        f"{DETREX_LAYER}.ffns.0.layers.0.1.weight": f"{DECODER}.layers.4.ffn.activation.weight",
        "transformer.decoder.post_norm_layer.weight": f"{DECODER}.output_norm.weight",
    },
    "transformers": {
        "model.decoder.layers.4.cross_attn.cross_attn_layer_norm.bias": f"{CROSS}.norm.bias",
        "model.decoder.layers.4.self_attn.self_attn_key_pos_proj.bias": f"{SELF}.position_key.bias",
        "model.decoder.layers.4.mlp.final_layer_norm.bias": f"{DECODER}.layers.4.ffn.norm.bias",
        "model.encoder.layers.3.self_attn_layer_norm.weight": "encoder.layers.3.norm.weight",
        "model.encoder.layers.3.self_attn.out_proj.weight": "encoder.layers.3.attention.out_proj.weight",
    },
}


@pytest.mark.parametrize("file", OUR_NAMES)
def test_names_mean_what_they_mean_there(file):
    weights = stored(FILES[file][1])
    converted = convert_if_foreign(weights).weights
    for theirs, ours in OUR_NAMES[file].items():
        assert torch.equal(converted[ours], weights[theirs]), (theirs, ours)


@pytest.mark.parametrize("layer", [0, 3])
def test_the_three_spellings_of_an_attention_become_the_same_names(layer):
    """``attentions`` writes them in the same order."""
    at, numbered = f"transformer.decoder.layers.{layer}", [stem.replace("{}_", "{}.") for stem in STEMS["long"]]
    hidden = f"model.decoder.layers.{layer}"
    spellings = (
        (dense.OFFICIAL, STEMS["official"], f"{at}.sa", f"{at}.ca", "{}_qpos_sine_proj"),
        (dense.DETREX, numbered, f"{at}.attentions.0", f"{at}.attentions.1", "{}.query_pos_sine_proj"),
        (
            dense.TRANSFORMERS,
            STEMS["long"],
            f"{hidden}.self_attn.self_attn",
            f"{hidden}.cross_attn.cross_attn",
            "{}_query_pos_sine_proj",
        ),
    )
    names = [
        [apply_rules(name, rules) for part in attentions(*spelling, layer) for name in part]
        for rules, *spelling in spellings
    ]
    assert names[0] == names[1] == names[2]
    assert len(set(names[0])) == len(names[0]) and None not in names[0]


def test_separate_projections_are_stacked_as_query_key_value():
    weights = stored(transformers())
    stacked = convert_if_foreign(weights).weights["encoder.layers.1.attention.in_proj_weight"]
    for part, rows in zip("qkv", stacked.chunk(3)):
        assert torch.equal(rows, weights[f"model.encoder.layers.1.self_attn.{part}_proj.weight"])


@pytest.mark.parametrize("file", ["dn", "detrex_dn"])
def test_the_row_behind_the_classes_is_the_content_of_matching_queries(file):
    weights = stored(FILES[file][1])
    name = next(name for name in weights if "label_enc" in name)
    weights[name] = table = torch.randn(weights[name].shape)
    converted = convert_if_foreign(weights).weights
    content = converted["sources.main.content.content.table"]
    assert torch.equal(content[:, :-1], table[-1:]) and content[0, -1] == 0
    assert torch.equal(converted["augmenters.main.labels.weight"], table[:-1])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "dab",
            {"transformer.decoder.bbox_embed.layers.1.bias": (WIDTH,)},
            "two different tensors for .*box_heads.0.2.b",
        ),
        ("detrex_dab", {f"{DETREX_LAYER}.ffns.0.activation.weight": (1,)}, "two different tensors for .*activation"),
        ("dn", {"label_enc.weight": (91, WIDTH - 1)}, "label table has 91 rows for 91 classes"),
        ("dn", PATTERNS, "several patterns cannot be loaded"),
        ("dab", {"transformer.decoder.layers.0.more.weight": (1,)}, "official DAB-DETR, but 1 of 591 names"),
        (
            "dn",
            {"transformer.encoder.layers.0.self_attn.sampling_offsets.weight": (256, WIDTH)},
            "DN-DETR with a deformable encoder cannot be loaded: no decoder here",
        ),
    ],
)
def test_what_cannot_be_loaded_is_told(file, change, message):
    changed = {name: torch.full(shape, -1.0) for name, shape in change.items()}
    with pytest.raises(UserError, match=message):
        convert_if_foreign({**stored(FILES[file][1]), **changed})
