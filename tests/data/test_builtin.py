# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from paq_detr.data import read_image, register_datasets


def register_cells(cfg, content, save, key="TRAIN"):
    cfg.DATASETS.COCO_JSON = [["cells", *save(content)]]
    cfg.DATASETS[key] = ("cells",)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_class_names_come_from_the_training_dataset(cfg, content, save):
    register_cells(cfg, content, save)
    register_datasets(cfg)
    assert cfg.MODEL.DETR.CLASS_NAMES == ["dust", "fibre", "cell"]


def test_an_unknown_dataset_is_told_where_datasets_are_registered(cfg):
    cfg.DATASETS.TRAIN = ("nowhere",)
    text = r"'nowhere', which is not registered \(DATASETS.FILES registers more\)$"
    with pytest.raises(ValueError, match=text):
        register_datasets(cfg)


def test_an_evaluation_reads_its_own_dataset_alone(cfg, content, save):
    register_cells(cfg, content, save, "TEST")
    cfg.DATASETS.COCO_JSON.append(["gone", "gone.json", "gone"])
    cfg.DATASETS.TRAIN = ("gone", "never registered")
    register_datasets(cfg, test_only=True)
    assert cfg.MODEL.DETR.CLASS_NAMES == ["dust", "fibre", "cell"]


def test_a_frozen_cfg_is_filled_and_stays_frozen(cfg):
    cfg.freeze()
    register_datasets(cfg)
    assert cfg.MODEL.DETR.CLASS_NAMES == ["person", "balloon", "crate", "cone"]
    assert cfg.is_frozen()


def test_a_cfg_without_datasets_is_left_alone(cfg):
    cfg.DATASETS.TRAIN = ()
    register_datasets(cfg)
    assert cfg.MODEL.DETR.CLASS_NAMES == []


def test_other_classes_in_the_test_dataset_are_an_error_that_names_both(cfg, content, save):
    register_cells(cfg, content, save, "TEST")
    with pytest.raises(ValueError, match=r"'cells', 3 \(dust, .*not those of dataset 'synthetic_crowd_train', 4 \(per"):
        register_datasets(cfg)


def test_given_class_names_must_be_those_of_the_dataset(cfg):
    cfg.MODEL.DETR.CLASS_NAMES = ["person"]
    with pytest.raises(ValueError, match=r"'synthetic_crowd_train', .* not those of MODEL.DETR.CLASS_NAMES, 1"):
        register_datasets(cfg)


def test_an_unknown_dataset_is_named_with_its_neighbours(cfg):
    cfg.DATASETS.TEST = ("synthetic_crowd_vall",)
    with pytest.raises(
        ValueError, match="DATASETS.TEST names the dataset 'synthetic_crowd_vall', .*'synthetic_crowd_val'"
    ):
        register_datasets(cfg)


def test_a_wrong_coco_json_entry_is_shown(cfg):
    cfg.DATASETS.COCO_JSON = [["cells", "cells.json"]]
    with pytest.raises(
        ValueError, match=r"\[name, annotation json, image folder\] entries, got \['cells', 'cells.json'\]"
    ):
        register_datasets(cfg)


def test_registering_twice_is_fine(cfg, content, save):
    register_cells(cfg, content, save)
    register_datasets(cfg)
    register_datasets(cfg)
    assert len(DatasetCatalog.get("cells")) == 2


def test_other_synthetic_parameters_replace_the_earlier_ones(cfg):
    register_datasets(cfg)
    assert len(DatasetCatalog.get("synthetic_crowd_val")) == 4
    cfg.DATASETS.SYNTHETIC_CROWD.NUM_VAL = 2
    cfg.DATASETS.SYNTHETIC_CROWD.HEIGHT = 64
    register_datasets(cfg)
    records = DatasetCatalog.get("synthetic_crowd_val")
    assert [record["height"] for record in records] == [64, 64]
    assert read_image(records[0]["file_name"], "RGB").shape == (64, 208, 3)
    assert MetadataCatalog.get("synthetic_crowd_val").thing_classes == ["person", "balloon", "crate", "cone"]


def inside(box_xywh, crowd):
    """The part of a box that lies in the image, as COCO's boxes do."""
    x, y, w, h = box_xywh
    left, top = max(x, 0.0), max(y, 0.0)
    return [left, top, min(x + w, crowd.WIDTH) - left, min(y + h, crowd.HEIGHT) - top]


