# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Files with the names and shapes of published weights (published.py) become exactly the weights of our models."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from paq_detr import add_paq_detr_config
from paq_detr.convert import convert_if_foreign

from . import published

CONFIGS = Path(__file__).parents[2] / "configs" / "coco"


@dataclass(frozen=True)
class Case:
    """A published model, its numbers of keys and of unique parameters, and our config of it."""

    shapes: dict
    keys: int
    parameters: int
    layout: str
    config: str
    options: tuple = ()
    shared: bool = False  # one pair of heads for all layers
    dropped: int = 0
    classes: int = field(default=91)


DAB, DN, DINO = "dab_deformable_detr_r50_50ep", "dn_deformable_detr_r50_50ep", "dino_{}scale_{}_12ep"
ORIGINAL = "the original Deformable-DETR repository, "
CASES = {
    "dino_4scale": lambda: Case(
        published.official_dino(), 626, 46_893_182, "the official DINO, 4-scale, one head", DINO.format(4, "r50"),
        shared=True,
    ),
    "dino_5scale": lambda: Case(
        published.official_dino(5), 630, 47_255_806, "the official DINO, 5-scale, one head", DINO.format(5, "r50"),
        shared=True,
    ),
    "dino_own_heads": lambda: Case(
        published.official_dino(), 626, 46_893_182 + 5 * (91 * 257 + 132_612),
        "the official DINO, 4-scale, a head per layer", DINO.format(4, "r50"), ("DECODER.SHARED_HEADS", False),
    ),
    "dino_4scale_swin_l": lambda: Case(
        published.official_dino(4, published.SWIN_L), 716, 217_230_066, "the official DINO, 4-scale, one head",
        DINO.format(4, "swin_l"), shared=True, dropped=24,
    ),
    "dino_5scale_swin_l": lambda: Case(
        published.official_dino(5, published.SWIN_L), 722, 217_576_690, "the official DINO, 5-scale, one head",
        DINO.format(5, "swin_l"), shared=True, dropped=24,
    ),
    "detrex_dino": lambda: Case(
        published.detrex_dino(), 634, 47_650_316, "detrex's DINO, 4-scale", "dino_4scale_detrex_r50_12ep", classes=80
    ),
    "dab_deformable": lambda: Case(
        published.official_dab_deformable(), 604, 47_405_994, "the official DAB-Deformable-DETR", DAB
    ),
    "dn_deformable": lambda: Case(
        published.official_dab_deformable(denoising=True), 605, 47_429_154, "the official DN-Deformable-DETR", DN
    ),
    "detrex_dab_deformable": lambda: Case(
        published.detrex_dab_deformable(), 604, 47_389_032, "detrex's DAB-Deformable-DETR", DAB, classes=80
    ),
    "detrex_dab_deformable_two_stage": lambda: Case(
        published.detrex_dab_deformable(two_stage=True), 634, 47_530_508, "detrex's DAB-Deformable-DETR, two-stage",
        "dab_deformable_detr_plusplus_r50_12ep", classes=80,
    ),
    "detrex_dn_deformable": lambda: Case(
        published.detrex_dab_deformable(denoising=True), 605, 47_409_387, "detrex's DN-Deformable-DETR", DN, classes=80
    ),
    "mr_detr": lambda: Case(
        published.mr_detr(), 687, 54_188_128, "Mr. DETR, two-stage", "mr_detr_deformable_900_r50_12ep", classes=80
    ),
    "mr_detr_dino": lambda: Case(
        published.mr_detr(denoising=True), 688, 54_208_608, "Mr. DETR, two-stage, denoising", "mr_detr_dino_r50_12ep",
        classes=80,
    ),
    "deformable": lambda: Case(
        published.official_deformable(refine=False), 561, 40_069_665, ORIGINAL + "single stage",
        "deformable_detr_r50_50ep", shared=True,
    ),
    "deformable_refine": lambda: Case(
        published.official_deformable(), 597, 40_849_660, ORIGINAL + "single stage with box refinement",
        "deformable_detr_refine_r50_50ep",
    ),
    "deformable_two_stage": lambda: Case(
        published.official_deformable(two_stage=True), 630, 41_181_529, ORIGINAL + "two-stage",
        "deformable_detr_two_stage_r50_50ep",
    ),
    "sparse_rcnn": lambda: Case(
        published.sparse_rcnn(), 523, 106_237_768, "the official Sparse R-CNN", "sparse_rcnn_100_r50_36ep", classes=80
    ),
    "adamixer": lambda: Case(  # its batch norms, 53,120 parameters there, are taken for buffers
        published.adamixer(), 475, 134_790_904 - 53_120, "the official AdaMixer", "adamixer_100_r50_12ep", dropped=1,
        classes=80,
    ),
    "asag_a": lambda: Case(  # both counted from the official code, whose files were not at hand
        published.asag(published.asag_a_copy), 498, 112_402_556, "the official ASAG, ASAG-A", "asag_a_300_r50_36ep",
        classes=80,
    ),
    "asag_s": lambda: Case(
        published.asag(published.asag_s_copy), 510, 91_303_004, "the official ASAG, ASAG-S", "asag_s_300_r50_36ep",
        classes=80,
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    return known(request.param)


@cache
def known(name):
    return CASES[name]()


def our_shapes(case):
    if "swin" in case.config:
        pytest.importorskip("timm", reason="timm is not installed")
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{case.config}.yaml"))
    cfg.MODEL.DETR.merge_from_list(list(case.options))
    cfg.MODEL.DETR.CLASS_NAMES = [str(i) for i in range(case.classes)]
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get("QueryDetector")(cfg)
    counters = "num_batches_tracked"  # which frozen statistics do not use
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: shape for name, shape in shapes.items() if not name.endswith(counters)}


def test_the_list_of_names_is_as_long_and_large_as_the_published_model(case):
    assert len(case.shapes) == case.keys
    assert published.num_parameters(case.shapes, case.shared) == case.parameters


def test_names_and_shapes_become_those_of_our_model(case):
    conversion = convert_if_foreign(published.stored(case.shapes, case.shared))
    assert conversion.layout == case.layout
    assert {name: tuple(tensor.shape) for name, tensor in conversion.weights.items()} == our_shapes(case)


def test_every_tensor_is_used_or_named_as_left_out(case):
    stored = published.stored(case.shapes, case.shared)
    conversion = convert_if_foreign(stored)
    assert len(conversion.dropped) == case.dropped
    kept = {first(tensor) for name, tensor in stored.items() if name not in conversion.dropped}
    assert {first(tensor) for tensor in conversion.weights.values()} == kept


def first(tensor):
    return float(tensor[(0,) * tensor.dim()])
