# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Which parts learn from which output: what a forward pass, equal with and without a detach, does not show."""

import re
from functools import cache

import pytest
import torch

from paq_detr.structures import stack_instances

from .assemblies import (
    ADAMIXER,
    ASAG_A,
    ASAG_S,
    ASSIGNMENT,
    DAB,
    DAB_DEFORMABLE,
    DDQ,
    DEHOMO,
    DINO,
    DN_DEFORMABLE,
    HYBRID,
    MASKS,
    MR,
    MR_DINO,
    PATTERNS,
    PLUSPLUS,
    REFINE,
    SINGLE_STAGE,
    SPARSE_RCNN,
    TWO_STAGE,
    make_image,
    make_model,
    predictions_of,
    wake_up,
)

IMAGES = [make_image(64, 96, [[4, 4, 30, 40], [20, 10, 60, 60]], [0, 2])]
ALIVE = {**DEHOMO, "MODEL.DETR.DEHOMO.FLOOR_SCORE": 0.0}
PAQ = {**PATTERNS, **ASSIGNMENT}


def outputs_of(options):
    """A model and what it predicts in training, by name."""
    model = wake_up(make_model(options))
    targets = stack_instances([x["instances"] for x in IMAGES], [(64, 96)], torch.device("cpu"))
    return model, predictions_of(model, IMAGES, targets)


def learners(model, value):
    """Names of the parameters that ``value`` has a gradient for."""
    names, parameters = zip(*model.named_parameters())
    gradients = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(names, gradients) if gradient is not None and gradient.any()}


def numbers(names, part):
    """The numbers that follow ``part`` in names, as in "01"."""
    return "".join(sorted({name.removeprefix(part)[0] for name in names if name.startswith(part)}))


# Of layers 1, 2 and 3, and "01" is the first and the second of a list.
CHAIN, LOOK_FORWARD, SHARED = ["0", "1", "2"], ["0", "01", "12"], ["0", "0", "0"]
UP_TO = ["0", "01", "012"]


@pytest.mark.parametrize(
    "options, box_heads, class_heads, box_layers",
    [
        (SINGLE_STAGE, SHARED, SHARED, UP_TO),
        (REFINE, CHAIN, CHAIN, UP_TO),
        (TWO_STAGE, CHAIN, CHAIN, UP_TO),
        (DN_DEFORMABLE, CHAIN, CHAIN, UP_TO),
        ({**PLUSPLUS, **PAQ, **HYBRID}, LOOK_FORWARD, CHAIN, UP_TO),
        ({**DINO, "MODEL.DETR.DECODER.SHARED_HEADS": False}, LOOK_FORWARD, CHAIN, UP_TO),
        ({**DINO, "MODEL.DETR.DECODER.LOOK_FORWARD_TWICE": False}, SHARED, SHARED, UP_TO),
        (DAB, SHARED, SHARED, UP_TO),
        (DDQ, LOOK_FORWARD, CHAIN, UP_TO),
        (ALIVE, SHARED, CHAIN, SHARED),  # boxes are the first layer's, and no later one learns from them
    ],
    ids=["single_stage", "refine", "two_stage", "dn_deformable", "paq_hybrid", "dino_heads_per_layer", "dino_without",
         "dab", "ddq", "dehomo"],
)  # fmt: skip
def test_which_heads_and_layers_learn_from_a_layer(options, box_heads, class_heads, box_layers):
    model, predictions = outputs_of(options)
    decoder = "routes.main.decoder."
    for name, prediction in predictions.items():
        layer = {"layer1": 0, "layer2": 1, "final": 2}.get(name.removeprefix("dn_").removeprefix("hybrid_"))
        if layer is None:
            continue
        of_boxes, of_scores = (learners(model, x) for x in (prediction.output.boxes, prediction.output.logits))
        assert numbers(of_boxes, f"{decoder}box_heads.") == box_heads[layer], name
        assert numbers(of_boxes, f"{decoder}layers.") == box_layers[layer], name
        assert numbers(of_scores, f"{decoder}class_heads.") == class_heads[layer], name
        assert numbers(of_scores, f"{decoder}layers.") == UP_TO[layer], name
        assert not numbers(of_boxes, f"{decoder}class_heads.") and not numbers(of_scores, f"{decoder}box_heads."), name


