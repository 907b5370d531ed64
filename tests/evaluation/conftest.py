# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..figures import figures  # noqa: F401  (a fixture)
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
