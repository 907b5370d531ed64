# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("compare", Path(__file__).parents[1] / "tools" / "compare.py")
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)


def test_the_table_gives_mean_and_sample_deviation_of_what_was_measured():
    runs = {seed: {"bbox/AP": 50.0 + seed, "seconds": 10.0} for seed in (1, 2, 3)}
    table = compare.table({"baseline": runs}).splitlines()
    assert table[0] == "| config | bbox/AP | seconds |"
    assert table[2] == "| baseline | 52.00 ± 1.00 | 10.00 ± 0.00 |"


def test_a_figure_that_some_seeds_lack_is_averaged_over_the_others_and_says_so():
    runs = {1: {"crowd/MR": 10.0, "crowd/AP": float("nan")}, 2: {"crowd/MR": float("nan")}, 3: {"crowd/MR": 30.0}}
    assert compare.table({"dh": runs}).splitlines()[2] == "| dh | - (0 of 3 seeds) | 20.00 ± 14.14 (2 of 3 seeds) |"


def test_a_finished_run_is_read_and_not_repeated(tmp_path, monkeypatch):
    (tmp_path / "metrics.json").write_text('{"bbox/AP": 1.0}\n{"loss": 2.0}\n{"bbox/AP": 3.0, "crowd/MR": 40.0}\n')
    (tmp_path / "seconds.txt").write_text("12\n")
    (tmp_path / "recipe.txt").write_text("no_such_config.yaml 1")
    monkeypatch.setattr(compare, "count_parameters", {tmp_path / "config.yaml": 4.5}.get)
    found = compare.train(Path("no_such_config.yaml"), 1, tmp_path, 1, [])
    assert found == {"bbox/AP": 3.0, "crowd/MR": 40.0, "parameters": 4.5, "seconds": 12.0}
    with pytest.raises(SystemExit, match="holds a run of no_such_config.yaml 1, not of"):
        compare.train(Path("no_such_config.yaml"), 1, tmp_path, 1, ["SOLVER.MAX_ITER", "6"])
