# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Backbones of other projects: on their own, or inside a detector's file behind its prefix."""

from __future__ import annotations

import re

from ..errors import UserError
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

# Swin as Detectron2, detrex and DINO name it, without the prefix that stands before it in a detector: patch merging
# behind a stage, in timm before the next one; one norm for each map that a detector reads.
SWIN: Rules = (
    (r"patch_embed\.(proj|norm)", r"backbone.body.patch_embed.\1"),
    (r"layers\.(\d)\.blocks\.(.*)", r"backbone.body.layers.\1.blocks.\2"),
    (r"layers\.(\d)\.downsample\.(.*)", lambda m: f"backbone.body.layers.{int(m[1]) + 1}.downsample.{m[2]}"),
    (r"norm(\d)", r"backbone.output_norms.\1"),
)
SWIN_IGNORED = r"backbone\.(?:0\.)?.*\.(?:relative_position_index|attn_mask)"

# torchvision numbers patch embedding, stages and patch mergings in one row.
_SWIN_BLOCK = r"features\.([1357])\.(\d+)\."


def _swin_block(match: re.Match) -> str:
    module = {"mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2"}.get(match[3], match[3])
    return f"backbone.body.layers.{int(match[1]) // 2}.blocks.{match[2]}.{module}"


TORCHVISION_SWIN: Rules = (
    (r"features\.0\.0", "backbone.body.patch_embed.proj"),
    (r"features\.0\.2", "backbone.body.patch_embed.norm"),
    (_SWIN_BLOCK + r"(norm[12]|attn\.qkv|attn\.proj|attn\.relative_position_bias_table|mlp\.[03])", _swin_block),
    (r"features\.([246])\.(norm|reduction)", lambda m: f"backbone.body.layers.{int(m[1]) // 2}.downsample.{m[2]}"),
)

# EfficientNet-Lite0 as EfficientNet-PyTorch names it: blocks in one row, in timm by stage. The first does not expand.
_LITE0_BLOCKS = [(stage, block) for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(depth)]
_LITE0_MODULES = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}


def _lite0_block(match: re.Match) -> str:
    number, module = int(match[1]), match[2]
    if number >= len(_LITE0_BLOCKS):
        raise UserError(f"The weights look like EfficientNet-Lite0, but have more than {len(_LITE0_BLOCKS)} blocks.")
    if module.startswith("_bn"):
        module = f"bn{int(module[3:]) + (number > 0)}"
    elif number == 0:
        module = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw"}[module]
    stage, block = _LITE0_BLOCKS[number]
    return f"backbone.body.blocks.{stage}.{block}.{_LITE0_MODULES.get(module, module)}"


LITE0: Rules = (
    (r"_conv_stem", "backbone.body.conv_stem"),
    (r"_bn0", "backbone.body.bn1"),
    (r"_blocks\.(\d+)\.(_expand_conv|_depthwise_conv|_project_conv|_bn[012])", _lite0_block),
)

# Other networks of timm need no layout: the backbone itself reads its classification files (modeling/timm_backbone.py).
LAYOUTS = (
    Layout(
        "torchvision's Swin Transformer",
        ("features.1.0.attn.relative_position_bias_table",),
        TORCHVISION_SWIN,
        ignored=r"(?:norm|head)\..*|.*\.relative_position_index",
    ),
    Layout("EfficientNet-Lite0", ("_blocks.0._depthwise_conv.weight",), LITE0, ignored=r"(?:_conv_head|_bn1|_fc)\..*"),
    Layout("a torchvision ResNet", ("layer1.0.conv1.weight",), TORCHVISION_RESNET, ignored=r"fc\..*"),
)
