# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of other projects under this project's names.

Three layouts are recognised, by their names alone:

* ``transformers``' DeformableDetrForObjectDetection, as releases 4 and 5 name it, with either of its backbones;
* the original Deformable-DETR repository (fundamentalvision/Deformable-DETR), ``checkpoint["model"]``;
* a torchvision or timm ResNet, which becomes the backbone.

The first two exist as single stage, single stage with box refinement, and two-stage. The published ones have 91 classes
(COCO's category numbers, unused ones included): the rows stay as they are, and loading matches them by class name where
the names are known. With ``transformers`` installed, a file that carries them is written by::

    model = DeformableDetrForObjectDetection.from_pretrained(...)
    torch.save({"model": model.state_dict(), "class_names": class_names_of(model.config.to_dict())}, "weights.pth")

The original repository's files also hold its command line, which is skipped (``weights.read_weights``).
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]
# A pattern of a whole module name, and what it becomes: a template for the match, or a function of it.
Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]

NECK, SOURCE, DECODER = "neck", "sources.main", "routes.main.decoder"
PARAMETERS = ("weight", "bias", "running_mean", "running_var")


def prefixed(prefix: str, rules: Rules) -> Rules:
    return tuple((prefix + pattern, target) for pattern, target in rules)


# Detectron2 counts stages from the stem (res2 is the first), torchvision from 1, transformers from 0.
TORCHVISION_RESNET: Rules = (
    (r"conv1", "backbone.stem.conv1"),
    (r"bn1", "backbone.stem.conv1.norm"),
    (r"layer(\d)\.(\d+)\.conv(\d)", lambda m: f"backbone.res{int(m[1]) + 1}.{m[2]}.conv{m[3]}"),
    (r"layer(\d)\.(\d+)\.bn(\d)", lambda m: f"backbone.res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm"),
    (r"layer(\d)\.(\d+)\.downsample\.0", lambda m: f"backbone.res{int(m[1]) + 1}.{m[2]}.shortcut"),
    (r"layer(\d)\.(\d+)\.downsample\.1", lambda m: f"backbone.res{int(m[1]) + 1}.{m[2]}.shortcut.norm"),
)

# EfficientNet-Lite0 as EfficientNet-PyTorch names it: blocks in one row, in timm by stage. The first has no expansion.
_LITE0_BLOCKS = [(stage, block) for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(depth)]
_LITE0_MODULES = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}


def _lite0_block(match: re.Match) -> str:
    number, module = int(match[1]), match[2]
    if number >= len(_LITE0_BLOCKS):
        raise UserError("The weights look like EfficientNet-Lite0, but have more than 16 blocks.")
    if module.startswith("_bn"):
        module = f"bn{int(module[3:]) + (number > 0)}"
    elif number == 0 and module == "_project_conv":
        module = "conv_pw"
    return "backbone.body.blocks.{}.{}.".format(*_LITE0_BLOCKS[number]) + _LITE0_MODULES.get(module, module)


