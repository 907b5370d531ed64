# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from paq_detr.config import add_paq_detr_config

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_patch_backbone",
    "MODEL.DETR.CLASS_NAMES": ["cat", "dog", "owl"],
    "MODEL.DETR.HIDDEN_DIM": 64,
    "MODEL.DETR.NUM_HEADS": 4,
    "MODEL.DETR.ENCODER.NUM_LAYERS": 1,
    "MODEL.DETR.ENCODER.FFN_DIM": 48,
    "MODEL.DETR.DECODER.NUM_LAYERS": 3,
    "MODEL.DETR.DECODER.FFN_DIM": 48,
    "MODEL.DETR.QUERIES.NUM": 12,
    "MODEL.DETR.PATTERNS.NUM": 10,
    "MODEL.DETR.HYBRID.NUM_QUERIES": 20,
}

SINGLE_STAGE = {"MODEL.DETR.DECODER.BOX_REFINE": False}
REFINE: dict = {}
TWO_STAGE = {"MODEL.DETR.QUERIES.NAME": "EncoderTopN", "MODEL.DETR.QUERIES.CONTENT": "proposal"}
PLUSPLUS = {"MODEL.DETR.QUERIES.NAME": "EncoderTopN", "MODEL.DETR.DECODER.LOOK_FORWARD_TWICE": True}
ANCHORS = {"MODEL.DETR.QUERIES.NAME": "LearnedAnchors", "MODEL.DETR.DECODER.QUERY_POSITION": "sine_mlp"}
PATTERNS = {"MODEL.DETR.PATTERNS.ENABLED": True}
ASSIGNMENT = {"MODEL.DETR.QUALITY_ASSIGNMENT.ENABLED": True, "MODEL.DETR.LOSS.CLASSIFICATION": "varifocal"}
DEHOMO = {
    "MODEL.DETR.QUERIES.NAME": "EncoderTopN",
    "MODEL.DETR.QUERIES.CONTENT": "proposal",
    "MODEL.DETR.QUERIES.SCORE": "max",
    "MODEL.DETR.DECODER.SELF_ATTENTION": False,
    "MODEL.DETR.DECODER.BOX_LAYERS": 1,
    "MODEL.DETR.DEHOMO.LAYERS": [2, 3],
    "MODEL.DETR.SOFT_TARGET.ENABLED": True,
}
HYBRID = {"MODEL.DETR.HYBRID.ENABLED": True}

ASSEMBLIES = {
    "single_stage": SINGLE_STAGE,
    "refine": REFINE,
    "two_stage": TWO_STAGE,
    "plusplus": PLUSPLUS,
    "plusplus_max_score": {**PLUSPLUS, "MODEL.DETR.QUERIES.SCORE": "max"},
    "anchors": ANCHORS,
    "single_stage_paq": {**SINGLE_STAGE, **PATTERNS, **ASSIGNMENT},
    "anchors_paq": {**ANCHORS, **PATTERNS, **ASSIGNMENT},
    "plusplus_patterns": {**PLUSPLUS, **PATTERNS},
    "plusplus_assignment": {**PLUSPLUS, **ASSIGNMENT},
    "plusplus_paq": {**PLUSPLUS, **PATTERNS, **ASSIGNMENT},
    "plusplus_paq_score_select": {
        **PLUSPLUS,
        **PATTERNS,
        **ASSIGNMENT,
        "MODEL.DETR.QUALITY_ASSIGNMENT.SELECT": "score",
    },
    "dehomo": DEHOMO,
    "dehomo_released": {**DEHOMO, "MODEL.DETR.SOFT_TARGET.GRADIENT": True, "MODEL.DETR.SOFT_TARGET.MIN": -1.0},
    "dehomo_not_aligned": {**DEHOMO, "MODEL.DETR.DECODER.SELF_ATTENTION": True, "MODEL.DETR.DEHOMO.LAYERS": [3]},
    "dehomo_paq": {**DEHOMO, **PATTERNS, **ASSIGNMENT},
    "plusplus_paq_hybrid": {**PLUSPLUS, **PATTERNS, **ASSIGNMENT, **HYBRID},
}


@BACKBONE_REGISTRY.register()
class build_patch_backbone(Backbone):
    """Patches through linear maps: quick, and no pixel of the padding reaches one outside it."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.strides = {"res3": 8, "res4": 16, "res5": 32}
        self.convs = nn.ModuleDict({name: nn.Conv2d(3, 16, s, stride=s) for name, s in self.strides.items()})

    def forward(self, x):
        maps = {}
        for name, stride in self.strides.items():
            full = nn.functional.pad(x, (0, -x.shape[-1] % stride, 0, -x.shape[-2] % stride))
            maps[name] = self.convs[name](full).tanh()
        return maps

    def output_shape(self):
        return {name: ShapeSpec(channels=16, stride=s) for name, s in self.strides.items()}


def make_cfg(options=None, **more):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    for key, value in {**SMALL, **(options or {}), **more}.items():
        cfg.merge_from_list([key, value])
    return cfg


def make_model(options=None, seed=0, **more):
    torch.manual_seed(seed)
    return build_model(make_cfg(options, **more))


def wake_up(model, seed=1):
    """Random values where the initialisation has zeros, so that a comparison has something to compare."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
                parameter.add_(noise * 0.1)
            elif "_head" in name:
                parameter.add_(noise * 0.3)
    return model


def make_image(height, width, boxes=(), labels=(), seed=0):
    """One input dict; ``boxes`` are xyxy in pixels."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
    image = (torch.rand(3, height, width, generator=generator) * 255).to(torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


@pytest.fixture
def two_images():
    """Unequal sizes, neither square, objects of all classes."""
    return [
        make_image(64, 96, [[4, 6, 40, 50], [30, 8, 90, 60]], [0, 2], seed=1),
        make_image(50, 120, [[10, 10, 100, 40]], [1], seed=2),
    ]
