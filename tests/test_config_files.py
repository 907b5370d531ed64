# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

import paq_detr
from paq_detr import config_files
from paq_detr.config_files import config_file, config_names, configs
from paq_detr.errors import UserError

FOLDER = Path(__file__).parents[1] / "configs"


def test_the_names_are_the_files_below_configs():
    assert config_names() == sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
    assert Path(configs()) == FOLDER and Path(paq_detr.configs("crowd/paq_dh")) == FOLDER / "crowd" / "paq_dh.yaml"


def test_an_installed_package_has_them_inside(tmp_path, monkeypatch):
    (tmp_path / "paq_detr" / "_configs" / "mine").mkdir(parents=True)
    (tmp_path / "paq_detr" / "_configs" / "mine" / "own.yaml").touch()
    monkeypatch.setattr(config_files, "_PACKAGE", tmp_path / "paq_detr")
    assert configs("mine/own") == str(tmp_path / "paq_detr" / "_configs" / "mine" / "own.yaml")


@pytest.mark.parametrize(
    ("name", "meant"), [("crowd/paq_hd", "crowd/paq_dh"), ("paq_dh", "bccd/paq_dh or crowd/paq_dh"),
                        ("configs/demo.yaml", "demo"), ("nothing_like_it", None)],
)  # fmt: skip
def test_an_unknown_name_is_one_sentence_with_what_was_meant(name, meant):
    hint = f" \\(did you mean {meant}, which comes with the package\\?\\)" if meant else ""
    with pytest.raises(UserError, match=f"^There is no config {name}{hint}.$"):
        configs(name)


def test_a_file_of_that_name_goes_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file("demo") == configs("demo")
    Path("demo").touch()
    assert config_file("demo") == "demo"
    assert config_file("none.yaml") == "none.yaml"


def test_configs_are_loaded_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"DATASETS.SYNTHETIC_CROWD.NUM_TRAIN": 2, "DATASETS.SYNTHETIC_CROWD.NUM_VAL": 1}
    assert paq_detr.load_config("demo", small).SOLVER.MAX_ITER == 1000
    with pytest.raises(UserError, match="config file crowd/paq_hd.yaml does not exist .did you mean crowd/paq_dh"):
        paq_detr.load_config("crowd/paq_hd.yaml")
