# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from density_stress import draw, duplicates, table  # noqa: E402


def row(persons, per_person):
    return {"persons": persons, "Recall": 0.5, "duplicates": per_person}


def test_duplicates_are_averaged_over_objects_not_over_classes(tmp_path):
    classes = {
        "person": {"by_person_crowdedness": {"0.0": row(10, 0.1), "0.5": row(2, 1.5)}},
        "cone": {"by_person_crowdedness": {"0.0": row(30, 0.3)}},
        "crate": {"by_person_crowdedness": {}},
    }
    (tmp_path / "crowd_metrics.json").write_text(json.dumps({"classes": classes}))
    found = duplicates(tmp_path / "crowd_metrics.json")
    assert found == pytest.approx({"": (1 + 3 + 9) / 42, "0.0": 10 / 40, "0.5": 1.5})


def test_the_table_and_the_picture_have_every_run_and_density(tmp_path):
    metrics = {"AP": 70.0, "MR": 30.0, "JI": 60.0, "Recall": 90.0, "duplicates": 0.25}
    of_run = {4.0: {**metrics, "duplicates_by_crowdedness": {"0.0": 0.1, "0.6+": 0.9}}}
    of_run[16.0] = {**of_run[4.0], "MR": float("nan")}
    results = {"baseline": of_run, "dh": of_run}
    assert len(table(results).splitlines()) == 2 + 4
    assert "| dh | 16 | 70.00 | nan | 60.00 | 90.00 | 0.250 |" in table(results)
    draw(tmp_path / "density.png", results)
    assert plt.imread(tmp_path / "density.png").std() > 0
