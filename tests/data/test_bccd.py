# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Real images and annotations (BCCD, blood cells), where they are at hand."""

import logging

from detectron2.data import DatasetCatalog, MetadataCatalog

from paq_detr.data import DetrDatasetMapper, register_coco_json, register_datasets


def test_the_raw_annotations_load_with_one_warning_of_one_dropped_box(bccd, caplog):
    register_coco_json("bccd_raw", str(bccd / "train_raw.json"), str(bccd / "images"))
    records = DatasetCatalog.get("bccd_raw")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "dropped 1 of 2805 boxes" in warnings[0] and "has no area" in warnings[0]
    assert len(records) == 205
    assert sum(len(record["annotations"]) for record in records) == 2804
    assert MetadataCatalog.get("bccd_raw").thing_classes == ["RBC", "WBC", "Platelets"]


def test_real_images_map_with_the_crop(bccd, cfg):
    cfg.DATASETS.COCO_JSON = [["bccd", str(bccd / "val.json"), str(bccd / "images")]]
    cfg.DATASETS.TRAIN = ("bccd",)
    cfg.INPUT.CROP.ENABLED = True
    register_datasets(cfg)
    mapper = DetrDatasetMapper(cfg, True)
    for record in DatasetCatalog.get("bccd")[:8]:
        result = mapper(record)
        height, width = result["image"].shape[1:]
        boxes = result["instances"].gt_boxes.tensor
        assert (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all() and (boxes >= 0).all()
