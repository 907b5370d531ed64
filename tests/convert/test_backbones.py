# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import re

import pytest
import torch
from detectron2.config import get_cfg

from paq_detr import add_paq_detr_config
from paq_detr.convert.backbones import SWIN, SWIN_IGNORED
from paq_detr.convert.layout import apply_rules, prefixed
from paq_detr.modeling.backbone import build_backbone

pytest.importorskip("timm")


def published_swin_names(depths, norms):
    """Swin's names in the detectors of its authors, of Detectron2 and of DINO."""
    pair, leaves = ("weight", "bias"), ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    names = [f"patch_embed.{module}.{leaf}" for module in ("proj", "norm") for leaf in pair]
    for stage, depth in enumerate(depths):
        for block in (f"layers.{stage}.blocks.{i}" for i in range(depth)):
            names += [f"{block}.{module}.{leaf}" for module in leaves for leaf in pair]
            names += [f"{block}.attn.relative_position_bias_table", f"{block}.attn.relative_position_index"]
        if stage < len(depths) - 1:
            names += [f"layers.{stage}.downsample.{leaf}" for leaf in ("norm.weight", "norm.bias", "reduction.weight")]
    return names + [f"norm{stage}.{leaf}" for stage in norms for leaf in pair]


def test_swin_of_the_published_detectors_becomes_ours_name_by_name():
    assert len(published_swin_names((2, 2, 18, 2), (1, 2, 3))) == 355  # DINO's Swin-L
    names = [f"backbone.0.{name}" for name in published_swin_names((2, 2, 6, 2), (1, 2, 3))]
    renamed = [
        apply_rules(name, prefixed(r"backbone\.0\.", SWIN)) for name in names if not re.fullmatch(SWIN_IGNORED, name)
    ]
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "timm", "swin_tiny_patch4_window7_224"
    with torch.device("meta"):
        own = build_backbone(cfg).state_dict()
    assert sorted(renamed) == sorted(f"backbone.{name}" for name in own)
