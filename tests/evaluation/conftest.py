# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import itertools
import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from paq_detr.evaluation.crowdhuman import evaluate_files

from .scenes import dataset_dicts

_numbers = itertools.count()


@pytest.fixture
def register_dataset():
    """Register a dataset from ``[(image_id, [(class, xyxy, iscrowd), ...]), ...]`` for one test; gives its name."""
    names = []

    def register(images, class_names=("person",), **metadata):
        name = f"evaluation_test_{next(_numbers)}"
        names.append(name)
        DatasetCatalog.register(name, lambda: dataset_dicts(images))
        MetadataCatalog.get(name).set(thing_classes=list(class_names), **metadata)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def evaluate(tmp_path):
    """Write odgt records and detections to files and evaluate them in one process."""

    def run(annotations, detections, **options):
        gt, dt = tmp_path / "gt.odgt", tmp_path / "dt.json"
        gt.write_text("".join(json.dumps(record) + "\n" for record in annotations))
        lines = isinstance(detections, list) and (not detections or "ID" in detections[0])
        dt.write_text("".join(json.dumps(r) + "\n" for r in detections) if lines else json.dumps(detections))
        return evaluate_files(str(gt), str(dt), **{"workers": 1, **options})

    return run
