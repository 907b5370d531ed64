# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json
import os
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog
from query_count import Watch, halves, source_of_test, table

from paq_detr.data import register_coco_json, register_datasets
from paq_detr.errors import UserError

from ..data.other_formats import WRITERS


def test_images_are_parted_by_their_number_of_objects(tmp_path):
    counts = {1: 3, 2: 0, 3: 7, 4: 1, 5: 4}
    crowd = [{"image_id": 2, "iscrowd": 1}] * 9  # regions are no objects
    annotations = [{"image_id": image} for image, count in counts.items() for _ in range(count)] + crowd
    content = {"images": [{"id": image} for image in counts], "annotations": annotations, "categories": ["x"]}
    assert halves(content, tmp_path) == {"sparse": 1, "dense": 7}
    for name, ids in (("sparse", [2, 4]), ("dense", [1, 5, 3])):
        part = json.loads((tmp_path / f"{name}.json").read_text())
        assert [image["id"] for image in part["images"]] == ids and part["categories"] == ["x"]
        assert part["annotations"] == [a for a in annotations if a["image_id"] in ids]


def test_a_dataset_of_another_format_is_named(cfg):
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("synthetic_crowd_val",)
    register_datasets(cfg)
    with pytest.raises(UserError, match="DATASETS.TEST synthetic_crowd_val is none of DATASETS.COCO_JSON, nor of "):
        source_of_test(cfg)


@pytest.mark.parametrize("form", ["coco", "yolo", "voc", "csv"])
def test_a_dataset_of_any_format_is_parted(content, save, cfg, tmp_path, form):
    _, pictures = save(content)
    cfg.DATASETS.FILES = [{"name": "val", **WRITERS[form](content, pictures, tmp_path / "other")}]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("val",)
    register_datasets(cfg)
    source = source_of_test(cfg)
    assert halves(source.content().coco, tmp_path) == {"sparse": 0, "dense": 2}
    for name in ("sparse", "dense"):
        register_coco_json(name, str(tmp_path / f"{name}.json"), source.image_root)
    (record,) = DatasetCatalog.get("dense")
    assert os.path.isfile(record["file_name"]) and len(record["annotations"]) >= 2


def test_the_decoder_is_watched_image_by_image():
    decoder = torch.nn.Linear(4, 2)
    decoder.forward = lambda queries, memory: []
    watch = Watch(decoder)
    for count in (5, 3):
        decoder(SimpleNamespace(reference=torch.zeros(1, count, 4)), None)
    assert watch.slots == [5, 3] and len(watch.seconds) == 2 and min(watch.seconds) >= 0


def test_the_table_has_a_row_for_every_setting_and_half():
    row = {"AP": 44.06, "AR": 60.0, "queries": 12.5, "decoder ms": 7.0}
    lines = table({"0:1:1": {"sparse": row, "dense": {**row, "AP": 1.0}}}).splitlines()
    assert lines[0] == "| keep | images | AP | AR | queries | decoder ms |"
    assert lines[2:] == [
        "| 0:1:1 | sparse | 44.1 | 60.0 | 12.5 | 7.0 |",
        "| 0:1:1 | dense | 1.0 | 60.0 | 12.5 | 7.0 |",
    ]
