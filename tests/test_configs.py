# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from paq_detr import add_paq_detr_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_its_model(path):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DETR.CLASS_NAMES = ["cat", "dog"]
    cfg.DATASETS.TEST = ()  # or these names would become a real dataset's
    with torch.device("meta"):  # shapes without numbers
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    D = cfg.MODEL.DETR
    assert list(model.routes) == ["main", *D.ROUTES]
    is_patterns = type(model.sources["main"].content).__name__ == "PatternContent"
    assert is_patterns == (D.QUERIES.CONTENT == "patterns")
    one_to_many = type(model.routes["main"].objectives[0].assigner).__name__ == "QualityCountAssigner"
    assert one_to_many == (D.ASSIGNER.INTERMEDIATE == "quality_count")
    assert cfg.TEST.DETECTIONS_PER_IMAGE <= 2 * D.QUERIES.NUM


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("my_dataset", "COCO_JSON"),
        ("my_dataset_small", "COCO_JSON"),
        ("my_crowd", "CROWDHUMAN"),
        ("my_crowd_small", "CROWDHUMAN"),
    ],
)
def test_the_templates_train_and_test_on_the_two_datasets_that_they_ask_for(name, key):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.merge_from_file(str(next(p for p in CONFIGS if p.stem == name)))
    assert [entry[0] for entry in cfg.DATASETS[key]] == [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    assert cfg.OUTPUT_DIR == f"output/{name.removesuffix('_small')}"


def parameters(name):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.merge_from_file(str(next(p for p in CONFIGS if p.stem == name)))
    cfg.MODEL.DETR.CLASS_NAMES = [str(i) for i in range(91)]
    cfg.DATASETS.TEST = ()
    with torch.device("meta"):
        return sum(p.numel() for p in META_ARCH_REGISTRY.get("QueryDetector")(cfg).parameters())


def test_deformable_detr_has_its_published_size():
    """The paper's table says 40 M for the three models; FrozenBN's statistics are no parameters."""
    for name in ("deformable_detr_r50_50ep", "deformable_detr_refine_r50_50ep", "deformable_detr_two_stage_r50_50ep"):
        assert 39.5e6 < parameters(name) < 41.5e6
