# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The same weights give the same predictions as transformers' Deformable DETR, in all decoder layers."""

import copy
import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from paq_detr import add_paq_detr_config
from paq_detr.convert import convert_if_foreign

transformers = pytest.importorskip("transformers", reason="transformers is not installed (dev extra)")

# Sizes that the strides do not divide, the largest height and the largest width in different images.
IMAGE_SIZES = ((117, 90), (83, 150), (64, 131))
NUM_CLASSES, NUM_QUERIES = 5, 12
VARIANTS = {
    "single_stage": ({}, ["DECODER.BOX_REFINE", False]),
    "box_refinement": ({"with_box_refine": True}, []),
    "two_stage": (
        {"with_box_refine": True, "two_stage": True},
        ["QUERIES.NAME", "EncoderTopN", "QUERIES.CONTENT", "proposal"],
    ),
}


@pytest.fixture(scope="module", params=VARIANTS)
def models(request):
    """transformers' model with random weights, and ours with the same ones."""
    theirs_options, our_options = VARIANTS[request.param]
    theirs = their_model(**theirs_options)
    ours = our_model(our_options)
    weights = convert_if_foreign(theirs.state_dict()).weights
    ours.load_state_dict(weights, strict=True)
    return theirs, ours


def their_config(kind, stages, **options):
    """A small configuration of theirs, on a ResNet-18."""
    backbone = transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=stages,
    )
    return kind(
        use_timm_backbone=False,
        backbone_config=backbone,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=96,
        decoder_ffn_dim=80,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=NUM_QUERIES,
        num_labels=NUM_CLASSES,
        auxiliary_loss=True,
        **options,
    )


def their_model(**options):
    config = their_config(
        transformers.DeformableDetrConfig,
        ["stage2", "stage3", "stage4"],
        d_model=64,
        encoder_n_points=3,
        decoder_n_points=4,
        two_stage_num_proposals=NUM_QUERIES,
        **options,
    )
    torch.manual_seed(0)
    model = transformers.DeformableDetrForObjectDetection(config).eval()
    if config.with_box_refine:
        # transformers 5 ties the class heads of single-stage models, published ones have one per layer.
        model.class_embed = torch.nn.ModuleList(copy.deepcopy(head) for head in model.class_embed)
        if config.two_stage:
            model.model.decoder.class_embed = model.class_embed
    randomise(model, SPREAD)
    return model


# How far a tensor goes from its start, by the first part of its name that is found; of one axis 0.2 in any case.
SPREAD = {"bbox": 0.1, "sampling_offsets": 0.3, "attention_weights": 0.3, "class_embed": 0.3, "embed": 1.0}


@torch.no_grad()
def randomise(model, spread):
    """Move every parameter and statistic away from its start, so that none can be mixed up unnoticed (zeros, ones)."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.mul_(1 + 0.2 * noise.abs())
        elif tensor.dim() == 1 and "bbox" not in name:
            tensor.add_(0.2 * noise)
        else:
            tensor.add_(next((far for part, far in spread.items() if part in name), 0.0) * noise)


def our_config():
    """A ResNet-18 and what both families share."""
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    D = cfg.MODEL.DETR
    D.CLASS_NAMES = [f"class {i}" for i in range(NUM_CLASSES)]
    D.HIDDEN_DIM, D.NUM_HEADS = 64, 4
    D.NECK.MASK_PADDING = False  # as published
    D.ENCODER.NUM_LAYERS, D.ENCODER.FFN_DIM = 2, 96
    D.DECODER.NUM_LAYERS, D.DECODER.FFN_DIM = 3, 80
    return cfg


def our_model(options):
    cfg = our_config()
    D = cfg.MODEL.DETR
    D.ENCODER.NUM_POINTS, D.DECODER.NUM_POINTS = 3, 4
    D.QUERIES.NUM = NUM_QUERIES
    D.merge_from_list(options)
    return build_model(cfg).eval()


def images():
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(3, *size, generator=generator) * 255 for size in IMAGE_SIZES]


def their_inputs():
    """The padded, normalised batch and its mask, made here and not by the code under test."""
    height, width = (max(sides) for sides in zip(*IMAGE_SIZES, strict=True))
    pixel_values = torch.zeros(len(IMAGE_SIZES), 3, height, width)
    pixel_mask = torch.zeros(len(IMAGE_SIZES), height, width, dtype=torch.long)
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    for index, (image, (h, w)) in enumerate(zip(images(), IMAGE_SIZES, strict=True)):
        pixel_values[index, :, :h, :w] = (image - mean) / std
        pixel_mask[index, :h, :w] = 1
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask}


@torch.no_grad()
def test_every_decoder_layer_predicts_the_same(models):
    theirs, ours = models
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * len(IMAGE_SIZES)
    expected = theirs(**their_inputs(), labels=labels)  # the labels only make it return all layers

    memory = ours.encode(ours.preprocess([{"image": image} for image in images()]))
    if theirs.config.two_stage:
        check_premise(expected, memory, ours.sources["main"])
    outputs = ours.routes["main"].decoder(ours.sources["main"](memory), memory)

    layers = [(layer["logits"], layer["pred_boxes"]) for layer in expected.auxiliary_outputs]
    layers.append((expected.logits, expected.pred_boxes))
    assert len(outputs) == len(layers) == theirs.config.decoder_layers
    for output, (logits, boxes) in zip(outputs, layers, strict=True):
        torch.testing.assert_close(output.logits, logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(output.boxes, boxes, atol=1e-4, rtol=0)


def check_premise(expected, memory, source):
    """The proposals are the same, and transformers' N best are tokens that ours can choose too.

    It differs by intent where they are not: a token in the padding or at the border, whose prior is infinite, may
    become a query of theirs (a box of the whole image), but never one of ours.
    """
    proposals = source.propose(memory)
    usable = proposals.valid
    boxes = expected.enc_outputs_coord_logits.sigmoid()
    torch.testing.assert_close(proposals.logits, expected.enc_outputs_class, atol=1e-4, rtol=0)
    torch.testing.assert_close(proposals.boxes[usable], boxes[usable], atol=1e-4, rtol=0)
    assert not usable.all(), "every token is usable: the images are too small to tell the two rules apart"
    best = expected.enc_outputs_class[..., 0].topk(source.num_queries, dim=1).indices
    assert usable.gather(1, best).all(), "an unusable token scores among the best: choose another seed"


@torch.no_grad()
def test_whole_detector_finds_the_same_objects_in_pixels(models):
    theirs, ours = models
    expected = theirs(**their_inputs())
    detections = ours([{"image": image} for image in images()])
    for image, (size, detection) in enumerate(zip(IMAGE_SIZES, detections, strict=True)):
        scores = expected.logits[image].sigmoid().flatten().sort(descending=True).values
        found = detection["instances"]
        torch.testing.assert_close(found.scores, scores[: len(found)], atol=1e-4, rtol=0)
        center, extent = expected.pred_boxes[image].split(2, dim=-1)
        corners = torch.cat([center - extent / 2, center + extent / 2], -1) * torch.tensor([*size[::-1]] * 2)
        inside = corners[found.query_indices].clamp(min=0).minimum(torch.tensor([*size[::-1]] * 2))
        torch.testing.assert_close(found.pred_boxes.tensor, inside, atol=1e-2, rtol=0)


def test_saved_file_gives_the_same_weights(models, tmp_path):
    """Saving renames and leaves out tensors that are tied."""
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
