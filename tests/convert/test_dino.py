# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Our small models, written under the official names, load and predict the same."""

import argparse

import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model

from paq_detr.convert import convert_if_foreign
from paq_detr.convert.classes import coco_names
from paq_detr.engine import DetrCheckpointer
from paq_detr.errors import UserError

from . import published
from .inverse import DECODER, SMALL, SOURCE, config, dino_names, dn_deformable_names

USED = sorted(category["id"] for category in COCO_CATEGORIES if category["isthing"])
DINO = (*SMALL, "QUERIES.NAME", "EncoderTopN", "QUERIES.SCORE", "max", "QUERIES.SUPERVISE", "selected",
        "QUERIES.AUGMENT", "cdn", "DECODER.QUERY_POSITION", "sine_mlp", "DECODER.OUTPUT_NORM", True,
        "DECODER.LOOK_FORWARD_TWICE", True, "DECODER.SHARED_HEADS", True)  # fmt: skip
DN = (*SMALL, "QUERIES.NAME", "LearnedAnchors", "QUERIES.AUGMENT", "dn", "QUERIES.INDICATOR", True,
      "DECODER.QUERY_POSITION", "scaled_sine_mlp")  # fmt: skip
MODELS = {
    "dino": (DINO, dino_names),
    "dino_own_heads": ((*DINO, "DECODER.SHARED_HEADS", False), lambda ours: dino_names(ours, shared=False)),
    "dn_deformable": (DN, dn_deformable_names),
}


@pytest.fixture(scope="module", params=MODELS)
def official(request):
    """A model with a class for each of COCO's category numbers, its official names, and the options of both."""
    options, names_of = MODELS[request.param]
    torch.manual_seed(0)
    model = build_model(config(*options, class_names=map(str, range(91)))).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.startswith("backbone."):
                tensor.add_(0.1 * torch.rand_like(tensor))
            if "class_head" in name and name.endswith("bias"):
                tensor[[row for row in range(91) if row not in USED]] = -50.0  # never the best class of a proposal
    return model, names_of(model.state_dict()), options


def loaded(weights, options, folder, **beside):
    torch.save({"model": weights, **beside}, folder / "checkpoint0011.pth")
    model = build_model(config(*options, class_names=coco_names(80))).eval()
    checkpointer = DetrCheckpointer(model)
    checkpointer.load(str(folder / "checkpoint0011.pth"))
    return model, checkpointer.report


@torch.no_grad()
def predictions(model):
    image = torch.rand(3, 90, 117, generator=torch.Generator().manual_seed(1)) * 255
    memory = model.encode(model.preprocess([{"image": image}]))
    return model.routes["main"].decoder(model.sources["main"](memory), memory)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_official_file_predicts_the_same_for_cocos_classes_by_name(official, tmp_path, prefix):
    theirs, weights, options = official
    beside = {
        "args": argparse.Namespace(lr=1e-4),
        "optimizer": {"state": {}},
        "ema_model": {name: torch.zeros_like(tensor) for name, tensor in weights.items()},
    }
    ours, report = loaded({prefix + name: tensor for name, tensor in weights.items()}, options, tmp_path, **beside)
    assert report.missing == report.reshaped == report.unexpected == report.dropped == []
    assert len(report.loaded) + len(report.by_class) == len(ours.state_dict())
    for found, expected in zip(predictions(ours), predictions(theirs), strict=True):
        torch.testing.assert_close(found.logits, expected.logits[..., USED])
        torch.testing.assert_close(found.boxes, expected.boxes)


def test_label_tables_follow_the_class_names_too(official, tmp_path):
    theirs, weights, options = official
    ours, report = loaded(weights, options, tmp_path)
    table = theirs.augmenters["main"].labels.weight
    assert torch.equal(ours.augmenters["main"].labels.weight, table[USED])
    assert "augmenters.main.labels.weight" in report.by_class


def test_the_table_tells_layout_parts_and_what_was_matched_by_name(official, tmp_path):
    _, weights, options = official
    ours, report = loaded(weights, options, tmp_path)
    text = str(report)
    assert text.startswith("Weights, from the layout of the official D")
    parameters = sum(tensor.numel() for tensor in ours.backbone.parameters())
    row = next(line.split() for line in text.splitlines() if line.startswith("backbone"))
    assert row == ["backbone", f"{parameters:,}", str(len(ours.backbone.state_dict()))]
    assert f"loaded for 80 shared classes  {len(report.by_class):9}" in text


def test_cocos_category_numbers_have_names():
    names = coco_names(91)
    assert [coco_names(80).index(names[number]) for number in (1, 13, 62, 90)] == [0, 11, 56, 79]
    assert [number for number, name in enumerate(names) if name == "N/A"] == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert coco_names(3) is None


@pytest.fixture
def dino():
    return published.stored(published.official_dino(), shared=True)


def test_places_of_one_head_that_differ_are_refused(dino):
    name = "transformer.decoder.class_embed.3.bias"
    with pytest.raises(UserError, match=rf"two different tensors for .*class_heads\.3\.bias, one of them {name}"):
        convert_if_foreign({**dino, name: dino[name] + 1})


def test_a_head_that_differs_in_both_places_is_a_head_of_its_own(dino):
    changed = {f"{place}bbox_embed.2.layers.1.bias": torch.zeros(256) for place in ("", "transformer.decoder.")}
    conversion = convert_if_foreign({**dino, **changed})
    assert conversion.layout == "the official DINO, 4-scale, a head per layer"
    weights = conversion.weights
    assert torch.equal(weights[f"{DECODER}box_heads.2.2.bias"], torch.zeros(256))
    assert torch.equal(weights[f"{DECODER}box_heads.3.2.bias"], dino["bbox_embed.0.layers.1.bias"])
    assert torch.equal(weights[f"{DECODER}class_heads.5.bias"], dino["class_embed.0.bias"])


def test_contents_beside_the_indicator_end_with_a_zero():
    stored = published.stored(published.official_dab_deformable(denoising=True))
    table = convert_if_foreign(stored).weights[f"{SOURCE}content.content.table"]
    assert torch.equal(table[:, :-1], stored["tgt_embed.weight"])
    assert torch.equal(table[:, -1], torch.zeros(300))


def test_a_label_table_of_other_classes_is_refused(dino):
    with pytest.raises(UserError, match="label table has 81 rows for 91 classes"):
        convert_if_foreign({**dino, "label_enc.weight": torch.zeros(81, 256)})


def test_relation_detr_is_refused_for_what_no_model_here_has():
    names = ("class_head.0.weight", "position_relation_embedding.pos_proj.0.weight")
    with pytest.raises(UserError, match="Relation-DETR's baselines cannot be loaded: .*a relation bias"):
        convert_if_foreign({f"transformer.decoder.{name}": torch.zeros(1) for name in names})
