# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The command paq-detr: what it writes, and that whatever is wrong is one sentence and exit code 2."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from paq_detr import cli

from .conftest import NAMES


@pytest.fixture
def command(capfd):
    """A function from arguments to the exit code, standard output and error of paq-detr, run in this process."""

    def run(*arguments):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    return run


def test_help_lists_the_commands_and_imports_nothing_heavy():
    program = (
        "import os, sys; from paq_detr.cli import main; main([]); print(*{'torch', 'detectron2'} & set(sys.modules)); "
        "assert os.environ['OMP_WAIT_POLICY'] == 'passive'"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    listed = said.split("commands:")[1]
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("  ")] == list(cli._COMMANDS)
    assert listed.splitlines()[-1] == ""


def test_predict_writes_pictures_results_a_table_and_crops(command, run_folder, pictures, tmp_path):
    out = tmp_path / "out"
    kinds = "pictures,json,csv,crops"
    code, said, _ = command("predict", run_folder, pictures, "--threshold", 0, "--output", out, "--save", kinds,
                            "--classes", "dog,guide dog", "--batch", 2)  # fmt: skip
    assert (
        code == 0 and "2 pictures" in said and f"Results are in {out}" in said and "at scores from 0 (as given)" in said
    )
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["a.png", "b.jpg"]
    assert (np.asarray(Image.open(out / "pictures" / "a.png")) != np.asarray(Image.open(pictures / "a.png"))).any()
    images = COCO(out / "images.json")
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in images.imgs.values()] == [
        (1, "a.png", 80, 64),
        (2, "b.jpg", 100, 48),
    ]
    found = images.loadRes(str(out / "predictions.json")).anns.values()
    assert {a["category_id"] for a in found} == {2, 3} and images.cats[3]["name"] == "guide dog"
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found) and rows[0]["file"] == "a.png" and rows[0]["class"] in NAMES
    assert len(list((out / "crops").glob("*/*.jpg"))) == len(found)
    assert {path.name for path in (out / "crops").iterdir()} == {"dog", "guide_dog"}


def test_a_broken_picture_is_counted_and_the_others_are_done(command, run_folder, pictures, tmp_path):
    (pictures / "aa.jpg").write_bytes(b"no picture")
    code, said, err = command("predict", run_folder, pictures, "--output", tmp_path / "out", "--threshold", 0)
    assert code == 1 and "2 pictures" in said
    assert "not read: the image" in err and "paq-detr: 1 of 3 pictures could not be read." in err
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["a.png", "b.jpg"]
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    boxes = np.array([row["bbox"] for row in rows if row["image_id"] == 2])
    assert (boxes[:, 0] + boxes[:, 2]).max() > 80  # those of the wide one


