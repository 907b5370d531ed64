# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import pytest

from .assemblies import make_image


@pytest.fixture
def two_images():
    """Unequal sizes, neither square, objects of all classes."""
    return [
        make_image(64, 96, [[4, 6, 40, 50], [30, 8, 90, 60]], [0, 2], seed=1),
        make_image(50, 120, [[10, 10, 100, 40]], [1], seed=2),
    ]
