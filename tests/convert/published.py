# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of published weights, from the structure of the code that writes them.

Sources: IDEA-Research/DINO (commit faa8520), IDEA-Research/DAB-DETR (723ddb8), FengLi-ust/DN-DETR (ff3902a),
fundamentalvision/Deformable-DETR (11169a6), IDEA-Research/detrex (e244e6c), Visual-AI/Mr.DETR (8b80a70),
PeizeSun/SparseR-CNN (0e5028d) and MCG-NJU/AdaMixer (a50e33d); ResNets as torchvision and Detectron2 name them. The
numbers of keys and parameters in the tests were counted on those models.
"""

import re

import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone

WIDTH, HEADS, POINTS, LAYERS = 256, 8, 4, 6


def linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name, width=WIDTH):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def mlp(name, *widths):
    return merged(linear(f"{name}.layers.{i}", out, into) for i, (into, out) in enumerate(zip(widths, widths[1:])))


def merged(parts):
    return {name: shape for part in parts for name, shape in part.items()}


def deformable_attention(name, levels):
    samples = HEADS * levels * POINTS
    return merged(
        linear(f"{name}.{part}", rows, WIDTH)
        for part, rows in (
            ("sampling_offsets", 2 * samples),
            ("attention_weights", samples),
            ("value_proj", WIDTH),
            ("output_proj", WIDTH),
        )
    )


def self_attention(name):
    return {
        f"{name}.in_proj_weight": (3 * WIDTH, WIDTH),
        f"{name}.in_proj_bias": (3 * WIDTH,),
        **linear(f"{name}.out_proj", WIDTH, WIDTH),
    }


def heads(count, classes, class_places=("",), box_places=("",)):
    """``count`` pairs, each stored in several places."""
    return merged(
        [
            *(linear(f"{at}class_embed.{i}", classes, WIDTH) for at in class_places for i in range(count)),
            *(mlp(f"{at}bbox_embed.{i}", WIDTH, WIDTH, WIDTH, 4) for at in box_places for i in range(count)),
        ]
    )


BOTH = ("", "transformer.decoder.")


def torchvision_r50(prefix):
    """Frozen batch norms have no counter."""
    with torch.device("meta"):
        weights = torchvision.models.resnet50().state_dict()
    return {
        prefix + name: tuple(tensor.shape)
        for name, tensor in weights.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }


def detectron2_r50(prefix):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
    with torch.device("meta"):
        weights = build_resnet_backbone(cfg, ShapeSpec(channels=3)).state_dict()
    return {prefix + name: tuple(tensor.shape) for name, tensor in weights.items()}


def swin_l(prefix, outputs):
    """Swin-L of window 12, as DINO, Detectron2 and detrex name it: a norm per map that is read, no head."""
    parts = [{f"{prefix}patch_embed.proj.weight": (192, 3, 4, 4), f"{prefix}patch_embed.proj.bias": (192,)}]
    parts += [norm(f"{prefix}patch_embed.norm", 192)]
    for stage, (depth, heads) in enumerate(((2, 6), (2, 12), (18, 24), (2, 48))):
        width = 192 * 2**stage
        parts += [swin_block(f"{prefix}layers.{stage}.blocks.{i}", width, heads) for i in range(depth)]
        if stage < 3:
            at = f"{prefix}layers.{stage}.downsample"
            parts += [norm(f"{at}.norm", 4 * width), {f"{at}.reduction.weight": (2 * width, 4 * width)}]
        if stage in outputs:
            parts += [norm(f"{prefix}norm{stage}", width)]
    return merged(parts)


def swin_block(at, width, heads, window=12):
    return {
        **norm(f"{at}.norm1", width),
        f"{at}.attn.relative_position_bias_table": ((2 * window - 1) ** 2, heads),
        f"{at}.attn.relative_position_index": (window**2, window**2),
        **linear(f"{at}.attn.qkv", 3 * width, width),
        **linear(f"{at}.attn.proj", width, width),
        **norm(f"{at}.norm2", width),
        **linear(f"{at}.mlp.fc1", 4 * width, width),
        **linear(f"{at}.mlp.fc2", width, 4 * width),
    }


R50, SWIN_L = "R50", "Swin-L"


def maps(levels, last):
    """(input channels, kernel side) of the neck's convolutions: the backbone's last maps, and one further level."""
    return [(last // 2**i, 1) for i in reversed(range(levels - 1))] + [(last, 3)]


# ----------------------------------------------------------------------------------------------------------------------
# The repositories of the authors


def official(levels, ffn=2048, backbone=R50):
    last, weights = {
        R50: (2048, lambda: torchvision_r50("backbone.0.body.")),
        SWIN_L: (1536, lambda: swin_l("backbone.0.", range(5 - levels, 4))),
    }[backbone]
    parts = [weights(), {"transformer.level_embed": (levels, WIDTH)}]
    for i, (channels, side) in enumerate(maps(levels, last)):
        parts += [{f"input_proj.{i}.0.weight": (WIDTH, channels, side, side), f"input_proj.{i}.0.bias": (WIDTH,)}]
        parts += [norm(f"input_proj.{i}.1")]
    for i in range(LAYERS):
        for at, attentions, norms in (
            (f"transformer.encoder.layers.{i}", [], 2),
            (f"transformer.decoder.layers.{i}", ["cross_attn"], 3),
        ):
            parts += [deformable_attention(f"{at}.{name}", levels) for name in attentions or ["self_attn"]]
            parts += [self_attention(f"{at}.self_attn")] if attentions else []
            parts += [norm(f"{at}.norm{n + 1}") for n in range(norms)]
            parts += [linear(f"{at}.linear1", ffn, WIDTH), linear(f"{at}.linear2", WIDTH, ffn)]
    return merged(parts)


def proposals():
    return {**linear("transformer.enc_output", WIDTH, WIDTH), **norm("transformer.enc_output_norm")}


def positions_of_boxes(scaled):
    return {
        **mlp("transformer.decoder.ref_point_head", 2 * WIDTH, WIDTH, WIDTH),
        **(mlp("transformer.decoder.query_scale", WIDTH, WIDTH, WIDTH) if scaled else {}),
    }


def official_dino(levels=4, backbone=R50):
    return {
        **official(levels, backbone=backbone),
        **proposals(),
        **positions_of_boxes(scaled=False),
        "transformer.tgt_embed.weight": (900, WIDTH),
        **linear("transformer.enc_out_class_embed", 91, WIDTH),
        **mlp("transformer.enc_out_bbox_embed", WIDTH, WIDTH, WIDTH, 4),
        **norm("transformer.decoder.norm"),
        "label_enc.weight": (92, WIDTH),
        **heads(LAYERS, 91, BOTH, BOTH),
    }


def official_dab_deformable(denoising=False):
    contents = {"tgt_embed.weight": (300, WIDTH - denoising), "refpoint_embed.weight": (300, 4)}
    labels = {"label_enc.weight": (92, WIDTH - 1)} if denoising else {}
    return {
        **official(4),
        **positions_of_boxes(scaled=True),
        **contents,
        **labels,
        **heads(LAYERS, 91, box_places=BOTH),
    }


def official_deformable(refine=True, two_stage=False):
    own = {**linear("transformer.reference_points", 2, WIDTH), "query_embed.weight": (300, 2 * WIDTH)}
    if two_stage:
        own = {**proposals(), **position_map()}
    places = (BOTH if two_stage else ("",), BOTH if refine else ("",))
    return {**official(4, ffn=1024), **own, **heads(LAYERS + two_stage, 91, *places)}


def position_map():
    return {
        **linear("transformer.pos_trans", 2 * WIDTH, 2 * WIDTH),
        **norm("transformer.pos_trans_norm", 2 * WIDTH),
    }


# ----------------------------------------------------------------------------------------------------------------------
# detrex, and Mr. DETR, which was made with it


def detrex(decoder_layer, levels=4):
    parts = [detectron2_r50("backbone."), {"transformer.level_embeds": (levels, WIDTH)}]
    for i, (channels, side) in enumerate(maps(levels, 2048)):
        at = f"neck.convs.{i}" if side == 1 else "neck.extra_convs.0"
        parts += [{f"{at}.conv.weight": (WIDTH, channels, side, side), f"{at}.conv.bias": (WIDTH,)}, norm(f"{at}.norm")]
    for i in range(LAYERS):
        at = f"transformer.encoder.layers.{i}"
        parts += [deformable_attention(f"{at}.attentions.0", levels), *detrex_ffn(at), *numbered_norms(at, 2)]
        at = f"transformer.decoder.layers.{i}"
        parts += [self_attention(f"{at}.attentions.0.attn"), deformable_attention(f"{at}.attentions.1", levels)]
        parts += decoder_layer(at)
    return merged(parts)


def detrex_ffn(at):
    return [linear(f"{at}.ffns.0.layers.0.0", 2048, WIDTH), linear(f"{at}.ffns.0.layers.1", WIDTH, 2048)]


def numbered_norms(at, count):
    return [norm(f"{at}.norms.{n}") for n in range(count)]


def detrex_decoder_layer(at):
    return [*detrex_ffn(at), *numbered_norms(at, 3)]


def detrex_dino():
    return {
        **detrex(detrex_decoder_layer),
        **proposals(),
        **positions_of_boxes(scaled=False),
        "transformer.tgt_embed.weight": (900, WIDTH),
        **norm("transformer.decoder.norm"),
        "label_enc.weight": (80, WIDTH),
        **heads(LAYERS + 1, 80, BOTH, BOTH),
    }


def detrex_dab_deformable(two_stage=False, denoising=False):
    own = {"tgt_embed.weight": (300, WIDTH - denoising), "refpoint_embed.weight": (300, 4)}
    labels = {"denoising_generator.label_encoder.weight": (81, WIDTH - 1)} if denoising else {}
    return {
        **detrex(detrex_decoder_layer),
        **positions_of_boxes(scaled=True),
        **(proposals() if two_stage else own),
        **labels,
        **heads(LAYERS + two_stage, 80, BOTH if two_stage else ("",), BOTH),
    }


def mr_detr_layer(at):
    return [
        *(norm(f"{at}.attentions.0.{name}") for name in ("norm_o2o", "norm_o2m")),
        *({f"{at}.attentions.0.instruction_o2m{name}.weight": (10, WIDTH)} for name in ("", "_pos")),
        *numbered_norms(at, 2),
        *(linear(f"{at}.ffns.0.layers.0.linear.{name}", 2048, WIDTH) for name in ("linear", "linear_sep")),
        *(linear(f"{at}.ffns.0.layers.1.{name}", WIDTH, 2048) for name in ("linear", "linear_sep")),
    ]


def mr_detr(denoising=False):
    return {
        **detrex(mr_detr_layer),
        **proposals(),
        **position_map(),
        "query_embedding.weight": (900, WIDTH),
        **mlp("transformer.decoder.bbox_embed_enc_o2m", WIDTH, WIDTH, WIDTH, 4),
        **linear("transformer.decoder.class_embed_o2m_encoder", 80, WIDTH),
        **({"label_enc.weight": (80, WIDTH)} if denoising else {}),
        **heads(LAYERS + 1, 80, BOTH, BOTH),
    }


# ----------------------------------------------------------------------------------------------------------------------
# Detectors whose queries are boxes


def tower(name, layers, bias):
    """(linear, norm, activation) layers."""
    parts = [norm(f"{name}.{3 * i + 1}") for i in range(layers)]
    parts += [linear(f"{name}.{3 * i}", WIDTH, WIDTH) for i in range(layers)]
    return {key: shape for key, shape in merged(parts).items() if bias or not re.search(r"\.[036]\.bias$", key)}


def sparse_rcnn(queries=100, classes=80):
    parts = [detectron2_r50("backbone.bottom_up.")]
    for level, width in enumerate((256, 512, 1024, 2048), 2):
        lateral, output = f"backbone.fpn_lateral{level}", f"backbone.fpn_output{level}"
        parts += [{f"{lateral}.weight": (WIDTH, width, 1, 1), f"{output}.weight": (WIDTH, WIDTH, 3, 3)}]
        parts += [{f"{name}.bias": (WIDTH,)} for name in (lateral, output)]
    parts += [{"init_proposal_boxes.weight": (queries, 4), "init_proposal_features.weight": (queries, WIDTH)}]
    for i in range(LAYERS):
        at = f"head.head_series.{i}"
        parts += [self_attention(f"{at}.self_attn"), linear(f"{at}.inst_interact.dynamic_layer", 2 * 64 * WIDTH, WIDTH)]
        parts += [norm(f"{at}.inst_interact.norm1", 64), *(norm(f"{at}.inst_interact.norm{n}") for n in (2, 3))]
        parts += [linear(f"{at}.inst_interact.out_layer", WIDTH, 49 * WIDTH)]
        parts += [linear(f"{at}.linear1", 2048, WIDTH), linear(f"{at}.linear2", WIDTH, 2048)]
        parts += [norm(f"{at}.norm{n}") for n in (1, 2, 3)]
        parts += [tower(f"{at}.cls_module", 1, bias=False), tower(f"{at}.reg_module", 3, bias=False)]
        parts += [linear(f"{at}.class_logits", classes, WIDTH), linear(f"{at}.bboxes_delta", 4, WIDTH)]
    return merged(parts)


def adamixer(queries=100, classes=80):
    parts = [torchvision_r50("backbone."), norm("neck.gn_out")]
    for level, width in enumerate((256, 512, 1024, 2048)):
        at = f"neck.lateral_convs.{level}.conv"
        parts += [{f"{at}.weight": (WIDTH, width, 1, 1), f"{at}.bias": (WIDTH,)}]
    parts += [{"rpn_head.init_proposal_bboxes.weight": (queries, 4)}]
    parts += [{"rpn_head.init_content_features.weight": (queries, WIDTH)}]
    for i in range(LAYERS):
        at = f"roi_head.bbox_head.{i}"
        mixing = f"{at}.sampling_n_mixing"
        parts += [self_attention(f"{at}.attention.attn"), {f"{at}.iof_tau": (HEADS,)}]
        parts += [linear(f"{mixing}.sampling_offset_generator.0", 4 * 32 * 3, WIDTH), norm(f"{mixing}.norm")]
        parts += [linear(f"{mixing}.adaptive_mixing.parameter_generator.0", 4 * (64 * 64 + 128 * 32), WIDTH)]
        parts += [linear(f"{mixing}.adaptive_mixing.out_proj", WIDTH, 4 * 128 * 64)]
        parts += [linear(f"{at}.ffn.layers.0.0", 2048, WIDTH), linear(f"{at}.ffn.layers.1", WIDTH, 2048)]
        parts += [norm(f"{at}.attention_norm"), norm(f"{at}.ffn_norm")]
        parts += [tower(f"{at}.{name}", 1, bias=True) for name in ("cls_fcs", "reg_fcs")]
        parts += [linear(f"{at}.fc_cls", classes, WIDTH), linear(f"{at}.fc_reg", 4, WIDTH)]
    return merged(parts)


def asag(copy_of, classes=80, fixed=150, probed=50):
    """``copy_of(at)``: the tensors of a copy of the decoder."""
    parts = [torchvision_r50("backbone.0.body.")]
    for level, width in enumerate((256, 512, 1024, 2048)):
        lateral, output = f"neck.inner_blocks.{level}", f"neck.layer_blocks.{level}"
        parts += [{f"{lateral}.weight": (WIDTH, width, 1, 1), f"{output}.weight": (WIDTH, WIDTH, 3, 3)}]
        parts += [{f"{name}.bias": (WIDTH,)} for name in (lateral, output)]
    at = "anchor_generator"
    for level in range(3):
        parts += [{f"{at}.compress.{level}.0.weight": (128, WIDTH, 1, 1), f"{at}.compress.{level}.0.bias": (128,)}]
        parts += [{f"{at}.compress.{level}.2.weight": (8, 128, 3, 3), f"{at}.compress.{level}.2.bias": (8,)}]
        parts += [{f"{at}.layernorm.{level}.{name}": (225, 8) for name in ("weight", "bias")}]
        parts += [{f"{at}.pos_embedding.{level}.weight": (225, 8)}]
    parts += [{f"{at}.P6.weight": (8, 8, 3, 3), f"{at}.P6.bias": (8,)}]
    parts += [mlp(f"{at}.proj_all", 1800, 1000, 1000, 5 * fixed), mlp(f"{at}.proj_patch", 1800, 1000, 1000, 5 * probed)]
    parts += [linear("rpn.roi", WIDTH, 49 * WIDTH), *(norm(f"rpn.tokens_norm{n}") for n in (1, 2, 3))]
    parts += [self_attention("rpn.attn"), {"rpn.iof_tau": (HEADS,)}, mlp("rpn.tokens_proj", WIDTH, 2048, WIDTH)]
    parts += [tower("rpn.cls_fcs", 1, bias=False), tower("rpn.reg_fcs", 3, bias=False)]
    parts += [linear("rpn.fc_cls", classes, WIDTH), linear("rpn.fc_reg", 4, WIDTH)]
    parts += [
        {"decoder.decoder_embedding.weight": (4, WIDTH)},
        *(part for i in range(4) for part in copy_of(i, classes)),
    ]
    return merged(parts)


def asag_a_copy(number, classes):
    at = f"decoder.bbox_head.{number}"
    mixing = f"{at}.sampling_n_mixing"
    return [
        *(self_attention(f"{at}.attention"), {f"{at}.iof_tau": (HEADS,)}),
        *(linear(f"{mixing}.sampling_offset_generator.0", 4 * 32 * 3, WIDTH), norm(f"{mixing}.norm")),
        linear(f"{mixing}.adaptive_mixing.parameter_generator.0", 4 * (64 * 64 + 128 * 32), WIDTH),
        linear(f"{mixing}.adaptive_mixing.out_proj", WIDTH, 4 * 128 * 64),
        *(mlp(f"{at}.ffn", WIDTH, 2048, WIDTH), norm(f"{at}.attention_norm"), norm(f"{at}.ffn_norm")),
        *(tower(f"{at}.cls_fcs", 1, bias=False), tower(f"{at}.reg_fcs", 3, bias=False)),
        *(linear(f"{at}.fc_cls", classes, WIDTH), linear(f"{at}.fc_reg", 4, WIDTH)),
    ]


def asag_s_copy(number, classes):
    stage = {k: s for k, s in sparse_rcnn(classes=classes).items() if k.startswith(f"head.head_series.{number}.")}
    return [{key.replace("head.head_series", "decoder.head_series"): shape for key, shape in stage.items()}]


# ----------------------------------------------------------------------------------------------------------------------
# Tensors


def owner(name, shared=False):
    """The name of the module's first place for a tensor that is stored in several; ``shared``: by all layers too."""
    name = re.sub(r"^transformer\.decoder\.(class_embed|bbox_embed)\.(\d)", r"\1.\2", name)
    return re.sub(r"^(class_embed|bbox_embed)\.\d", r"\1.0", name) if shared else name


def stored(shapes, shared=False):
    """A tensor for every name that is filled with a number of its own, 1, 2, ...; copies have their owner's."""
    numbers = {}
    for name in shapes:
        numbers.setdefault(owner(name, shared), len(numbers) + 1)
    return {name: torch.tensor(float(numbers[owner(name, shared)])).expand(shape) for name, shape in shapes.items()}


def num_parameters(shapes, shared=False):
    """Without copies, and without buffers: frozen batch norms, Swin's index of relative positions."""
    unique = {owner(name, shared): shape for name, shape in shapes.items() if not is_buffer(name)}
    return sum(torch.Size(shape).numel() for shape in unique.values())


def is_buffer(name):
    buffers = r"backbone\..*(\bbn\d\.|layer\d.*\.downsample\.1\.|(conv\d|shortcut)\.norm\.|position_index$).*"
    return re.fullmatch(buffers, name) is not None
