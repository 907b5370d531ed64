# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing changes neither losses nor gradients, with dropout."""

import copy

import pytest
import torch
from torch.utils import checkpoint

from paq_detr.errors import UserError

from .assemblies import ASSEMBLIES, make_model, wake_up

NAMES = [
    *("plusplus_paq", "dehomo_paq_hybrid_mask", "dino_paq", "dab", "ddq", "mr_paq", "mr_sharing"),
    *("sparse_rcnn_paq", "adamixer_dehomo", "asag_s", "parallel_xyzr"),
]


def step(options, images):
    """Losses, gradients by name, and how often something was recomputed."""
    model = wake_up(make_model({**options, "MODEL.DETR.DROPOUT": 0.3})).train()
    torch.manual_seed(3)
    losses = model(images)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is not None:
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_stay_the_same(two_images, name):
    recomputing = {"MODEL.DETR.ENCODER.CHECKPOINT": True, "MODEL.DETR.DECODER.CHECKPOINT": True}
    plain, again = (step({**ASSEMBLIES[name], **more}, two_images) for more in ({}, recomputing))
    assert_same(again[0], plain[0])
    assert_same(again[1], plain[1])


def test_the_layers_of_all_routes_are_recomputed(two_images, monkeypatch):
    seen = []
    real = checkpoint.checkpoint
    monkeypatch.setattr(
        "paq_detr.modeling.recompute.checkpoint", lambda *args, **kw: seen.append(1) or real(*args, **kw)
    )
    model = make_model(ASSEMBLIES["mr_paq"], **{"MODEL.DETR.DECODER.CHECKPOINT": True}).train()
    model(two_images)
    assert len(seen) == 3 * len(model.routes) == 9
    model.eval()(two_images)
    assert len(seen) == 9


RESNET = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
}


def test_blocks_of_a_resnet_keep_their_names_and_gradients_and_copies_are_like_them(two_images):
    plain, again = (step({**RESNET, "MODEL.RESNETS.CHECKPOINT": on}, two_images) for on in (False, True))
    assert_same(again[1], plain[1])
    model = make_model({**RESNET, "MODEL.RESNETS.CHECKPOINT": True})
    block = model.backbone.res2[0]
    twin = copy.deepcopy(block)
    assert type(twin) is type(block) and type(block).__name__ == "RecomputedBottleneckBlock"
    with torch.no_grad():
        twin.conv1.weight.zero_()
        twin.conv2.weight.zero_()
    x = torch.rand(1, 8, 4, 4)
    assert not torch.equal(twin(x), block(x))


def test_what_cannot_be_recomputed_is_said():
    with pytest.raises(UserError, match="MODEL.RESNETS.NORM BN would count each image twice"):
        make_model({**RESNET, "MODEL.RESNETS.CHECKPOINT": True, "MODEL.RESNETS.NORM": "BN"})
    with pytest.raises(UserError, match="MODEL.BACKBONE.NAME build_patch_backbone is no ResNet"):
        make_model({"MODEL.RESNETS.CHECKPOINT": True})
