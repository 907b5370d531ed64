# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs found again: their weights, their config, a device."""

import pytest
import torch

from paq_detr import load_config
from paq_detr.engine import UserError
from paq_detr.engine.run_folder import Run, find_run, settle_device, trained_config


@pytest.fixture
def run(tmp_path):
    for name in ("config.yaml", "model_best.pth", "model_final.pth", "model_0000009.pth"):
        (tmp_path / name).write_text("")
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    return tmp_path


def test_the_best_weights_of_a_folder_count_then_the_final_then_the_last(run):
    for name in ("model_best.pth", "model_final.pth", "model_0000009.pth"):
        assert find_run(run) == Run(str(run), str(run / name), str(run / "config.yaml"))
        (run / name).unlink()


def test_weights_have_the_config_beside_them_or_the_one_that_is_named(run):
    weights = str(run / "model_0000009.pth")
    assert find_run(weights) == Run(str(run), weights, str(run / "config.yaml"))
    assert find_run(weights, "other.yaml").config_file == "other.yaml"
    (run / "config.yaml").unlink()
    assert find_run(weights).config_file == "" and find_run(run, "other.yaml").config_file == "other.yaml"


def only(folder, *names):
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


@pytest.mark.parametrize(
    "kept, path, message",
    [
        ((), "", "is empty: a run is a folder that training wrote"),
        (("model_final.pth",), "", "holds no config.yaml: a run is a folder"),
        (("config.yaml",), "", "holds neither model_best.pth nor model_final.pth: its training has not saved any yet"),
        (("config.yaml", "model_0000009.pth"), "", "nor model_final.pth; name one of model_0000009.pth"),
        (("model_final.pth",), "model_fnal.pth", r"does not exist \(did you mean .*/model_final.pth\?\)"),
        (("config.yaml",), "config.yaml", "is a config: name the folder of the run, or its weights"),
    ],
)
def test_what_is_no_run_is_one_sentence(run, kept, path, message):
    only(run, *kept)
    with pytest.raises(UserError, match=message) as caught:
        find_run(run / path)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_weights_without_any_config_ask_for_one(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="Nothing tells the config of .*a.pth: put its config.yaml beside it, or name"):
        trained_config(find_run(tmp_path / "a.pth"))


@pytest.mark.parametrize("stored, names", [(["cat", "dog"], ["cat", "dog"]), (None, None)])
def test_class_names_that_the_config_lacks_come_with_the_weights(tmp_path, config_file, stored, names):
    content = {"model": {"a": torch.zeros(1)}, **({"class_names": stored} if stored else {})}
    torch.save(content, tmp_path / "a.pth")
    run = find_run(tmp_path / "a.pth", config_file)
    if names:
        assert trained_config(run).MODEL.DETR.CLASS_NAMES == names
    else:
        with pytest.raises(UserError, match="The names of the classes stand neither in .*tiny.yaml nor in .*a.pth"):
            trained_config(run)


def test_a_device_that_is_wanted_and_not_there_is_an_error_and_the_configs_becomes_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert settle_device("cuda", wanted=True) == "cuda" and settle_device("cuda:0", wanted=False) == "cuda:0"
    assert settle_device("cuda:1", wanted=False) == "cpu"
    for name, message in (("cuda:1", "finds no such device here"), ("gpu", "The device is gpu, must be one of torch")):
        with pytest.raises(UserError, match=message):
            settle_device(name, wanted=True)


def test_load_config_is_a_ready_config_of_a_yaml_or_of_a_run(run, config_file, tmp_path):
    cfg = load_config(config_file, {"SOLVER.MAX_ITER": 7, "MODEL.DEVICE": "cpu"})
    assert cfg.MODEL.DETR.CLASS_NAMES[0] == "person" and cfg.SOLVER.MAX_ITER == 7 and not cfg.is_frozen()
    (run / "config.yaml").write_text(cfg.dump())
    again = load_config(run, ["SOLVER.MAX_ITER", 9])
    assert (again.MODEL.WEIGHTS, again.OUTPUT_DIR) == (str(run / "model_best.pth"), str(run))
    assert again.SOLVER.MAX_ITER == 9
