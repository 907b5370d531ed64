# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json
from argparse import Namespace
from pathlib import Path

import compare
import pytest


def test_the_table_gives_mean_and_sample_deviation_of_what_was_measured():
    runs = {seed: {"bbox/AP": 50.0 + seed, "seconds": 10.0} for seed in (1, 2, 3)}
    table = compare.table({"baseline": runs}).splitlines()
    assert table[0] == "| config | bbox/AP | seconds |"
    assert table[2] == "| baseline | 52.00 ± 1.00 | 10.00 ± 0.00 |"


def test_a_figure_that_some_seeds_lack_is_averaged_over_the_others_and_says_so():
    runs = {1: {"crowd/MR": 10.0, "crowd/AP": None}, 2: {"crowd/MR": None}, 3: {"crowd/MR": 30.0}}
    assert compare.table({"dh": runs}).splitlines()[2] == "| dh | - (0 of 3 seeds) | 20.00 ± 14.14 (2 of 3 seeds) |"


def test_what_is_not_finite_in_metrics_json_is_null_in_comparison_json(tmp_path, monkeypatch):
    config = tmp_path / "dh.yaml"
    config.touch()
    monkeypatch.setattr(compare, "count_parameters", lambda path: 4.5)
    for seed, value in (("1", "null"), ("2", "NaN"), ("3", "30.0")):  # NaN: as Detectron2 writes it
        folder = tmp_path / f"dh_seed{seed}"
        folder.mkdir()
        (folder / "metrics.json").write_text(f'{{"bbox/AP": 1.0, "crowd/MR": {value}}}\n')
        (folder / "seconds.txt").write_text("12\n")
        (folder / "recipe.txt").write_text(f"{config} {seed}")
    monkeypatch.setattr("sys.argv", ["compare", "--configs", str(config), "--output", str(tmp_path)])
    compare.main()
    text = (tmp_path / "comparison.json").read_text()
    assert "NaN" not in text
    assert [run["crowd/MR"] for run in json.loads(text)["results"]["dh"].values()] == [None, None, 30.0]
    assert "30.00 (1 of 3 seeds)" in (tmp_path / "comparison.md").read_text()


@pytest.mark.parametrize("set_by_user, expected", [(None, "2"), ("5", "5")])
def test_threads_are_shared_among_the_runs_unless_the_user_says(tmp_path, monkeypatch, set_by_user, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    seen = []

    def run(command, env, **options):
        seen.append(env["OMP_NUM_THREADS"])
        return Namespace(returncode=3)

    monkeypatch.setattr(compare.subprocess, "run", run)
    with pytest.raises(SystemExit, match="ended with 3"):
        compare.train(Path("any.yaml"), 1, tmp_path / "run", 2, [])
    assert seen == [expected]


def test_no_jobs_at_all_are_refused(tmp_path, monkeypatch, capsys):
    config = tmp_path / "dh.yaml"
    config.touch()
    options = ["--configs", str(config), "--output", str(tmp_path), "--jobs", "0"]
    monkeypatch.setattr("sys.argv", ["compare", *options])
    with pytest.raises(SystemExit) as caught:
        compare.main()
    assert caught.value.code == 2 and "--jobs is 0, must be at least 1" in capsys.readouterr().err


def test_a_finished_run_is_read_and_not_repeated(tmp_path, monkeypatch):
    (tmp_path / "metrics.json").write_text('{"bbox/AP": 1.0}\n{"loss": 2.0}\n{"bbox/AP": 3.0, "crowd/MR": 40.0}\n')
    (tmp_path / "seconds.txt").write_text("12\n")
    (tmp_path / "recipe.txt").write_text("no_such_config.yaml 1")
    monkeypatch.setattr(compare, "count_parameters", {tmp_path / "config.yaml": 4.5}.get)
    found = compare.train(Path("no_such_config.yaml"), 1, tmp_path, 1, [])
    assert found == {"bbox/AP": 3.0, "crowd/MR": 40.0, "parameters": 4.5, "seconds": 12.0}
    with pytest.raises(SystemExit, match="holds a run of no_such_config.yaml 1, not of"):
        compare.train(Path("no_such_config.yaml"), 1, tmp_path, 1, ["SOLVER.MAX_ITER", "6"])


def test_figures_of_several_test_sets_stand_side_by_side(tmp_path, monkeypatch):
    (tmp_path / "metrics.json").write_text(
        '{"b/crowd/MR": 4.0, "b/bbox/AP": 2.0, "a/bbox/AP": 1.0, "a/bbox/APs": 9.0}\n'
    )
    (tmp_path / "seconds.txt").write_text("12\n")
    (tmp_path / "recipe.txt").write_text("c.yaml 1")
    monkeypatch.setattr(compare, "count_parameters", lambda path: 4.5)
    found = compare.train(Path("c.yaml"), 1, tmp_path, 1, [])
    assert compare.table({"c": {1: found}}).splitlines()[0] == (
        "| config | parameters | seconds | a/bbox/AP | b/bbox/AP | b/crowd/MR |"
    )
