# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest
import torch

# The tests' tensors are tiny: more threads only get into each other's way.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="torch finds no CUDA device here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def bccd():
    """The folder of the BCCD data (blood cells; train.json, val.json, images), where it is at hand."""
    folder = Path(os.environ.get("PAQ_DETR_BCCD") or Path(__file__).resolve().parents[2] / "shared" / "data" / "bccd")
    if "CI" in os.environ:
        pytest.skip("needs data that the project does not hold")
    if not folder.is_dir():
        pytest.skip(f"no BCCD in {folder}; PAQ_DETR_BCCD names its folder")
    return folder
