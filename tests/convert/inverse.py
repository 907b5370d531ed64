# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Small models on a ResNet-18, and their weights as the authors' repositories would have saved them."""

import re

import torch
from detectron2.config import get_cfg

from paq_detr import add_paq_detr_config

LAYERS = 3
SMALL = ("HIDDEN_DIM", 32, "ENCODER.NUM_LAYERS", 2, "DECODER.NUM_LAYERS", LAYERS, "QUERIES.NUM", 7)
SOURCE, DECODER = "sources.main.", "routes.main.decoder."
SUBSTITUTIONS = (
    (r"^backbone\.stem\.conv1\.norm", "backbone.0.body.bn1"),
    (r"^backbone\.stem", "backbone.0.body"),
    (r"^backbone\.res(\d)", lambda m: f"backbone.0.body.layer{int(m[1]) - 1}"),
    (r"(layer.*)\.conv(\d)\.norm\.", r"\1.bn\2."),
    (r"shortcut\.norm\.", "downsample.1."),
    (r"shortcut\.", "downsample.0."),
    (r"^neck\.convs\.(\d)", r"input_proj.\1.0"),
    (r"^neck\.norms\.(\d)", r"input_proj.\1.1"),
    (r"^neck\.level_code", "transformer.level_embed"),
    (r"^encoder\.(.*)\.attention\.", r"transformer.encoder.\1.self_attn."),
    (r"^encoder\.(.*)\.ffn\.norm", r"transformer.encoder.\1.norm2"),
    (r"^encoder\.(.*)\.ffn", r"transformer.encoder.\1"),
    (r"^encoder\.(.*)\.norm", r"transformer.encoder.\1.norm1"),
    (r"^routes\.main\.decoder\.", "transformer.decoder."),
    (r"interactions\.0\.attention", "self_attn"),
    (r"interactions\.0\.norm", "norm2"),
    (r"cross_attention\.attention", "cross_attn"),
    (r"cross_attention\.norm", "norm1"),
    (r"^(transformer\.decoder.*)\.ffn\.norm", r"\1.norm3"),
    (r"^(transformer\.decoder.*)\.ffn", r"\1"),
    (r"decoder\.output_norm", "decoder.norm"),
    (r"position\.mlp\.(\d)", lambda m: f"ref_point_head.layers.{int(m[1]) // 2}"),
    (r"position\.content_scale\.(\d)", lambda m: f"query_scale.layers.{int(m[1]) // 2}"),
    (r"^sources\.main\.reference_points", "transformer.reference_points"),
    (r"^sources\.main\.project_norm", "transformer.enc_output_norm"),
    (r"^sources\.main\.project", "transformer.enc_output"),
    (r"^sources\.main\.position_norm", "transformer.pos_trans_norm"),
    (r"^sources\.main\.position\.", "transformer.pos_trans."),
    (r"^sources\.main\.anchors", "refpoint_embed.weight"),
)


def config(*options, depth=18, class_names=("cat", "dog", "owl")):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.DETR.CLASS_NAMES = list(class_names)
    cfg.MODEL.DETR.merge_from_list(list(options))
    return cfg


def renamed(ours):
    """What has one place in both: without heads, tables of contents, labels, and learned positions."""
    theirs = {}
    for name, tensor in ours.items():
        if "_head." in name or "_heads." in name or "content" in name and "table" in name:
            continue
        if name.startswith("augmenters.") or name == f"{SOURCE}position":
            continue
        for pattern, replacement in SUBSTITUTIONS:
            name = re.sub(pattern, replacement, name)
        theirs[name] = tensor
    return theirs


def head_tensors(ours, kind, prefix):
    """(their ending, tensor) of one head of ours."""
    for ending in ("weight", "bias"):
        if kind == "class":
            yield ending, ours[f"{prefix}.{ending}"]
        else:
            yield from ((f"layers.{i}.{ending}", ours[f"{prefix}.{2 * i}.{ending}"]) for i in range(3))


def deformable_names(ours):
    """The original Deformable-DETR repository's names."""
    theirs = renamed(ours)
    two_stage = f"{SOURCE}project.weight" in ours
    refined = two_stage or f"{DECODER}box_heads.1.0.weight" in ours
    if not two_stage:
        theirs["query_embed.weight"] = torch.cat([ours[f"{SOURCE}position"], ours[f"{SOURCE}content.table"]], 1)
    for index in range(LAYERS + two_stage):
        for kind, name, twice in (("class", "class_embed", two_stage), ("box", "bbox_embed", refined)):
            head = f"{SOURCE}{kind}_head" if index == LAYERS else f"{DECODER}{kind}_heads.{index if refined else 0}"
            for ending, tensor in head_tensors(ours, kind, head):
                theirs[f"{name}.{index}.{ending}"] = tensor
                if twice:
                    theirs[f"transformer.decoder.{name}.{index}.{ending}"] = tensor
    return theirs