def test_the_default_folder_is_the_next_that_is_free(command, run_folder, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert command("predict", run_folder, pictures / "a.png", "--save", "json")[0] == 0
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["predict", "predict_2"]


@pytest.mark.parametrize("given, told", [((), "0.3 (the default)"), (("--threshold", "0.3"), "0.3 (as given)")])
def test_a_default_threshold_is_not_said_to_be_given(command, run_folder, pictures, tmp_path, given, told):
    _, said, _ = command("predict", run_folder, pictures, "--output", tmp_path / "out", *given)
    assert f"at scores from {told}" in said


def test_auto_says_where_the_threshold_is_from(command, run_folder, pictures, tmp_path):
    best = run_folder / "model_best.pth"
    best.write_bytes((run_folder / "model_final.pth").read_bytes())
    record = {"score_thresholds": {"val": {"threshold": 0.61, "metric": "JI", "value": 0.5}}}
    (run_folder / "model_best.json").write_text(json.dumps(record))
    try:
        code, said, err = command("predict", run_folder, pictures, "--threshold", "auto", "--output", tmp_path / "out")
        assert code == 0, err
        assert "at scores from 0.61 (best JI on val, 0.500)" in said
        rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert min(row["score"] for row in rows) >= 0.61
    finally:
        best.unlink()


@pytest.mark.parametrize(
    "run, source, options, message",
    [
        ("nowhere", "pictures", (), "The run .*nowhere does not exist"),
        ("empty", "pictures", (), "empty is empty: a run is"),
        ("text.pth", "pictures", ("--config", "RUN/config.yaml"), "Weight file .*text.pth .*it is a text file"),
        ("", "nowhere.jpg", (), "The source .*nowhere.jpg does not exist"),
        ("", "empty", (), "The folder .*empty is empty"),
        ("", "pictures", ("--threshold", "2"), "The threshold is 2, must be a number from 0 to 1"),
        ("", "pictures", ("--threshold", "high"), "The threshold is high, must be"),
        ("", "pictures", ("--threshold", "auto"), "No threshold is stored in"),
        ("", "pictures", ("--classes", "cow"), "There is no class cow"),
        ("", "pictures", ("--save", "video"), "--save names video, must name some of pictures, json, csv, crops"),
        ("", "pictures", ("--save", ","), "--save is empty"),
        ("", "pictures", ("--output", "TMP/text.pth"), "The output .*text.pth is a file, must be a folder"),
        ("", "pictures", ("--output", "TMP/text.pth/in"), "The output .*text.pth/in cannot be written to: Not a dir"),
        ("", "pictures", ("--output", "TMP/pictures"), "The output .* is not empty: name another folder, or add"),
        ("", "pictures", ("--tile", "5"), "tile is 5, must be at least 16"),
        ("", "pictures", ("--batch", "0"), "batch is 0"),
        ("", "pictures", ("--device", "gpu"), "The device is gpu, must be one of torch"),
        ("", "pictures", ("--config", "none.yaml"), "The config file none.yaml does not exist"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_and_exit_code_2(
    command, run_folder, pictures, tmp_path, run, source, options, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("no weights")
    options = [str(o).replace("RUN", str(run_folder)).replace("TMP", str(tmp_path)) for o in options]
    if "--output" not in options:
        options += ["--output", tmp_path / "out"]
    code, said, err = command("predict", tmp_path / run if run else run_folder, tmp_path / source, *options)
    assert code == 2 and said == "" and "Traceback" not in err
    (sentence,) = [line for line in err.splitlines() if line.startswith("paq-detr: ")]
    assert sentence == err.splitlines()[-1]
    assert re.search(message, sentence) and sentence.endswith(".")
    assert not (tmp_path / "out").exists()


def test_keys_are_told_from_the_arguments_before_them():
    assert cli.split_keys(["a.yaml", "--resume", "SOLVER.STEPS", "(1,)", "OUTPUT_DIR", "X"]) == (
        ["a.yaml", "--resume"],
        ["SOLVER.STEPS", "(1,)", "OUTPUT_DIR", "X"],
    )
    assert cli.split_keys(["Run/A.pth"]) == (["Run/A.pth"], [])


@pytest.fixture
def launched(monkeypatch):
    """What would be launched."""
    seen = []
    monkeypatch.setattr("paq_detr.engine.main.run", seen.append)
    return seen


def test_train_and_eval_launch_what_train_net_does(command, launched, run_folder):
    assert command("train", "c.yaml", "--resume", "--num-gpus", 2, "SOLVER.BASE_LR", "-1")[0] == 0
    assert command("eval", run_folder, "--allow-partial", "TEST.CROWD.ENABLED", True)[0] == 0
    train, evaluate = launched
    assert (train.config_file, train.resume, train.num_gpus, train.eval_only) == ("c.yaml", True, 2, False)
    assert train.opts == ["SOLVER.BASE_LR", "-1"] and train.dist_url == "auto"
    assert (evaluate.config_file, evaluate.eval_only) == (str(run_folder / "config.yaml"), True)
    assert evaluate.allow_partial
    assert evaluate.opts == ["MODEL.WEIGHTS", str(run_folder / "model_final.pth"), "OUTPUT_DIR", str(run_folder),
                             "TEST.CROWD.ENABLED", "True"]  # fmt: skip


@pytest.mark.parametrize("name, wrong, message", [
    ("convert", ("none.pth", "out.pth"), "paq-detr convert: Weight file none.pth does not exist"),
    ("average", ("out.pth", "none.pth"), "paq-detr average: Weight file none.pth does not exist"),
    ("export", ("none",), "paq-detr export: "),
    ("train", ("none.yaml",), "paq-detr: The config file none.yaml does not exist"),
    ("eval", ("none",), "paq-detr: The run none does not exist"),
    ("demo", ("--config-file", "none.yaml"), "paq-detr: The config file none.yaml does not exist"),
    ("fly", (), "usage: paq-detr"),
])  # fmt: skip
def test_every_command_says_what_is_wrong(command, name, wrong, message):
    code, _, err = command(name, *wrong)
    assert code == 2 and message in err and "Traceback" not in err


def test_averages_are_written(command, tmp_path):
    for i in (1.0, 3.0):
        torch.save({"model": {"w": torch.tensor([i])}}, tmp_path / f"{i}.pth")
    assert command("average", tmp_path / "out.pth", *tmp_path.glob("*.pth"))[0] == 0
    assert torch.load(tmp_path / "out.pth")["model"]["w"] == 2


def test_the_console_script_is_this_function():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '[project.scripts]\npaq-detr = "paq_detr.cli:main"' in project
    assert 'video = ["opencv-python-headless"]' in project
