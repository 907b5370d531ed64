# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The same weights give the same predictions as transformers' DAB-DETR, in all decoder layers of a padded batch."""

import json

import pytest
import torch
from detectron2.modeling import build_model

from paq_detr.convert import convert_if_foreign

from .test_parity_transformers import (
    IMAGE_SIZES,
    NUM_CLASSES,
    NUM_QUERIES,
    images,
    our_config,
    randomise,
    their_config,
    their_inputs,
)

transformers = pytest.importorskip("transformers", reason="transformers is not installed (dev extra)")


@pytest.fixture(scope="module", params=[0, 2], ids=["plain", "2_patterns"])
def models(request):
    """transformers' model with random weights, and ours with the same ones."""
    theirs, ours = their_model(request.param), our_model(request.param)
    conversion = convert_if_foreign(theirs.state_dict())
    ours.load_state_dict(conversion.weights, strict=True)
    return theirs, ours


def their_model(patterns):
    config = their_config(transformers.DabDetrConfig, ["stage4"], hidden_size=64, num_patterns=patterns)
    torch.manual_seed(0)
    model = transformers.DabDetrForObjectDetection(config).eval()
    randomise(model, {"bbox": 0.1, "query_refpoint": 1.0, "patterns": 1.0, "backbone": 0.0, "": 0.2})
    return model


def our_model(patterns):
    cfg = our_config()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    D = cfg.MODEL.DETR
    D.ACTIVATION, D.ENCODER.NAME = "prelu", "dense"
    D.POSITION.TEMPERATURE, D.POSITION.OFFSET = 20, 0.0
    D.NECK.NAME, D.NECK.NUM_LEVELS = "single_level", 1
    D.QUERIES.NAME, D.QUERIES.CONTENT, D.QUERIES.NUM = "LearnedAnchors", "zeros", NUM_QUERIES
    if patterns:
        D.QUERIES.NAME, D.QUERIES.CONTENT, D.QUERIES.NUM = "PatternedAnchors", "learned", patterns * NUM_QUERIES
        D.DAB.PATTERNS = patterns
    D.DECODER.INTERACTION, D.DECODER.CROSS_ATTENTION = ["conditional_self_attention"], ["conditional"]
    D.DECODER.QUERY_POSITION = "dab"
    D.DECODER.OUTPUT_NORM = D.DECODER.SHARED_HEADS = D.DECODER.LOOK_FORWARD_TWICE = True
    return build_model(cfg).eval()


@torch.no_grad()
def test_every_decoder_layer_predicts_the_same(models):
    theirs, ours = models
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * len(IMAGE_SIZES)
    expected = theirs(**their_inputs(), labels=labels)  # the labels only make it return all layers

    memory = ours.encode(ours.preprocess([{"image": image} for image in images()]))
    assert memory.grid.padding.any(1).all(), "an image without padding proves less"
    outputs = ours.routes["main"].decoder(ours.sources["main"](memory), memory)

    layers = [(layer["logits"], layer["pred_boxes"]) for layer in expected.auxiliary_outputs]
    layers.append((expected.logits, expected.pred_boxes))
    assert len(outputs) == len(layers) == theirs.config.decoder_layers
    for output, (logits, boxes) in zip(outputs, layers, strict=True):
        torch.testing.assert_close(output.logits, logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(output.boxes, boxes, atol=1e-4, rtol=0)


def test_saved_file_gives_the_same_weights(models, tmp_path):
    """Saving leaves out the second copy of the box head."""
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    theirs, ours = models
    theirs.save_pretrained(tmp_path)
    conversion = convert_if_foreign(
        safetensors.load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    )
    weights, expected = conversion.weights, ours.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert conversion.class_names == [f"LABEL_{i}" for i in range(NUM_CLASSES)]
