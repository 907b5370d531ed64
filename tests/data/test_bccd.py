# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Real images and annotations (BCCD, blood cells), where they are at hand: see the environment variable below."""

import logging
import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from paq_detr.data import DetrDatasetMapper, register_coco_json, register_datasets

BCCD = Path(os.environ.get("PAQ_DETR_BCCD") or Path(__file__).resolve().parents[3] / "shared" / "data" / "bccd")

pytestmark = [
    pytest.mark.skipif("CI" in os.environ, reason="needs data that the project does not hold"),
    pytest.mark.skipif(not BCCD.is_dir(), reason=f"no BCCD in {BCCD}; PAQ_DETR_BCCD names its folder"),
]


def test_the_raw_annotations_load_with_one_warning_of_one_dropped_box(caplog):
    register_coco_json("bccd_raw", str(BCCD / "train_raw.json"), str(BCCD / "images"))
    records = DatasetCatalog.get("bccd_raw")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "dropped 1 of 2805 boxes" in warnings[0] and "has no area" in warnings[0]
    assert len(records) == 205
    assert sum(len(record["annotations"]) for record in records) == 2804
    assert MetadataCatalog.get("bccd_raw").thing_classes == ["RBC", "WBC", "Platelets"]


def test_real_images_map_with_the_crop(cfg):
    cfg.DATASETS.COCO_JSON = [["bccd", str(BCCD / "val.json"), str(BCCD / "images")]]
    cfg.DATASETS.TRAIN = ("bccd",)
    cfg.INPUT.CROP.ENABLED = True
    register_datasets(cfg)
    mapper = DetrDatasetMapper(cfg, True)
    for record in DatasetCatalog.get("bccd")[:8]:
        result = mapper(record)
        height, width = result["image"].shape[1:]
        boxes = result["instances"].gt_boxes.tensor
        assert (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all() and (boxes >= 0).all()