def dino_names(ours, shared=True):
    """DINO's names; its label table has one more row, which was never used."""
    theirs = renamed(ours)
    theirs["transformer.tgt_embed.weight"] = ours[f"{SOURCE}content.table"]
    labels = ours["augmenters.main.labels.weight"]
    theirs["label_enc.weight"] = torch.cat([labels, torch.full_like(labels[:1], 9.0)])
    for kind, name in (("class", "class_embed"), ("box", "bbox_embed")):
        for ending, tensor in head_tensors(ours, kind, f"{SOURCE}{kind}_head"):
            theirs[f"transformer.enc_out_{name}.{ending}"] = tensor
        for index in range(LAYERS):
            for ending, tensor in head_tensors(ours, kind, f"{DECODER}{kind}_heads.{0 if shared else index}"):
                theirs[f"{name}.{index}.{ending}"] = tensor
                theirs[f"transformer.decoder.{name}.{index}.{ending}"] = tensor
    return theirs


def dn_deformable_names(ours):
    """DN-Deformable-DETR's names: without the indicator's channel, and with a row for "no object" among the labels."""
    theirs = renamed(ours)
    theirs["tgt_embed.weight"] = ours[f"{SOURCE}content.content.table"][:, :-1]
    labels = ours["augmenters.main.labels.weight"]
    theirs["label_enc.weight"] = torch.cat([labels, torch.full_like(labels[:1], 9.0)])
    for index in range(LAYERS):
        for ending, tensor in head_tensors(ours, "class", f"{DECODER}class_heads.{index}"):
            theirs[f"class_embed.{index}.{ending}"] = tensor
        for ending, tensor in head_tensors(ours, "box", f"{DECODER}box_heads.{index}"):
            theirs[f"bbox_embed.{index}.{ending}"] = tensor
            theirs[f"transformer.decoder.bbox_embed.{index}.{ending}"] = tensor
    return theirs


# From the authors' names to detrex's, which count a layer's modules in the order in which they run.
DETREX = (
    (r"^(transformer\.encoder\.layers\.\d\.)self_attn\.", r"\1attentions.0."),
    (r"^(transformer\.encoder\.layers\.\d\.)norm1\.", r"\1norms.0."),
    (r"^(transformer\.encoder\.layers\.\d\.)norm2\.", r"\1norms.1."),
    (r"^(transformer\.decoder\.layers\.\d\.)self_attn\.", r"\1attentions.0.attn."),
    (r"^(transformer\.decoder\.layers\.\d\.)cross_attn\.", r"\1attentions.1."),
    (r"^(transformer\.decoder\.layers\.\d\.)norm2\.", r"\1norms.0."),
    (r"^(transformer\.decoder\.layers\.\d\.)norm1\.", r"\1norms.1."),
    (r"^(transformer\.decoder\.layers\.\d\.)norm3\.", r"\1norms.2."),
    (r"\.linear1\.", ".ffns.0.layers.0.0."),
    (r"\.linear2\.", ".ffns.0.layers.1."),
    (r"level_embed$", "level_embeds"),
    (r"^input_proj\.3\.0\.", "neck.extra_convs.0.conv."),
    (r"^input_proj\.3\.1\.", "neck.extra_convs.0.norm."),
    (r"^input_proj\.(\d)\.0\.", r"neck.convs.\1.conv."),
    (r"^input_proj\.(\d)\.1\.", r"neck.convs.\1.norm."),
)
# From detrex's to Mr. DETR's: norms and linear layers of the route that runs at test time.
MR_DETR = (
    (r"^(transformer\.decoder\.layers\.\d\.)norms\.0\.", r"\1attentions.0.norm_o2o."),
    (r"^(transformer\.decoder\.layers\.\d\.)norms\.1\.", r"\1norms.0."),
    (r"^(transformer\.decoder\.layers\.\d\.)norms\.2\.", r"\1norms.1."),
    (r"^(transformer\.decoder\.layers\.\d\.ffns\.0\.layers\.)0\.0\.", r"\g<1>0.linear.linear."),
    (r"^(transformer\.decoder\.layers\.\d\.ffns\.0\.layers\.)1\.", r"\g<1>1.linear."),
)


def substituted(weights, substitutions):
    """Each name after the first substitution that matches it."""
    theirs = {}
    for name, tensor in weights.items():
        matching = (re.sub(old, new, name) for old, new in substitutions if re.search(old, name))
        theirs[next(matching, name)] = tensor
    return theirs
