# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What a handful of configs computed when training_record.json was written, they compute still."""

import json
from pathlib import Path

import pytest
from record_training import ROOT, differences, record

RECORD = json.loads((Path(__file__).parent / "training_record.json").read_text())


def numbers(values):
    return [float.fromhex(value) for value in values]


# paq_dh.yaml holds the parts of both.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("crowd/paq.yaml", "crowd/dh.yaml") else name
        for name in RECORD
    ],
)
def test_losses_and_detections_are_those_of_the_record(name):
    """Up to what another machine rounds otherwise; a change that means to change them writes the record anew."""
    before, after = RECORD[name], record(ROOT / "configs" / name)
    assert after["parameters"] == before["parameters"]
    for old, new in zip(before["losses"], after["losses"], strict=True):
        assert new.keys() == old.keys()
        assert numbers(new.values()) == pytest.approx(numbers(old.values()), rel=2e-3, abs=1e-5)
    assert numbers(after["scores"]) == pytest.approx(numbers(before["scores"]), rel=2e-3)


def test_differences_are_told_number_by_number():
    before = {"a.yaml": {"losses": [{"x": (1.5).hex()}], "classes": [1, 2]}}
    assert differences(before, before) == []
    after = {"a.yaml": {"losses": [{"x": (1.25).hex()}], "classes": [1, 3]}}
    assert differences(before, after) == ["/a.yaml/classes[1]: 2 -> 3", "/a.yaml/losses[0]/x: 1.5 -> 1.25"]
