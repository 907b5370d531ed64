# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest
import torch

# The tests' tensors are tiny: more threads only get into each other's way, here and in the programs that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="torch finds no CUDA device here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def data_folder(name: str) -> Path:
    """A folder of images and COCO json (train.json, val.json, images) that the project does not hold, where it is at
    hand: PAQ_DETR_NAME, or NAME in the data beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / name
    folder = Path(os.environ.get(f"PAQ_DETR_{name.upper()}") or beside)
    if "CI" in os.environ:
        pytest.skip("needs data that the project does not hold")
    if not folder.is_dir():
        pytest.skip(f"no {name} in {folder}; PAQ_DETR_{name.upper()} names its folder")
    return folder


@pytest.fixture(scope="session")
def bccd():
    """Blood cells."""
    return data_folder("bccd")
