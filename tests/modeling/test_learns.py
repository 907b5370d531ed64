# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Which parts learn from which loss: where the published models stop gradients, and what their routes and copies share.

Outputs say nothing of it, so that no comparison with the outputs of other code finds what is wrong here.
"""

import re
from functools import cache

import pytest
import torch

from .assemblies import (
    ADAMIXER,
    ASAG_A,
    ASAG_S,
    DINO,
    MASKS,
    MR,
    MR_DINO,
    SPARSE_RCNN,
    make_image,
    make_model,
    wake_up,
)

SYSTEMS = {
    "sparse_rcnn": SPARSE_RCNN,
    "adamixer": ADAMIXER,
    "asag_a": ASAG_A,
    "asag_s": ASAG_S,
    "dino": {**DINO, "MODEL.DETR.DECODER.SHARED_HEADS": False},
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
def step(system):
    """Parameters by name, and losses by name."""
    model = wake_up(make_model(SYSTEMS[system]))
    image = make_image(96, 128, [[4, 6, 40, 50], [30, 8, 90, 60], [60, 40, 120, 90]], [0, 2, 1])
    return dict(model.named_parameters()), model([image])


@cache
def learners(system, loss):
    """The names of the parameters to which the loss gives a gradient."""
    parameters, losses = step(system)
    gradients = torch.autograd.grad(losses[loss], list(parameters.values()), retain_graph=True, allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients) if gradient is not None and gradient.any()]


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
        ("dino", "l1/final", BOX_HEADS, "1 2"),
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
    found = {match[1] for name in learners(system, f"loss_{loss}") if (match := re.match(part, name))}
    assert sorted(found) == learn.split()
