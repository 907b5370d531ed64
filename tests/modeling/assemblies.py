# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Small detectors of every kind, images for them, and what tests of parts build by hand."""

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from paq_detr import add_paq_detr_config
from paq_detr.modeling.codec import LogitCodec
from paq_detr.modeling.losses import FocalLoss
from paq_detr.modeling.neck import measure_grid
from paq_detr.modeling.objective import Objective
from paq_detr.structures import Assignment, Memory, Prediction

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
PARALLEL = {"MODEL.DETR.DECODER.NAME": "parallel", "MODEL.DETR.DECODER.LOOK_FORWARD_TWICE": False}
ANCHORS = {"MODEL.DETR.QUERIES.NAME": "LearnedAnchors", "MODEL.DETR.DECODER.QUERY_POSITION": "sine_mlp"}
PATTERNS = {"MODEL.DETR.QUERIES.CONTENT": "patterns"}
ASSIGNMENT = {"MODEL.DETR.ASSIGNER.INTERMEDIATE": "quality_count", "MODEL.DETR.LOSS.CLASSIFICATION": "varifocal"}
DEHOMO = {
    "MODEL.DETR.QUERIES.NAME": "EncoderTopN",
    "MODEL.DETR.QUERIES.CONTENT": "proposal",
    "MODEL.DETR.QUERIES.SCORE": "max",
    "MODEL.DETR.DECODER.INTERACTION": ["none", "dehomo", "dehomo"],
    "MODEL.DETR.DECODER.BOX_LAYERS": 1,
    "MODEL.DETR.MATCHER.COST": ["focal_l1_giou", "center_inside", "center_inside"],
    "MODEL.DETR.LOSS.ENCODER_CLASSIFICATION": "soft_focal",
}
HYBRID = {"MODEL.DETR.ROUTES": ["hybrid"]}
KEPT = {
    "MODEL.DETR.QUERIES.KEEP.WHEN": "always",
    "MODEL.DETR.QUERIES.KEEP.MIN_SCORE": 0.65,
    "MODEL.DETR.QUERIES.KEEP.MIN": 2,
}

DAB = {
    "MODEL.RESNETS.OUT_FEATURES": ["res5"],
    "MODEL.DETR.ACTIVATION": "prelu",
    "MODEL.DETR.NECK.NAME": "single_level",
    "MODEL.DETR.NECK.NUM_LEVELS": 1,
    "MODEL.DETR.ENCODER.NAME": "dense",
    "MODEL.DETR.ENCODER.NUM_LAYERS": 2,
    "MODEL.DETR.QUERIES.NAME": "LearnedAnchors",
    "MODEL.DETR.DECODER.QUERY_POSITION": "dab",
    "MODEL.DETR.DECODER.INTERACTION": ["conditional_self_attention"],
    "MODEL.DETR.DECODER.CROSS_ATTENTION": ["conditional"],
    "MODEL.DETR.QUERIES.CONTENT": "zeros",
    "MODEL.DETR.DECODER.OUTPUT_NORM": True,
    "MODEL.DETR.DECODER.SHARED_HEADS": True,
    "MODEL.DETR.DECODER.LOOK_FORWARD_TWICE": True,
}
DN = {
    **DAB,
    "MODEL.DETR.QUERIES.CONTENT": "shared",
    "MODEL.DETR.QUERIES.INDICATOR": True,
    "MODEL.DETR.QUERIES.AUGMENT": "dn",
    "MODEL.DETR.DENOISING.DN.GROUPS": 3,
}
DAB_DEFORMABLE = {**ANCHORS, "MODEL.DETR.DECODER.QUERY_POSITION": "scaled_sine_mlp"}
DN_DEFORMABLE = {
    **DAB_DEFORMABLE,
    "MODEL.DETR.QUERIES.ANCHOR_INIT": "normal",
    "MODEL.DETR.QUERIES.AUGMENT": "dn",
    "MODEL.DETR.QUERIES.INDICATOR": True,
    "MODEL.DETR.DENOISING.DN.GROUPS": 3,
}
DINO = {
    **PLUSPLUS,
    "MODEL.DETR.QUERIES.SCORE": "max",
    "MODEL.DETR.QUERIES.SUPERVISE": "selected",
    "MODEL.DETR.QUERIES.CONTENT_INIT": "xavier",
    "MODEL.DETR.QUERIES.AUGMENT": "cdn",
    "MODEL.DETR.DENOISING.CDN.PAIRS": 6,
    "MODEL.DETR.DECODER.QUERY_POSITION": "sine_mlp",
    "MODEL.DETR.DECODER.OUTPUT_NORM": True,
    "MODEL.DETR.DECODER.SHARED_HEADS": True,
    "MODEL.DETR.INVERSE_SIGMOID_EPS": 1e-3,
}
DDQ = {
    **DINO,
    "MODEL.DETR.QUERIES.NAME": "DistinctTopN",
    "MODEL.DETR.QUERIES.CONTENT": "mapped_token",
    "MODEL.DETR.DECODER.NAME": "distinct_cascade",
    "MODEL.DETR.DECODER.INTERACTION": ["distinct_self_attention"],
    "MODEL.DETR.DECODER.SHARED_HEADS": False,
    "MODEL.DETR.LOSS.CLASS_WEIGHT": 1.0,
    "MODEL.DETR.LOSS.NORMALIZER": "pairs",
    "MODEL.DETR.ROUTES": ["dense"],
}

