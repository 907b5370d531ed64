# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
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