@pytest.mark.parametrize(
    "options, learn, do_not",
    [
        (REFINE, ["position", "reference_points", "content"], []),
        (DAB_DEFORMABLE, ["anchors", "content"], []),
        (TWO_STAGE, ["position"], ["project.", "class_head", "box_head"]),
        ({**PLUSPLUS, **PAQ}, ["content.patterns", "content.generator"], ["project.", "class_head", "box_head"]),
        (DINO, ["content"], ["project.", "class_head", "box_head"]),
        ({**DINO, "MODEL.DETR.QUERIES.CONTENT": "token"}, [], ["project.", "class_head", "box_head"]),
        (DDQ, ["content.map"], ["project.", "class_head", "box_head"]),
    ],
    ids=["refine", "dab_deformable", "two_stage", "paq", "dino", "token", "ddq"],
)
def test_what_of_a_source_learns_from_the_last_layer(options, learn, do_not):
    """Tables, contents and codes do; proposals that became references do not (Deformable DETR, A.4)."""
    model, predictions = outputs_of(options)
    names = learners(model, predictions["final"].output.boxes)
    for part in learn:
        assert any(name.startswith(f"sources.main.{part}") for name in names), part
    for part in do_not:
        assert not any(name.startswith(f"sources.main.{part}") for name in names), part
    if "encoder" in predictions:
        of_proposals = learners(model, predictions["encoder"].output.boxes)
        assert any(name.startswith("sources.main.box_head") for name in of_proposals)
        assert not any(name.startswith("routes") for name in of_proposals)


@pytest.mark.parametrize(
    "options, loss, box_head, learns",
    [
        ({**PLUSPLUS, **PAQ}, "loss_class/final", "routes.main.decoder.box_heads", False),  # varifocal's IoU
        (DEHOMO, "loss_class/encoder", "sources.main.box_head", False),
        ({**DEHOMO, "MODEL.DETR.SOFT_TARGET.GRADIENT": True}, "loss_class/encoder", "sources.main.box_head", True),
        (DDQ, "loss_class/dense_final", "routes.dense.decoder.box_heads", False),
    ],
    ids=["varifocal", "soft_focal", "soft_focal_as_released", "dense"],
)
def test_a_target_made_of_boxes_teaches_no_box_head_but_where_asked(options, loss, box_head, learns):
    model = wake_up(make_model(options))
    names = learners(model, model(IMAGES)[loss])
    assert any(name.startswith(box_head) for name in names) == learns


def test_denoising_alone_teaches_the_labels_vectors():
    model, predictions = outputs_of(DINO)
    for name, prediction in predictions.items():
        labels = any(part.startswith("augmenters") for part in learners(model, prediction.output.logits))
        assert labels == name.startswith("dn_"), name


SYSTEMS = {
    "sparse_rcnn": SPARSE_RCNN,
    "adamixer": ADAMIXER,
    "asag_a": ASAG_A,
    "asag_s": ASAG_S,
    "mr": {**MR, **MASKS},
    "mr_dino": MR_DINO,
}
SOURCES = r"sources\.(\w+\.\w+)"
BOX_HEADS = r"routes\.main\.decoder\.box_heads\.(\d)"
LAYERS = r"routes\.main\.decoder\.layers\.(\d)"
FEED_FORWARD = rf"{LAYERS}\.ffn\.linear"
NORM = rf"{LAYERS}\.interactions\.0\.norm"
OWN = r"routes\.(mr_\w+)\."
MASK_HEAD = r"routes\.main\.(mask_head)"


@cache
def losses_of(system):
    """A model and the losses of a step."""
    model = wake_up(make_model(SYSTEMS[system]))
    return model, model([make_image(96, 128, [[4, 6, 40, 50], [30, 8, 90, 60], [60, 40, 120, 90]], [0, 2, 1])])