MR = {
    **PLUSPLUS,
    "MODEL.DETR.ROUTES": ["mr_ffn", "mr_tokens"],
    "MODEL.DETR.MR.TOKENS": 3,
    "MODEL.DETR.QUERIES.MATCH_ON_PRIORS": True,
}
MR_DINO = {
    **MR,
    "MODEL.DETR.QUERIES.MATCH_ON_PRIORS": False,
    "MODEL.DETR.QUERIES.AUGMENT": "cdn",
    "MODEL.DETR.DENOISING.CDN.PAIRS": 6,
    "MODEL.DETR.MR.LOSS_SCALE": 1 / 3,
}

MASKS = {"MODEL.DETR.MASK.ENABLED": True, "MODEL.DETR.MASK.NUM_POINTS": 40}

ASAG_SOURCE = {
    "MODEL.DETR.QUERIES.NUM": 30,
    "MODEL.DETR.XYZR.UNIT": 4.0,
    "MODEL.DETR.XYZR.R_SCALE": 0.5,
    "MODEL.DETR.QUERIES.NAME": "AdaptiveSparseAnchors",
    "MODEL.DETR.QUERIES.CONTENT": "roi",
    "MODEL.DETR.ASAG.PATCH_SIZE": 6,
    "MODEL.DETR.ASAG.COMPRESS_DIM": 4,
    "MODEL.DETR.ASAG.MLP_DIM": 24,
    "MODEL.DETR.ASAG.FIXED_ANCHORS": 6,
    "MODEL.DETR.ASAG.PROBED_ANCHORS": 5,
    "MODEL.DETR.ASAG.MIN_ANCHORS": 4,
}
ASAG_A = {
    **ASAG_SOURCE,
    "MODEL.DETR.ACTIVATION": "gelu",
    "MODEL.DETR.NECK.NAME": "fpn",
    "MODEL.DETR.NECK.NUM_LEVELS": 3,
    "MODEL.DETR.ENCODER.NAME": "none",
    "MODEL.DETR.CODEC": "xyzr",
    "MODEL.DETR.DECODER.NAME": "parallel",
    "MODEL.DETR.DECODER.STEM_LAYERS": 1,
    "MODEL.DETR.DECODER.HEADS": "towers",
    "MODEL.DETR.DECODER.INTERACTION": ["iof_self_attention"],
    "MODEL.DETR.DECODER.CROSS_ATTENTION": ["none", "adaptive_mixing", "adaptive_mixing"],
    "MODEL.DETR.DECODER.QUERY_POSITION": "none",
    "MODEL.DETR.ADAMIXER.IN_POINTS": 6,
    "MODEL.DETR.ADAMIXER.OUT_POINTS": 8,
    "MODEL.DETR.MATCHER.COST": ["area_weighted"],
    "MODEL.DETR.LOSS.CLASSIFICATION": "query_weighting",
}
ASAG_S = {
    **ASAG_A,
    "MODEL.DETR.CODEC": "rcnn_delta",
    "MODEL.DETR.DECODER.STEM_CODEC": "xyzr",
    "MODEL.DETR.DECODER.INTERACTION": ["iof_self_attention", "self_attention", "self_attention"],
    "MODEL.DETR.DECODER.CROSS_ATTENTION": ["none", "dynamic_conv", "dynamic_conv"],
    "MODEL.DETR.SPARSE_RCNN.POOL_SIZE": 3,
    "MODEL.DETR.SPARSE_RCNN.INNER_DIM": 8,
}
ASAG_D = {
    **ASAG_SOURCE,
    "MODEL.DETR.DECODER.NAME": "parallel",
    "MODEL.DETR.DECODER.STEM_LAYERS": 1,
    "MODEL.DETR.DECODER.STEM_CODEC": "xyzr",
    "MODEL.DETR.DECODER.INTERACTION": ["iof_self_attention", "self_attention", "self_attention"],
    "MODEL.DETR.DECODER.CROSS_ATTENTION": ["none", "deformable", "deformable"],
    "MODEL.DETR.DECODER.QUERY_POSITION": "sine_mlp",
    "MODEL.DETR.MATCHER.COST": ["area_weighted"],
    "MODEL.DETR.LOSS.CLASSIFICATION": "query_weighting",
}
ASAG_DH = {
    **ASAG_SOURCE,
    "MODEL.DETR.DECODER.INTERACTION": ["self_attention", "dehomo", "dehomo"],
    "MODEL.DETR.DECODER.BOX_LAYERS": 1,
    "MODEL.DETR.DECODER.QUERY_POSITION": "sine_mlp",
    "MODEL.DETR.MATCHER.COST": ["focal_l1_giou", "center_inside", "center_inside"],
}
SPARSE_RCNN = {
    "MODEL.DETR.NECK.NAME": "fpn",
    "MODEL.DETR.NECK.NUM_LEVELS": 3,
    "MODEL.DETR.ENCODER.NAME": "none",
    "MODEL.DETR.QUERIES.NAME": "LearnedBoxes",
    "MODEL.DETR.CODEC": "rcnn_delta",
    "MODEL.DETR.DECODER.QUERY_POSITION": "none",
    "MODEL.DETR.DECODER.CROSS_ATTENTION": ["dynamic_conv"],
    "MODEL.DETR.DECODER.HEADS": "towers",
    "MODEL.DETR.DECODER.TOWERS.BOX_INIT": "xavier",
    "MODEL.DETR.LOSS.L1_FORMAT": "corners",
    "MODEL.DETR.SPARSE_RCNN.POOL_SIZE": 3,
    "MODEL.DETR.SPARSE_RCNN.INNER_DIM": 8,
}
ADAMIXER = {
    **SPARSE_RCNN,
    "MODEL.DETR.NECK.NAME": "lateral",
    "MODEL.DETR.QUERIES.LEARN_BOXES": False,
    "MODEL.DETR.QUERIES.CONTENT_NORM": True,
    "MODEL.DETR.CODEC": "xyzr",
    "MODEL.DETR.DECODER.INTERACTION": ["iof_self_attention"],
    "MODEL.DETR.DECODER.CROSS_ATTENTION": ["adaptive_mixing"],
    "MODEL.DETR.DECODER.TOWERS.BOX_LAYERS": 1,
    "MODEL.DETR.DECODER.TOWERS.BIAS": True,
    "MODEL.DETR.DECODER.TOWERS.BOX_INIT": "zeros",
    "MODEL.DETR.LOSS.NORMALIZER": "pairs",
    "MODEL.DETR.ADAMIXER.IN_POINTS": 6,
    "MODEL.DETR.ADAMIXER.OUT_POINTS": 8,
}

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
    "dehomo_not_aligned": {
        **DEHOMO,
        "MODEL.DETR.DECODER.INTERACTION": ["self_attention", "self_attention", "dehomo + self_attention"],
        "MODEL.DETR.MATCHER.COST": ["focal_l1_giou", "focal_l1_giou", "center_inside"],
    },
    "dehomo_paq": {**DEHOMO, **PATTERNS, **ASSIGNMENT},
    "dehomo_cdn": {**DEHOMO, "MODEL.DETR.QUERIES.AUGMENT": "cdn", "MODEL.DETR.DENOISING.CDN.PAIRS": 6},
    "plusplus_paq_hybrid": {**PLUSPLUS, **PATTERNS, **ASSIGNMENT, **HYBRID},
    "dab": DAB,
    "dab_paq": {**DAB, **PATTERNS, **ASSIGNMENT},
    "dab_patterned": {
        **DAB,
        "MODEL.DETR.QUERIES.NAME": "PatternedAnchors",
        "MODEL.DETR.QUERIES.CONTENT": "learned",
    },
    "dn": DN,
    "dn_deformable_patterned": {
        **DN_DEFORMABLE,
        "MODEL.DETR.QUERIES.NAME": "PatternedAnchors",
        "MODEL.DETR.DENOISING.PADDING_SLOTS": "unsupervised",
    },
    "dab_deformable": DAB_DEFORMABLE,
    "dab_deformable_two_stage": {
        **PLUSPLUS,
        "MODEL.DETR.QUERIES.CONTENT": "token",
        "MODEL.DETR.QUERIES.SCORE": "max",
        "MODEL.DETR.QUERIES.SUPERVISE": "selected",
        "MODEL.DETR.DECODER.QUERY_POSITION": "scaled_sine_mlp",
    },
    "dab_deformable_paq_hybrid": {**DAB_DEFORMABLE, **PATTERNS, **ASSIGNMENT, **HYBRID},
    "dn_deformable": DN_DEFORMABLE,
    "dn_deformable_paq": {**DN_DEFORMABLE, **PATTERNS, **ASSIGNMENT},
    "dino": DINO,
    "dino_own_heads_ignored_padding": {
        **DINO,
        "MODEL.DETR.DECODER.SHARED_HEADS": False,
        "MODEL.DETR.DENOISING.PADDING_SLOTS": "ignored",
    },
    "dino_paq": {**DINO, **PATTERNS, **ASSIGNMENT},
    "dino_paq_hybrid": {**DINO, **PATTERNS, **ASSIGNMENT, **HYBRID},
    "plusplus_cdn": {**PLUSPLUS, "MODEL.DETR.QUERIES.AUGMENT": "cdn"},
    "two_stage_box_dn": {**TWO_STAGE, "MODEL.DETR.QUERIES.AUGMENT": "box_dn", "MODEL.DETR.DENOISING.BOX_DN.QUERIES": 7},
    "ddq": DDQ,
    "ddq_released": {
        **DDQ,
        "MODEL.DETR.DDQ.CANDIDATES": "released",
        "MODEL.DETR.DDQ.DENSE_SECOND_SIGMOID": True,
    },
    "ddq_without_denoising": {**DDQ, "MODEL.DETR.QUERIES.AUGMENT": "none"},
    "ddq_paq": {**DDQ, **PATTERNS, **ASSIGNMENT, "MODEL.DETR.ROUTES": []},
    "distinct_anchors": {**ANCHORS, "MODEL.DETR.DECODER.NAME": "distinct_cascade"},
    "mr": MR,
    "mr_sharing": {**PLUSPLUS, "MODEL.DETR.ROUTES": ["mr_sa", "mr_ca", "mr_ffn", "mr_sa_ca_ffn", "mr_shared"]},
    "mr_dino": MR_DINO,
    "mr_align": {**MR_DINO, "MODEL.DETR.LOSS.CLASSIFICATION": "mr_align", "MODEL.DETR.LOSS.CLASS_WEIGHT": 1.0},
    "mr_on_dino": {**DINO, "MODEL.DETR.ROUTES": ["mr_ffn", "mr_tokens"]},
    "mr_paq": {**MR, **PATTERNS, **ASSIGNMENT, "MODEL.DETR.MR.ASSIGNER": "quality_count"},
    "mr_on_dab": {**DAB, "MODEL.DETR.ROUTES": ["mr_ffn", "mr_sa_ca_ffn"]},
    "mr_dehomo": {**DEHOMO, "MODEL.DETR.ROUTES": ["mr_ffn"]},
    "mr_paq_dehomo": {
        **DEHOMO,
        **PATTERNS,
        **ASSIGNMENT,
        "MODEL.DETR.DECODER.INTERACTION": ["self_attention", "dehomo + self_attention", "dehomo + self_attention"],
        "MODEL.DETR.ROUTES": ["mr_ffn", "mr_tokens"],
    },
    "mr_dino_paq_kept": {**MR_DINO, **PATTERNS, **ASSIGNMENT, **KEPT},
    "dehomo_kept": {**DEHOMO, **KEPT},
    "ddq_kept": {**DDQ, **KEPT},
    "mr_learned_queries": {
        "MODEL.DETR.ROUTES": ["mr_ffn", "mr_tokens"],
        "MODEL.DETR.MR.OWN_PROPOSALS": False,
        "MODEL.DETR.MR.TOKEN_LAYERS": [2, 3],
    },
    "no_positions_rcnn_delta": {
        **PLUSPLUS,
        "MODEL.DETR.DECODER.QUERY_POSITION": "none",
        "MODEL.DETR.CODEC": "rcnn_delta",
    },
    "sparse_rcnn": SPARSE_RCNN,
    "sparse_rcnn_paq": {**SPARSE_RCNN, **PATTERNS, **ASSIGNMENT},
    "sparse_rcnn_dehomo_dn": {
        **SPARSE_RCNN,
        "MODEL.DETR.DECODER.INTERACTION": ["self_attention", "dehomo", "dehomo"],
        "MODEL.DETR.QUERIES.AUGMENT": "dn",
        "MODEL.DETR.DENOISING.DN.GROUPS": 3,
    },
    "adamixer": ADAMIXER,
    "adamixer_paq": {**ADAMIXER, **PATTERNS, **ASSIGNMENT},
    "adamixer_dehomo": {
        **ADAMIXER,
        "MODEL.DETR.DECODER.INTERACTION": ["iof_self_attention", "dehomo", "dehomo + iof_self_attention"],
    },
    "adamixer_mr": {**ADAMIXER, "MODEL.DETR.ROUTES": ["mr_ffn"]},
    "parallel_xyzr": {
        **PLUSPLUS,
        **PARALLEL,
        "MODEL.DETR.CODEC": "xyzr",
        "MODEL.DETR.READ_OUT.LAYER": 2,
        "MODEL.DETR.READ_OUT.NMS_IOU": 0.7,
    },
    "plusplus_mask": {**PLUSPLUS, **MASKS},
    "paq_mask": {**PLUSPLUS, **PATTERNS, **ASSIGNMENT, **MASKS, "MODEL.DETR.MASK.AT_ONCE": 2},
    "mr_mask": {**MR, **MASKS, "MODEL.DETR.MASK.AT_ONCE": 3, "MODEL.DETR.MASK.BOX_COORDINATES": True},
    "dino_mask": {**DINO, **MASKS, "MODEL.DETR.MASK.LEVEL": 2, "MODEL.DETR.MASK.MEAN_ONE": True},
    "dab_mask": {**DAB, **MASKS, "MODEL.DETR.MASK.HALVE_MAPS": False},
    "dehomo_paq_hybrid_mask": {**DEHOMO, **PATTERNS, **ASSIGNMENT, **HYBRID, **MASKS},
    "ddq_mask": {**DDQ, **MASKS},
    "parallel_mask": {
        **PLUSPLUS,
        **MASKS,
        **PARALLEL,
        "MODEL.DETR.READ_OUT.LAYER": 2,
        "MODEL.DETR.READ_OUT.NMS_IOU": 0.7,
    },
    "asag_a": ASAG_A,
    "asag_s_two_layers_read_first": {
        **ASAG_S,
        "MODEL.DETR.DECODER.NUM_LAYERS": 5,
        "MODEL.DETR.DECODER.COPY_LAYERS": 2,
        "MODEL.DETR.DECODER.INTERACTION": ["iof_self_attention", *["self_attention"] * 4],
        "MODEL.DETR.DECODER.CROSS_ATTENTION": ["none", *["dynamic_conv"] * 4],
        "MODEL.DETR.READ_OUT.LAYER": 2,
    },
    "asag_a_dn": {
        **ASAG_A,
        "MODEL.DETR.QUERIES.AUGMENT": "box_dn",
        "MODEL.DETR.DENOISING.BOX_DN.QUERIES": 7,
        "MODEL.DETR.DENOISING.PADDING_SLOTS": "ignored",
    },
    "align_on_dino": {
        **DINO,
        "MODEL.DETR.ASSIGNER.INTERMEDIATE": "align_repeated",
        "MODEL.DETR.ASSIGNER.ENCODER": "align_repeated",
        "MODEL.DETR.LOSS.CLASSIFICATION": "align",
        "MODEL.DETR.LOSS.CLASS_WEIGHT": 1.0,
    },
    "asag_a_patterns": {**ASAG_A, **PATTERNS},
    "asag_s": ASAG_S,
    "asag_d": ASAG_D,
    "asag_dh": ASAG_DH,
    "all_four": {
        **ASAG_DH,
        **PATTERNS,
        **ASSIGNMENT,
        "MODEL.DETR.DECODER.INTERACTION": ["self_attention", "dehomo + self_attention", "dehomo + self_attention"],
        "MODEL.DETR.ROUTES": ["mr_ffn", "mr_tokens"],
        "MODEL.DETR.MR.OWN_PROPOSALS": False,
    },
}