LITE0: Rules = (
    (r"_conv_stem", "backbone.body.conv_stem"),
    (r"_bn0", "backbone.body.bn1"),
    (r"_blocks\.(\d+)\.(_expand_conv|_depthwise_conv|_project_conv|_bn[012])", _lite0_block),
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

# What both detectors call the same, apart from a prefix.
_COMMON: Rules = (
    (r"level_embed", rf"{NECK}.level_code"),
    (r"reference_points", rf"{SOURCE}.reference_points"),
    (r"enc_output", rf"{SOURCE}.project"),
    (r"enc_output_norm", rf"{SOURCE}.project_norm"),
    (r"pos_trans", rf"{SOURCE}.position"),
    (r"pos_trans_norm", rf"{SOURCE}.position_norm"),
)
_INPUT: Rules = (
    (r"input_proj\.(\d+)\.0", rf"{NECK}.convs.\1"),
    (r"input_proj\.(\d+)\.1", rf"{NECK}.norms.\1"),
)
# The decoder's copies, there where boxes are refined, are the same heads. Layer i of an MLP stands at 2 i of ours.
_HEADS: Rules = (
    (r"class_embed\.(\d+)", rf"{DECODER}.class_heads.\1"),
    (r"bbox_embed\.(\d+)\.layers\.(\d)", lambda m: f"{DECODER}.box_heads.{m[1]}.{2 * int(m[2])}"),
)
_SAMPLING = r"(sampling_offsets|attention_weights|value_proj|output_proj)"

# The names that do not exist in our model (queries, q_proj, k_proj, v_proj, and the heads' numbers) are dissolved after
# the renaming.
TRANSFORMERS: Rules = (
    *prefixed(r"model\.backbone\.(?:conv_encoder\.)?model\.", TORCHVISION_RESNET + TRANSFORMERS_RESNET),
    *prefixed(r"model\.", _COMMON + _INPUT),
    *prefixed(r"(?:model\.decoder\.)?", _HEADS),
    (r"model\.query_position_embeddings", rf"{SOURCE}.queries"),
    *prefixed(
        r"model\.encoder\.layers\.(\d+)\.",
        (
            (r"self_attn\." + _SAMPLING, r"encoder.layers.\1.attention.\2"),
            (r"self_attn_layer_norm", r"encoder.layers.\1.norm"),
            (r"(?:mlp\.)?fc([12])", r"encoder.layers.\1.ffn.linear\2"),
            (r"final_layer_norm", r"encoder.layers.\1.ffn.norm"),
        ),
    ),
    *prefixed(
        r"model\.decoder\.layers\.(\d+)\.",
        (
            (r"self_attn\.([qkv])_proj", rf"{DECODER}.layers.\1.interactions.0.attention.\2_proj"),
            (r"self_attn\.(?:o|out)_proj", rf"{DECODER}.layers.\1.interactions.0.attention.out_proj"),
            (r"self_attn_layer_norm", rf"{DECODER}.layers.\1.interactions.0.norm"),
            (r"encoder_attn\." + _SAMPLING, rf"{DECODER}.layers.\1.cross_attention.attention.\2"),
            (r"encoder_attn_layer_norm", rf"{DECODER}.layers.\1.cross_attention.norm"),
            (r"(?:mlp\.)?fc([12])", rf"{DECODER}.layers.\1.ffn.linear\2"),
            (r"final_layer_norm", rf"{DECODER}.layers.\1.ffn.norm"),
        ),
    ),
)

ORIGINAL: Rules = (
    *prefixed(r"backbone\.0\.body\.", TORCHVISION_RESNET),
    *prefixed(r"transformer\.", _COMMON),
    *_INPUT,
    *prefixed(r"(?:transformer\.decoder\.)?", _HEADS),
    (r"query_embed", rf"{SOURCE}.queries"),
    *prefixed(
        r"transformer\.encoder\.layers\.(\d+)\.",
        (
            (r"self_attn\." + _SAMPLING, r"encoder.layers.\1.attention.\2"),
            (r"norm1", r"encoder.layers.\1.norm"),
            (r"linear([12])", r"encoder.layers.\1.ffn.linear\2"),
            (r"norm2", r"encoder.layers.\1.ffn.norm"),
        ),
    ),
    *prefixed(
        r"transformer\.decoder\.layers\.(\d+)\.",
        (
            (r"self_attn\.(in_proj_weight|in_proj_bias|out_proj)", rf"{DECODER}.layers.\1.interactions.0.attention.\2"),
            (r"norm2", rf"{DECODER}.layers.\1.interactions.0.norm"),  # the self-attention's, though it comes first
            (r"cross_attn\." + _SAMPLING, rf"{DECODER}.layers.\1.cross_attention.attention.\2"),
            (r"norm1", rf"{DECODER}.layers.\1.cross_attention.norm"),
            (r"linear([12])", rf"{DECODER}.layers.\1.ffn.linear\2"),
            (r"norm3", rf"{DECODER}.layers.\1.ffn.norm"),
        ),
    ),
)


@dataclass(frozen=True)
class Layout:
    title: str  # how messages call it
    marker: str  # a tensor that every such file has
    rules: Rules
    ignored: str = r"(?!)"  # pattern of names that are known and not needed; this one matches nothing


LAYOUTS = (
    Layout(
        "transformers' Deformable DETR", "model.decoder.layers.0.encoder_attn.sampling_offsets.weight", TRANSFORMERS
    ),
    Layout(
        "the original Deformable-DETR repository",
        "transformer.decoder.layers.0.cross_attn.sampling_offsets.weight",
        ORIGINAL,
    ),
    Layout("EfficientNet-Lite0", "_blocks.0._depthwise_conv.weight", LITE0, ignored=r"(_conv_head|_bn1|_fc)\..*"),
    Layout("a torchvision ResNet", "layer1.0.conv1.weight", TORCHVISION_RESNET, ignored=r"fc\..*"),
)


def convert_if_foreign(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> tuple[Weights, list[str] | None]:
    """The weights under this project's names, and their class names where they are known.

    Args:
        state_dict: named tensors of any layout; those of an unknown one are returned as they are.
        config: of a ``transformers`` model (its ``config.json``, or ``model.config.to_dict()``), for the class names.

    Raises:
        UserError: if the layout is known but holds names that are not understood, or contradicts itself.
    """
    names = class_names_of(config) if config else None
    layout = next((layout for layout in LAYOUTS if layout.marker in state_dict), None)
    if layout is None:
        return dict(state_dict), names
    weights = rename(state_dict, layout)
    if any(name.startswith(DECODER) for name in weights):
        split_queries(weights)
        stack_projections(weights)
        variant = place_heads(weights, refines_boxes=any("decoder.bbox_embed" in name for name in state_dict))
        logger.info("Weights are in the layout of %s, %s", layout.title, variant)
    return weights, names


def class_names_of(config: Mapping[str, Any]) -> list[str] | None:
    """Class names in the order of the logits from ``id2label`` of a ``transformers`` config; None where it has none.

    Raises:
        UserError: if the ids do not run from 0 without a gap.
    """
    labels = {int(index): str(name) for index, name in config.get("id2label", {}).items()}
    if sorted(labels) != list(range(len(labels))):
        raise UserError(f"The ids in id2label are {sorted(labels)}, they must run from 0 to {len(labels) - 1}.")
    return [labels[index] for index in range(len(labels))] or None


def rename(state_dict: Mapping[str, Tensor], layout: Layout) -> Weights:
    """Every tensor under the name that the layout's rules give it."""
    weights: Weights = {}
    unknown = []
    for name, tensor in state_dict.items():
        if name.endswith("num_batches_tracked") or re.fullmatch(layout.ignored, name):
            continue
        new_name = apply_rules(name, layout.rules)
        if new_name is None:
            unknown.append(name)
        elif new_name in weights and not torch.equal(weights[new_name], tensor):
            raise UserError(f"The weights hold two different tensors for {new_name}, one of them {name}.")
        else:
            weights[new_name] = tensor
    if unknown:
        listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise UserError(
            f"The weights look like those of {layout.title}, but {len(unknown)} of {len(state_dict)} names are not "
            f"understood: {listed}."
        )
    return weights


def apply_rules(name: str, rules: Rules) -> str | None:
    """The name that the first matching rule gives; None where none matches."""
    module, dot, parameter = name.rpartition(".")
    if parameter not in PARAMETERS:
        module, dot, parameter = name, "", ""
    for pattern, target in rules:
        match = re.fullmatch(pattern, module)
        if match:
            return (target(match) if callable(target) else match.expand(target)) + dot + parameter
    return None


def split_queries(weights: Weights) -> None:
    """One table of queries, (N, 2 C), becomes the positions and the contents."""
    table = weights.pop(f"{SOURCE}.queries.weight", None)
    if table is None:
        return
    width = needed(weights, f"{NECK}.level_code").shape[1]
    if table.shape[1] != 2 * width:
        raise UserError(
            f"The weights' query table has {table.shape[1]} columns, must have {2 * width} (2 per channel)."
        )
    weights[f"{SOURCE}.position"], weights[f"{SOURCE}.content.table"] = table.split(width, dim=1)


def stack_projections(weights: Weights) -> None:
    """Separate projections of query, key and value become the one of ``nn.MultiheadAttention``."""
    for name in [name for name in weights if ".interactions.0.attention.q_proj." in name]:
        names = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        weights[name.replace(".q_proj.", ".in_proj_")] = torch.cat([needed(weights, part) for part in names])
        for part in names:
            del weights[part]


def needed(weights: Weights, name: str) -> Tensor:
    if name not in weights:
        raise UserError(f"The weights are incomplete: the one that becomes {name} is missing.")
    return weights[name]


def place_heads(weights: Weights, refines_boxes: bool) -> str:
    """Give the heads the numbers that they have in our decoder, and the encoder its pair; returns the variant's name.

    Both layouts number one pair of heads per decoder layer, also where all layers share a single one (no refinement);
    in two-stage models one more pair follows, the encoder's. A file may hold heads that are tied only once.
    """
    layers = len({name.split(".")[4] for name in weights if name.startswith(f"{DECODER}.layers.")})
    two_stage = f"{SOURCE}.project.weight" in weights
    heads = {kind: take_numbered(weights, f"{DECODER}.{kind}s.") for kind in ("class_head", "box_head")}
    per_layer = refines_boxes or two_stage or not all(same_tensors(*numbered.values()) for numbered in heads.values())
    for kind, numbered in heads.items():
        if two_stage:
            put(weights, f"{SOURCE}.{kind}", numbered.pop(layers, {}))
        if not per_layer:
            numbered = dict(list(numbered.items())[:1])
        elif len(numbered) == 1:
            numbered = {layer: head for head in numbered.values() for layer in range(layers)}
        for index, head in numbered.items():
            put(weights, f"{DECODER}.{kind}s.{index}", head)
    return "two-stage" if two_stage else "single stage with box refinement" if per_layer else "single stage"


def take_numbered(weights: Weights, prefix: str) -> dict[int, Weights]:
    """Remove the modules ``prefix`` 0, 1, ... from the weights and return the tensors of each."""
    modules: dict[int, Weights] = defaultdict(dict)
    for name in [name for name in weights if name.startswith(prefix)]:
        index, _, parameter = name[len(prefix) :].partition(".")
        modules[int(index)][parameter] = weights.pop(name)
    return dict(sorted(modules.items()))


def put(weights: Weights, prefix: str, module: Weights) -> None:
    weights.update({f"{prefix}.{parameter}": tensor for parameter, tensor in module.items()})


def same_tensors(*modules: Weights) -> bool:
    first = modules[0] if modules else {}
    return all(
        module.keys() == first.keys() and all(torch.equal(module[key], first[key]) for key in first)
        for module in modules[1:]
    )
