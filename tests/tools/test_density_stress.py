# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from density_stress import METRICS, draw, duplicates, table

from ..figures import curves


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


def results():
    """Two runs at two densities, every figure another one; the second run has no MR-2 at the higher density."""
    runs = {}
    for number, run in enumerate(("baseline", "dh")):
        runs[run] = {
            density: {
                **{name: 10.0 * column + number + density / 100 for column, name in enumerate(METRICS)},
                "duplicates_by_crowdedness": {"0.0": 0.1 + number, "0.6+": density},
            }
            for density in (4.0, 16.0)
        }
    runs["dh"][16.0]["MR"] = float("nan")
    return runs


def test_the_table_has_every_run_and_density():
    lines = table(results()).splitlines()
    assert len(lines) == 2 + 4
    assert lines[0] == "| run | density | AP | MR | JI | Recall | duplicates |"
    assert lines[2] == "| baseline | 4 | 0.04 | 10.04 | 20.04 | 30.04 | 40.040 |"
    assert lines[5] == "| dh | 16 | 1.16 | nan | 21.16 | 31.16 | 41.160 |"


def test_the_picture_shows_each_figure_of_every_run(tmp_path, figures):
    runs = results()
    draw(tmp_path / "density.png", runs)
    *panels, last = figures["density.png"].axes
    assert [panel.get_title() for panel in panels] == [
        "AP (%), higher is better",
        "MR-2 (%), lower is better",
        "JI (%), higher is better",
        "recall (%), higher is better",
        "duplicates per object, lower is better",
    ]
    for panel, name in zip(panels, METRICS, strict=True):
        for run, (densities, values) in curves(panel).items():
            assert densities == [4, 16]
            assert values == pytest.approx([runs[run][density][name] for density in densities], nan_ok=True)
        assert set(curves(panel)) == {"baseline", "dh"}
    assert {panel.get_ylim() for panel in panels[:4]} == {(0, 100)} and panels[4].get_ylim() == last.get_ylim()
    assert last.get_title() == "duplicates at density 16, lower is better"
    assert curves(last) == {"baseline": ([0, 0.6], [0.1, 16]), "dh": ([0, 0.6], [1.1, 16])}


def test_seeds_of_a_config_are_a_mean_in_a_band(tmp_path, figures):
    baseline, other = results().values()
    other[16.0]["MR"] = 20.0
    draw(tmp_path / "seeds.png", {"dh_seed1": baseline, "dh_seed2": other})
    panel = figures["seeds.png"].axes[0]
    assert curves(panel) == {"dh": ([4, 16], [pytest.approx(0.54), pytest.approx(0.66)])}
    band = panel.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((0.04, 1.16))
    assert "2 seeds" in figures["seeds.png"].get_supxlabel()