@BACKBONE_REGISTRY.register()
class build_patch_backbone(Backbone):
    """Patches through linear maps: quick, and no pixel of the padding reaches one outside it."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        strides = {"res3": 8, "res4": 16, "res5": 32}
        self.strides = {name: strides[name] for name in cfg.MODEL.RESNETS.OUT_FEATURES}
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
    decoder = model.routes["main"].decoder
    codecs = (decoder.codec, getattr(decoder, "stem_codec", decoder.codec))
    bounded = all(isinstance(codec, LogitCodec) for codec in codecs)  # other boxes would leave the image
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
                parameter.add_(noise * 0.1)
            elif not bounded and "box_heads" in name and ".last." in name:
                parameter.mul_(0.1).add_(noise * 0.03)
            elif "_head" in name:
                parameter.add_(noise * (0.3 if bounded or "box_head" not in name else 0.03))
    return model


def make_image(height, width, boxes=(), labels=(), seed=0):
    """One input dict; ``boxes`` are xyxy in pixels. Masks are the ellipses that fill them."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
    instances.gt_masks = BitMasks(ellipses(instances.gt_boxes.tensor, height, width))
    image = (torch.rand(3, height, width, generator=generator) * 255).to(torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


def ellipses(boxes, height, width):
    """(M, height, width) bool: those that fill boxes (M, 4), xyxy in pixels."""
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    x0, y0, x1, y1 = boxes[..., None, None].unbind(1)
    return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 < 1


def make_objective(assigner=None, **options):
    """DETR's losses with the focal loss, unless ``options`` say else."""
    return Objective(**{"assigner": assigner, "classification": FocalLoss(), **options})


def predict(name, output, assigner, scale=1.0, **options):
    """A prediction whose pairs an assigner finds, or that are known."""
    pairs = assigner if isinstance(assigner, Assignment) else None
    return Prediction(name, output, make_objective(assigner, **options), pairs=pairs, scale=scale)


def memory_of(model, images):
    return model.encode(model.preprocess(images))


def decode(model, images):
    """What every layer of the main route predicts."""
    memory = memory_of(model, images)
    return model.routes["main"](model.sources["main"](memory), memory)


def predictions_of(model, images, targets=None):
    """What a training step supervises, by name."""
    return {p.name: p for p in model.predictions(memory_of(model, images), targets)[0]}


def memory_from_maps(maps, strides, image_sizes):
    """A memory of maps (B, C, H, W), which the largest image of the batch fills, without position codes."""
    padded = tuple(max(sides) for sides in zip(*image_sizes))
    grid = measure_grid([x.shape[-2:] for x in maps], strides, image_sizes, padded, "cpu", by_stride=True)
    return Memory(torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1), None, grid)