@pytest.mark.parametrize(
    ("system", "loss", "part", "learn"),
    [
        # Boxes are detached between layers, contents are not.
        ("sparse_rcnn", "l1/final", BOX_HEADS, "2"),
        ("sparse_rcnn", "l1/final", LAYERS, "0 1 2"),
        ("sparse_rcnn", "l1/layer1", SOURCES, "main.boxes main.content"),
        ("sparse_rcnn", "l1/layer2", SOURCES, "main.content"),
        ("sparse_rcnn", "class/layer1", SOURCES, "main.content"),
        ("adamixer", "giou/final", BOX_HEADS, "2"),
        ("adamixer", "giou/final", LAYERS, "0 1 2"),
        ("adamixer", "giou/final", r".*layers\.(\d)\.interactions\.0\.tau", "0 1 2"),
        ("adamixer", "giou/final", r".*layers\.(\d)\.cross_attention\.sampling", "0 1 2"),
        # Look forward twice: a layer's box loss reaches the head before, and no earlier one.
        ("mr", "l1/layer1", BOX_HEADS, "0"),
        ("mr", "l1/final", BOX_HEADS, "1 2"),
        ("mr", "l1/mr_ffn_final", BOX_HEADS, "1 2"),
        ("mr", "giou/mr_tokens_layer2", BOX_HEADS, "0 1"),
        ("mr_dino", "l1/mr_tokens_dn_final", BOX_HEADS, "1 2"),
        # Proposals are detached; each pair of the encoder's heads learns from its own losses.
        ("mr", "l1/final", SOURCES, "main.content main.position main.position_norm"),
        ("mr", "l1/mr_tokens_final", SOURCES, "main.content main.position main.position_norm"),
        ("mr", "l1/encoder", SOURCES, "main.box_head main.project main.project_norm"),
        ("mr", "class/mr_tokens_encoder", SOURCES, "main.project main.project_norm mr_tokens.class_head"),
        # What the routes share.
        ("mr", "class/final", OWN, ""),
        ("mr", "class/mr_ffn_final", OWN, "mr_ffn"),
        ("mr", "class/mr_tokens_final", OWN, "mr_tokens"),
        ("mr", "class/mr_ffn_final", FEED_FORWARD, ""),
        ("mr", "class/mr_ffn_final", NORM, "0 1 2"),
        ("mr", "class/mr_tokens_final", FEED_FORWARD, "0 1 2"),
        ("mr", "class/mr_tokens_final", NORM, ""),
        # No token is seen by denoising queries; the matching ones, which are, have seen some from the second layer on.
        ("mr_dino", "class/mr_tokens_dn_layer1", r"routes\.mr_tokens\..*layers\.(\d)\..*\.content", ""),
        ("mr_dino", "class/mr_tokens_dn_layer2", r"routes\.mr_tokens\..*layers\.(\d)\..*\.content", "0"),
        # Masks come from contents, memory and the backbone's maps, by one head.
        ("mr", "mask/mr_tokens_final", MASK_HEAD, "mask_head"),
        ("mr", "dice/final", LAYERS, "0 1 2"),
        ("mr", "dice/final", BOX_HEADS, ""),
        ("mr", "class/final", MASK_HEAD, ""),
        # Anchors learn from their own losses alone. Copies share the layer that proposes, whose boxes are detached.
        ("asag_a", "class/anchors_p5", SOURCES, "main.code main.compress main.fixed_head"),
        ("asag_a", "class/anchors_p6", SOURCES, "main.code main.compress main.fixed_head main.halve"),
        ("asag_a", "l1/anchors_probed", SOURCES, "main.code main.compress main.probe_head"),
        ("asag_a", "l1/layer1", SOURCES, "main.content"),
        ("asag_a", "l1/layer2", BOX_HEADS, "1"),
        ("asag_a", "l1/layer2", LAYERS, "0 1"),
        ("asag_a", "l1/final", LAYERS, "0 2"),
        ("asag_a", "l1/final", SOURCES, "main.content"),
        ("asag_s", "giou/final", BOX_HEADS, "2"),
        ("asag_s", "giou/final", LAYERS, "0 2"),
    ],
)
def test_who_learns_from_a_loss(system, loss, part, learn):
    model, losses = losses_of(system)
    names = learners(model, losses[f"loss_{loss}"])
    found = {match[1] for name in names if (match := re.match(part, name))}
    assert sorted(found) == learn.split()
