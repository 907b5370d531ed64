# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The tests of data/test_fuzz.py with more than 10,000 inputs in all."""

import pytest

from ..data import test_fuzz
from ..data.test_fuzz import *  # noqa: F403

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def many(monkeypatch):
    monkeypatch.setattr(test_fuzz, "INPUTS", 750)
