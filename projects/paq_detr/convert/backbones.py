# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Backbones of other projects: on their own, or inside a detector's file behind its prefix."""

from __future__ import annotations

from .layout import Layout, Rules

# Detectron2 counts stages from the stem (res2 is the first), torchvision from 1, transformers from 0.
TORCHVISION_RESNET: Rules = (
    (r"conv1", "backbone.stem.conv1"),
    (r"bn1", "backbone.stem.conv1.norm"),
    (r"layer(\d)\.(\d+)\.conv(\d)", lambda m: f"backbone.res{int(m[1]) + 1}.{m[2]}.conv{m[3]}"),
    (r"layer(\d)\.(\d+)\.bn(\d)", lambda m: f"backbone.res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm"),
    (r"layer(\d)\.(\d+)\.downsample\.0", lambda m: f"backbone.res{int(m[1]) + 1}.{m[2]}.shortcut"),
    (r"layer(\d)\.(\d+)\.downsample\.1", lambda m: f"backbone.res{int(m[1]) + 1}.{m[2]}.shortcut.norm"),
)

_UNIT = r"encoder\.stages\.(\d)\.layers\.(\d+)\."
TRANSFORMERS_RESNET: Rules = (
    (r"embedder\.embedder\.convolution", "backbone.stem.conv1"),
    (r"embedder\.embedder\.normalization", "backbone.stem.conv1.norm"),
    (_UNIT + r"layer\.(\d)\.convolution", lambda m: f"backbone.res{int(m[1]) + 2}.{m[2]}.conv{int(m[3]) + 1}"),
    (_UNIT + r"layer\.(\d)\.normalization", lambda m: f"backbone.res{int(m[1]) + 2}.{m[2]}.conv{int(m[3]) + 1}.norm"),
    (_UNIT + r"shortcut\.convolution", lambda m: f"backbone.res{int(m[1]) + 2}.{m[2]}.shortcut"),
    (_UNIT + r"shortcut\.normalization", lambda m: f"backbone.res{int(m[1]) + 2}.{m[2]}.shortcut.norm"),
)

# Detectron2's own names, which detrex keeps.
DETECTRON2_RESNET: Rules = ((r"((?:stem|res\d)\..*)", r"backbone.\1"),)

# Swin as Detectron2, detrex and DINO name it, without the prefix that stands before it in a detector.
SWIN: Rules = ()
SWIN_IGNORED = r"backbone\.(?:0\.)?.*\.(?:relative_position_index|attn_mask)"

LAYOUTS = (Layout("a torchvision ResNet", ("layer1.0.conv1.weight",), TORCHVISION_RESNET, ignored=r"fc\..*"),)
