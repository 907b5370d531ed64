# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import copy
import json

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from paq_detr import add_paq_detr_config

from .crowdhuman_scene import HEIGHT, WIDTH

CONTENT = {
    "images": [
        {"id": 5, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 9, "file_name": "b.png", "width": 20, "height": 50},
    ],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 90, "bbox": [1, 2, 10, 12], "iscrowd": 0},
        {"id": 2, "image_id": 5, "category_id": 1, "bbox": [20, 5, 15, 20], "iscrowd": 0},
        {"id": 3, "image_id": 5, "category_id": 7, "bbox": [0, 0, 40, 4], "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "cell"}, {"id": 1, "name": "dust"}, {"id": 7, "name": "fibre"}],
}


@pytest.fixture(autouse=True)
def clean_catalogs():
    """Forget the datasets that a test registered."""
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.pop(name)


@pytest.fixture
def content():
    """A COCO json's content to change at will: class ids {1, 7, 90}, one image without annotations."""
    return copy.deepcopy(CONTENT)


@pytest.fixture
def save(tmp_path):
    """Writes a content and its images; gives the json's path and the image folder."""

    def save(content, name="annotations.json"):
        for entry in content["images"]:
            size = entry.get("height", 30), entry.get("width", 40), 3
            pixels = np.random.RandomState(entry["id"]).randint(0, 256, size).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / entry["file_name"])
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return str(path), str(tmp_path)

    return save


@pytest.fixture
def cfg():
    """A configuration with small synthetic datasets and without test datasets."""
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.DATASETS.SYNTHETIC_CROWD.NUM_TRAIN = 12
    cfg.DATASETS.SYNTHETIC_CROWD.NUM_VAL = 4
    cfg.DATASETS.TRAIN = ("synthetic_crowd_train",)
    cfg.DATASETS.TEST = ()
    return cfg


@pytest.fixture
def write(tmp_path):
    """Writes odgt records and their pictures; gives the path of the odgt and of the picture folder."""

    def write(records, name="annotation.odgt"):
        folder = tmp_path / "Images"
        folder.mkdir(exist_ok=True)
        for record in records:
            Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{record['ID']}.jpg")
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path), str(folder)

    return write
