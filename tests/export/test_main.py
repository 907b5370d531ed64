# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The command, from a training's folder to a file that was held against the model."""

import pytest
import torch

from paq_detr.export import main
from paq_detr.export import write as files

from ..modeling.assemblies import DAB, make_cfg, make_model, wake_up


@pytest.fixture
def run(tmp_path):
    cfg = make_cfg({**DAB, "INPUT.MIN_SIZE_TEST": 64})
    (tmp_path / "config.yaml").write_text(cfg.dump())
    model = wake_up(make_model(DAB))
    weights = {"model": model.state_dict(), "class_names": ["cat", "dog", "owl"]}
    torch.save(weights, tmp_path / "model_final.pth")
    return tmp_path


def test_a_run_becomes_a_file(run, capsys):
    assert main([str(run), "--format", "torchscript", "--images", "2"]) == 0
    said = capsys.readouterr().out
    assert (run / "model.pt").is_file() and f"{run / 'model.pt'}: " in said
    assert "64 x 64 (height x width), 3 classes" in said
    assert "on 2 synthetic images" in said and "0 of 72 detections have no partner" in said


def test_a_file_that_finds_other_things_is_refused(run, capsys, monkeypatch):
    def shifted(path, format):
        found = files.open_file(path, format)

        def call(*inputs):
            labels, boxes, scores = found(*inputs)
            return labels, boxes + 1, scores

        return call

    monkeypatch.setattr("paq_detr.export.command.open_file", shifted)
    arguments = [str(run), "--format", "torchscript", "--size", "32", "64", "--output", str(run / "other.pt")]
    assert main([*arguments, "--images", "1"]) == 2
    assert "finds other things than the model: 36 of 36 detections" in capsys.readouterr().err
    assert main([*arguments, "--images", "1", "--overwrite", "--tolerance", "1.5", "0.001"]) == 0


@pytest.mark.parametrize(
    "there, output, sentence",
    [
        ("other.pt", "other.pt", "other.pt exists; name another file by --output, or add --overwrite."),
        ("model.bin", "model.xml", "model.bin exists; name another file"),
        ("folder/x", "folder", "folder is a folder, must be a file."),
    ],
)
def test_nothing_is_replaced_unasked(run, capsys, there, output, sentence):
    (run / there).parent.mkdir(exist_ok=True)
    (run / there).write_text("mine")
    assert main([str(run), "--format", "torchscript", "--output", str(run / output)]) == 2
    assert sentence in capsys.readouterr().err
    assert (run / there).read_text() == "mine"


@pytest.mark.parametrize(
    "change, arguments, sentence",
    [
        (lambda run: (run / "config.yaml").unlink(), [], "holds no config.yaml"),
        (lambda run: (run / "model_final.pth").unlink(), [], "holds neither model_best.pth nor model_final.pth"),
        (
            None,
            ["--size", "50", "64"],
            "the height 50 is no multiple of 32, the model's coarsest stride; 64 is the next",
        ),
        (None, ["--images", "missing.jpg"], "missing.jpg"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(run, capsys, change, arguments, sentence):
    if change:
        change(run)
    assert main([str(run), "--format", "torchscript", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("paq-detr export: ") and sentence in said and said.count("\n") == 1


def test_a_missing_package_is_named_with_the_command_that_installs_it(run, capsys, monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None if name == "openvino" else object())
    assert main([str(run), "--format", "openvino"]) == 2
    assert "needs openvino: pip install 'paq_detr[export]'" in capsys.readouterr().err