def test_the_box_key_chooses_full_or_visible_boxes(cfg):
    for kind in ("full", "visible"):
        cfg.DATASETS.SYNTHETIC_CROWD.BOX = kind
        register_datasets(cfg)
        objects = [a for r in DatasetCatalog.get("synthetic_crowd_train") for a in r["annotations"] if not a["iscrowd"]]
        assert all(item["bbox"] == inside(item[f"{kind}_bbox"], cfg.DATASETS.SYNTHETIC_CROWD) for item in objects)
    cfg.DATASETS.SYNTHETIC_CROWD.BOX = "head"
    with pytest.raises(ValueError, match='SYNTHETIC_CROWD.BOX is "head", must be one of full, visible'):
        register_datasets(cfg)


def test_ignore_regions_are_crowd_annotations(cfg):
    cfg.DATASETS.SYNTHETIC_CROWD.IGNORE = 1.0
    register_datasets(cfg)
    for record in DatasetCatalog.get("synthetic_crowd_train"):
        assert sum(annotation["iscrowd"] for annotation in record["annotations"]) == 1


def test_the_dicts_can_be_changed_without_harm(cfg):
    register_datasets(cfg)
    DatasetCatalog.get("synthetic_crowd_train")[0]["annotations"].append("rubbish")
    assert "rubbish" not in DatasetCatalog.get("synthetic_crowd_train")[0]["annotations"]


def test_more_objects_than_queries_or_detections_are_one_warning_each(cfg, content, save, caplog):
    register_cells(cfg, content, save)
    cfg.MODEL.DETR.QUERIES.NUM = 1
    cfg.TEST.DETECTIONS_PER_IMAGE = 1
    register_datasets(cfg)
    text = "1 of 2 images of cells hold more objects than {} = 1; the largest count is 2, the 99th percentile 1"
    assert warnings(caplog) == [text.format(key) for key in ("MODEL.DETR.QUERIES.NUM", "TEST.DETECTIONS_PER_IMAGE")]


@pytest.mark.parametrize(
    "splits, num_test, keys",
    [
        (("TRAIN",), 0, ["NUM"]),
        (("TEST",), 0, ["NUM"]),
        (("TRAIN",), 1, ["NUM"]),
        (("TEST",), 1, ["NUM_TEST"]),
        (("TEST",), 5, []),
        (("TRAIN", "TEST"), 1, ["NUM", "NUM_TEST"]),
    ],
)
def test_an_evaluations_own_number_of_queries_is_held_against_its_own_images(
    cfg, content, save, caplog, splits, num_test, keys
):
    register_cells(cfg, content, save)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((("cells",) if split in splits else ()) for split in ("TRAIN", "TEST"))
    cfg.MODEL.DETR.QUERIES.NUM, cfg.MODEL.DETR.QUERIES.NUM_TEST = 1, num_test
    register_datasets(cfg)
    said = [text.split("than MODEL.DETR.QUERIES.")[1].split(" ")[0] for text in warnings(caplog)]
    assert said == keys


def test_a_wrong_name_is_held_against_the_configs_own_datasets_first(cfg, content, save):
    register_cells(cfg, content, save)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("cell",)
    with pytest.raises(ValueError, match=r"DATASETS.TEST names the dataset 'cell', .*did you mean 'cells'"):
        register_datasets(cfg, test_only=True)  # which does not read it


def test_ignore_regions_do_not_count_as_objects(cfg, content, save, caplog):
    register_cells(cfg, content, save)
    cfg.MODEL.DETR.QUERIES.NUM = cfg.TEST.DETECTIONS_PER_IMAGE = 2  # the image holds two objects and one region
    register_datasets(cfg)
    assert warnings(caplog) == []


def test_the_percentile_is_that_of_the_counts(cfg, caplog):
    cfg.MODEL.DETR.QUERIES.NUM = 5
    register_datasets(cfg)
    counts = DatasetCatalog["synthetic_crowd_train"].objects_per_image
    assert (
        f"largest count is {counts.max()}, the 99th percentile {int(np.percentile(counts, 99))}" in warnings(caplog)[0]
    )
