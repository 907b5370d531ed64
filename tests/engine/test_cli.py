# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json
import os
import runpy
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from paq_detr.checks import Choice
from paq_detr.engine import NonFiniteLossError, UserError, run_cli, setup_config
from paq_detr.engine.checks import CHOICES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            ["MODEL.DETR.QUERIES.NUMBER", "5"],
            r"no config key .*QUERIES.NUMBER \(did you mean .*QUERIES.NUM\?\)",
        ),
        (["MODEL.NUM_QUERIES.NUM", "5"], "no config key MODEL.NUM_QUERIES.NUM"),
        (["SOLVER.MAX_ITERS", "5"], r"did you mean SOLVER.MAX_ITER\?"),
        (["BASE_LR", "5"], r"did you mean SOLVER.BASE_LR\?"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER cannot be 'many', must be a whole number.$"),
        (["SOLVER.AMP.ENABLED", "3"], "SOLVER.AMP.ENABLED cannot be '3', must be True or False.$"),
        (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR cannot be 'fast', must be a number.$"),
        (["DATASETS.TRAIN", "7"], "DATASETS.TRAIN cannot be '7', must be a list.$"),
        (["SOLVER.MAX_ITER"], "pairs KEY VALUE.*SOLVER.MAX_ITER"),
        (["DATASETS.TRAIN", "['synthetic_crowd']"], "'synthetic_crowd'.*not registered.*synthetic_crowd_train"),
        (["DATASETS.COCO_JSON", "[['mine', 'no.json', '.']]"], "'mine': the annotation file no.json does not exist"),
        (["MODEL.WEIGHTS", "nowhere/model.pth"], "Weight file nowhere/model.pth does not exist"),
        (["MODEL.DETR.QUERIES.NUM", "0"], "MODEL.DETR.QUERIES.NUM is 0, must be at least 1"),
        (["TEST.DETECTIONS_PER_IMAGE", "0"], "TEST.DETECTIONS_PER_IMAGE is 0"),
        (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH is 0"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "SOLVER.CHECKPOINT_PERIOD is 0, must be at least 1"),
        (["MODEL.DETR.NUM_HEADS", "0"], "MODEL.DETR.NUM_HEADS is 0, must be at least 1"),
        (["DATALOADER.NUM_WORKERS", "-1"], "DATALOADER.NUM_WORKERS is -1, must be at least 0"),
        (["MODEL.DETR.HIDDEN_DIM", "0"], "MODEL.DETR.HIDDEN_DIM is 0, must be at least 1"),
        (["MODEL.DETR.DECODER.FFN_DIM", "-3"], "MODEL.DETR.DECODER.FFN_DIM is -3, must be at least 1"),
        (["MODEL.DETR.DROPOUT", "2"], r"MODEL.DETR.DROPOUT is 2.0, must be in \[0, 1\)"),
        (["SOLVER.BASE_LR", "-1e-4"], "SOLVER.BASE_LR is -0.0001, must be at least 0"),
        (["SOLVER.EPOCHS", "2", "SOLVER.MAX_ITER", "50"], "SOLVER.MAX_ITER would have no effect.* SOLVER.EPOCHS is 2"),
        (["TEST.CROWD.PROTOCOL", "crowdhuman"], 'PROTOCOL is "crowdhuman", must be one of crowddet, dh'),
        (["MODEL.RESNETS.DEPTH", "51"], "MODEL.RESNETS.DEPTH is 51, must be one of 18, 34, 50, 101, 152"),
        (["MODEL.RESNETS.NORM", "XX"], 'MODEL.RESNETS.NORM is "XX", must be one of FrozenBN, '),
        (["MODEL.BACKBONE.NAME", "my"], 'MODEL.BACKBONE.NAME is "my", must be one of build_resnet_backbone, '),
        (["MODEL.META_ARCHITECTURE", "my"], 'MODEL.META_ARCHITECTURE is "my", must be one of '),
        (["MODEL.DEVICE", "gpu"], 'MODEL.DEVICE is "gpu", must be a device of torch, such as cuda, cuda:1 or cpu'),
        (["MODEL.PIXEL_MEAN", "[1.0]"], r"MODEL.PIXEL_MEAN is \[1.0\], must be a list of 3 numbers"),
        (["SOLVER.STEPS", "('a',)"], r"SOLVER.STEPS is \('a',\), must be a list of numbers"),
        (["TEST.BEST_METRIC", "crowd/MR"], "BEST_METRIC is crowd/MR, but a lower MR is better: write -crowd/MR"),
        (["TEST.BEST_METRIC", "my_val/crowd/MR-crowded0.3"], "a lower MR is better"),
        (
            ["INPUT.RANDOM_FLIP", "horizontl"],
            'INPUT.RANDOM_FLIP is "horizontl", must be one of horizontal, vertical, none',
        ),
        (["INPUT.CROP.TYPE", "abs"], 'INPUT.CROP.TYPE is "abs", must be one of absolute_range, absolute, relative'),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "any"], 'SAMPLING is "any", must be one of choice, range'),
        (["SOLVER.WARMUP_METHOD", "lin"], 'SOLVER.WARMUP_METHOD is "lin", must be one of linear, constant'),
        (["SOLVER.AMP.DTYPE", "fp16"], 'SOLVER.AMP.DTYPE is "fp16", must be one of bfloat16, float16'),
        (["SOLVER.MAX_ITER", "5", "--resume"], "--resume stands behind KEY VALUE pairs: flags go before the first of"),
        (["INPUT.FORMAT", "rgb"], 'INPUT.FORMAT is "rgb", must be one of RGB, BGR, L'),
        (["INPUT.FORMAT", "RGBA"], 'INPUT.FORMAT is "RGBA", must be one of RGB, BGR, L'),
        (["INPUT.MAX_PIXELS", "-1"], "INPUT.MAX_PIXELS is -1, must be at least 0"),
        (["OUTPUT_DIR", "None"], "OUTPUT_DIR is null, must be a text"),
        (["OUTPUT_DIR", ""], "OUTPUT_DIR is empty, must be the folder"),
        (["SOLVER.BASE_LR", "None"], "SOLVER.BASE_LR is null, must be a number"),
        (["DATASETS.COCO_JSON", "None"], "DATASETS.COCO_JSON is null, must be a list"),
        (
            ["DATASETS.COCO_JSON", "['a', 'b', 'c']"],
            r"COCO_JSON wants \[name, annotation json, image folder\]",
        ),
        (["DATASETS.COCO_JSON", "[['a', None, 'c']]"], "the annotation json of .* is null, must be a text"),
        (["DATASETS.COCO_JSON", "[['a', 'x.json', None]]"], "the image folder of .* is null, must be a text"),
        (["DATASETS.COCO_JSON", "[['a', '', '.']]"], "the annotation json of .* is empty"),
        (
            ["DATASETS.COCO_JSON", "[['a', ['x.json'], '.']]"],
            r"the annotation json of .* is \['x.json'\], must be a text",
        ),
        (["DATASETS.COCO_JSON", "[[5, 'x.json', '.']]"], "the name of .* is 5, must be a text"),
        (["DATASETS.COCO_JSON", "[['a', 'x.json', 20240101]]"], "the image folder of .* is 20240101, must be a text"),
        (["DATASETS.CROWDHUMAN", "[['a', None, '.', 'full']]"], "the annotation odgt of .* is null, must be a text"),
        (["SOLVER.BASE_LR", "1" + "0" * 400], "SOLVER.BASE_LR is a number of 401 digits, must be a number"),
        (["DATASETS.TRAIN", "[7]"], "DATASETS.TRAIN is .7,?., must be a list of names"),
        (["DATASETS.TEST", "[['a']]"], "DATASETS.TEST is .*, must be a list of names"),
        (["MODEL.DETR.CLASS_NAMES", "[1, 2]"], "MODEL.DETR.CLASS_NAMES is .1, 2., must be a list of names"),
        (["INPUT.MIN_SIZE_TRAIN", "[]"], "INPUT.MIN_SIZE_TRAIN is empty, must be sizes to choose from"),
        (["INPUT.MIN_SIZE_TRAIN", "[-5]"], "a number of INPUT.MIN_SIZE_TRAIN is -5, must be at least 0"),
        (["INPUT.MIN_SIZE_TRAIN", "['a']"], "INPUT.MIN_SIZE_TRAIN is .'a',?., must be a list of numbers"),
        (
            ["INPUT.MIN_SIZE_TRAIN", "[9, 5]", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"],
            "INPUT.MIN_SIZE_TRAIN is .9, 5., must be the least and the largest size",
        ),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "foo"], 'SAMPLING is "foo", must be one of choice, range'),
        (["INPUT.MAX_SIZE_TRAIN", "0"], "INPUT.MAX_SIZE_TRAIN is 0, must be at least 1"),
        (["INPUT.MAX_SIZE_TEST", "0"], "INPUT.MAX_SIZE_TEST is 0, must be at least 1"),
        (["INPUT.MIN_SIZE_TEST", "-3"], "INPUT.MIN_SIZE_TEST is -3, must be at least 0"),
        (["INPUT.RANDOM_FLIP", "foo"], 'INPUT.RANDOM_FLIP is "foo", must be one of horizontal, vertical, none'),
        (["INPUT.CROP.TYPE", "foo"], 'INPUT.CROP.TYPE is "foo", must be one of absolute_range, '),
        (["INPUT.CROP.SIZE", "[2]"], r"INPUT.CROP.SIZE is \[2\], must be a list of 2 numbers"),
        (["INPUT.CROP.SIZE", "[0.5, 0.5]"], r"a number of INPUT.CROP.SIZE is 0.5, must be at least 1"),
        (["INPUT.CROP.TYPE", "relative"], r"a number of INPUT.CROP.SIZE is 384, must be in \(0, 1\]"),
        (["INPUT.CROP.ENABLED", "True", "INPUT.CROP.RESIZE", "[]"], "INPUT.CROP.RESIZE is empty"),
        (["SOLVER.GAMMA", "-1"], "SOLVER.GAMMA is -1.0, must be at least 0"),
        (["MODEL.DETR.LOSS.L1_WEIGHT", "-5"], "MODEL.DETR.LOSS.L1_WEIGHT is -5.0, must be at least 0"),
        (["MODEL.DETR.MATCHER.CLASS_COST", "-2"], "MODEL.DETR.MATCHER.CLASS_COST is -2.0, must be at least 0"),
        (["MODEL.DETR.ASAG.CLASS_WEIGHT", "-8"], "MODEL.DETR.ASAG.CLASS_WEIGHT is -8.0, must be at least 0"),
        (["SOLVER.WARMUP_ITERS", "-1"], "SOLVER.WARMUP_ITERS is -1, must be at least 0"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0"], "SOLVER.CLIP_GRADIENTS.CLIP_VALUE is 0.0, must be above 0"),
        (["SOLVER.STEPS", "[2, 1]"], "SOLVER.STEPS is .2, 1., must be in ascending order"),
        (["SOLVER.STEPS", "[-2]"], "a number of SOLVER.STEPS is -2, must be at least 0"),
        (["SOLVER.MOMENTUM", "-2"], r"SOLVER.MOMENTUM is -2.0, must be in \[0, 1\)"),
        (["SOLVER.BASE_LR", "1e400"], "SOLVER.BASE_LR is inf, must be at least 0"),
        (["SOLVER.CHECKPOINT_KEEP", "-1"], "SOLVER.CHECKPOINT_KEEP is -1, must be at least 0"),
        (["TEST.EVAL_PERIOD", "-1"], "TEST.EVAL_PERIOD is -1, must be at least 0"),
        (["MODEL.DETR.CLASS_RENAMES", "[a, b]"], r"CLASS_RENAMES holds a, must be pairs of names \[old, new\]"),
        (["MODEL.DETR.CLASS_RENAMES", "[[a, b], [c, b]]"], "CLASS_RENAMES holds the new name b twice"),
        (["TEST.QUERY_USE.THRESHOLD", "2"], r"TEST.QUERY_USE.THRESHOLD is 2.0, must be in \[0, 1\)"),
        (["SEED", "1099511627776"], "SEED is 1099511627776, must be at most 4294967000"),
        (["MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"], "a number of MODEL.PIXEL_STD is 0.0, must be above 0"),
        (["MODEL.PIXEL_MEAN", "[1e999, 1.0, 1.0]"], "a number of MODEL.PIXEL_MEAN is inf, must be finite"),
        (["MODEL.DETR.HIDDEN_DIM", "100"], "MODEL.DETR.HIDDEN_DIM is 100, must be divisible by 32"),
    ],
)
def test_wrong_options_give_one_sentence(make_cfg, opts, message):
    with pytest.raises(UserError, match=message) as caught:
        make_cfg(*opts)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


NUMBERS = ("DEPTH", "RES5_DILATION")
NO_JSON = ("DATASETS.COCO_JSON", "[['mine', 'no.json', '.']]")  # what comes first is said


@pytest.mark.parametrize(
    "key, value, wrong",
    [
        ("QUERIES.NAME", "Foo", "Foo"),
        ("QUERIES.CONTENT", "foo", "foo"),
        ("NECK.NAME", "7", "7"),
        ("CODEC", "''", ""),
        ("ROUTES", "foo", "foo"),
        ("DECODER.INTERACTION", "self_attention+foo", "foo"),
        ("MATCHER.COST", "['focal_l1_giou', 'foo']", "foo"),
        ("ASSIGNER.FINAL", "foo", "foo"),
        ("MR.ASSIGNER", "foo", "foo"),
        ("DECODER.STEM_CODEC", "foo", "foo"),
        ("LOSS.ENCODER_CLASSIFICATION", "foo", "foo"),
    ],
)
def test_a_part_of_an_unknown_name_is_said_before_data_is_read(make_cfg, key, value, wrong):
    with pytest.raises(UserError, match=f'MODEL.DETR.{key} is "{wrong}", must be one of ') as caught:
        make_cfg(*NO_JSON, f"MODEL.DETR.{key}", value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [*(key for key in CHOICES if key.split(".")[-1] not in NUMBERS), *Choice.all])
def test_a_value_outside_a_fixed_set_is_said_before_data_is_read(make_cfg, key):
    with pytest.raises(UserError, match=f'^{key} is "foo", must be one of .+[.]$'):
        make_cfg(*NO_JSON, key, "foo")


def test_the_keys_of_parts_used_or_not_are_among_them():
    solver = ("OPTIMIZER", "CLIP_GRADIENTS.CLIP_TYPE", "LR_SCHEDULER_NAME")
    parts = ("ACTIVATION", "LOSS.NORMALIZER", "PATTERNS.FUSION", "DDQ.CANDIDATES", "QUERIES.KEEP.WHEN")
    assert {*(f"SOLVER.{key}" for key in solver), *(f"MODEL.DETR.{key}" for key in parts)} <= set(Choice.all)


@pytest.mark.parametrize(
    "names, message",
    [
        ("[res9]", 'an entry of MODEL.RESNETS.OUT_FEATURES is "res9", must be one of stem, res2, res3, res4, res5'),
        ("[]", "MODEL.RESNETS.OUT_FEATURES is empty, must name some of stem, "),
    ],
)
def test_maps_that_a_resnet_does_not_have_are_said_before_data_is_read(make_cfg, names, message):
    with pytest.raises(UserError, match=message):
        make_cfg(*NO_JSON, "MODEL.RESNETS.OUT_FEATURES", names)


@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL: {DETR: {QUERIES: {NUMBER: 3}}}", r"no config key MODEL.DETR.QUERIES.NUMBER \(did you mean"),
        ("MODEL: [", "while parsing"),
        ("_BASE_: nowhere.yaml", "nowhere.yaml"),
        ("MODEL: {DETR: 3}", "MODEL.DETR cannot be 3, must be a section.$"),
        ("MODEL: {DEVICE: {A: 1}}", "MODEL.DEVICE cannot be .*, must be a text.$"),
        ("SOLVER: {MAX_ITER: [1]}", r"SOLVER.MAX_ITER cannot be \[1\], must be a whole number.$"),
        ("SOLVER: {MAX_ITER: 1.5}", "SOLVER.MAX_ITER cannot be 1.5, must be a whole number.$"),
        ("SOLVER:", "The section SOLVER is empty: remove it"),
        ("MODEL: {DETR: }", "The section MODEL.DETR is empty: remove it"),
        ("OUTPUT_DIR:", "OUTPUT_DIR is null, must be a text"),
        ("SOLVER: {STEPS: null}", "SOLVER.STEPS is null, must be a list"),
        ("DATASETS: {TRAIN: ", "while parsing"),
        ("SOLVER: {MAX_ITER: 5}\nSOLVER: {EPOCHS: 3}", "the key SOLVER comes twice in a section, again in line 3.$"),
        (
            "SEED: 1\nMODEL:\n  DEVICE: cpu\n  DEVICE: cuda",
            "the key DEVICE comes twice in a section, again in line 5.$",
        ),
        ("_BASE_:", "_BASE_ of .*wrong.yaml is null, must be a file's name"),
        ("_BASE_: [3]", "_BASE_ of .*wrong.yaml is 3, must be a file's name"),
        ("_BASE_: wrong.yaml", "is based on itself"),
        ("SEED: !!python/object/apply:os.getpid []", "could not determine a constructor for the tag .*os.getpid"),
        ("MODEL:\n\tDEVICE: cpu", "cannot start any token"),
        ("SEED: " + "[" * 5000, "wrong.yaml is no config file: its lists are nested too deeply"),
    ],
)
def test_a_wrong_config_file_gives_one_sentence(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text("VERSION: 2\n" + text)
    with pytest.raises(UserError, match=f"wrong.yaml: .*{message}|{message}") as caught:
        setup_config(Namespace(config_file=str(path), opts=[]))
    assert "\n" not in str(caught.value) and "wrong.yaml" in str(caught.value)


def test_a_whole_number_is_taken_where_a_float_is_wanted(tmp_path, make_cfg):
    path = tmp_path / "whole.yaml"
    path.write_text("MODEL: {DETR: {LOSS: {CLASS_WEIGHT: 1}, SOFT_TARGET: {MIN: -1}}}\nDATASETS: {TRAIN: [], TEST: []}")
    cfg = setup_config(Namespace(config_file=str(path), opts=["SOLVER.BASE_LR", "1", "MODEL.DETR.LOSS.L1_WEIGHT", "2"]))
    D = cfg.MODEL.DETR
    found = (D.LOSS.CLASS_WEIGHT, D.SOFT_TARGET.MIN, cfg.SOLVER.BASE_LR, D.LOSS.L1_WEIGHT)
    assert found == (1, -1, 1, 2) and {type(value) for value in found} == {float}
    assert make_cfg("SOLVER.MAX_ITER", "3").SOLVER.MAX_ITER == 3
    with pytest.raises(UserError, match="SOLVER.MAX_ITER cannot be '1.5'"):
        make_cfg("SOLVER.MAX_ITER", "1.5")


def test_weights_may_be_null_and_a_folder_a_number(tmp_path, config_file):
    path = tmp_path / "empty.yaml"
    for folder in ("20240101", "'007'", "2024-01-01", "'1e3'"):
        path.write_text(f"_BASE_: {config_file}\nMODEL: {{WEIGHTS: null}}\nOUTPUT_DIR: {folder}\n")
        cfg = setup_config(Namespace(config_file=str(path), opts=[]))
        assert (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, cfg.SOLVER.IMS_PER_BATCH) == ("", folder.strip("'"), 2)


@pytest.mark.parametrize("typed", ["007", "2024_01", "1e3", "2024-01-01", "1.10", "True", "[a]", "'quoted'", "plain"])
def test_a_folder_on_the_command_line_is_what_was_typed(make_cfg, typed):
    assert make_cfg("OUTPUT_DIR", typed).OUTPUT_DIR == typed.strip("'")


def write_cells(folder, images):
    """A COCO json of one picture, which lies in the folder's ``images``."""
    (folder / images).mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(folder / images / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20]}],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (folder / "cells.json").write_text(json.dumps(content))
    return content


def test_paths_may_begin_at_home_and_folders_may_look_like_numbers(tmp_path, config_file, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_cells(tmp_path, "20240101")
    (tmp_path / "w.pth").write_text("w")
    path = tmp_path / "paths.yaml"
    for name, folder in (("home", "~/20240101"), ("number", "20240101"), ("quoted", "'20240101'")):
        path.write_text(
            f"_BASE_: {config_file}\nOUTPUT_DIR: ~/out\nMODEL: {{WEIGHTS: ~/w.pth}}\n"
            f"DATASETS: {{COCO_JSON: [[{name}, ~/cells.json, {folder}]], TRAIN: [{name}], TEST: []}}"
        )
        cfg = setup_config(Namespace(config_file=str(path), opts=[]))
        assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == (f"{tmp_path}/out", f"{tmp_path}/w.pth")
        assert os.path.isfile(DatasetCatalog.get(name)[0]["file_name"])


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_missing_pictures_are_found_before_anything_is_built(make_cfg, tmp_path, key):
    write_cells(tmp_path, "images")
    name = f"cells_without_picture_{key}"
    (tmp_path / "images" / "a.png").unlink()
    entry = str([[name, f"{tmp_path}/cells.json", f"{tmp_path}/images"]])
    opts = ["DATASETS.COCO_JSON", entry, "DATASETS.TRAIN", f"['{name}']", "DATASETS.TEST", f"['{name}']"]
    opts[opts.index("DATASETS.TEST" if key == "TRAIN" else "DATASETS.TRAIN") + 1] = "[]"
    with pytest.raises(UserError, match=f"1 of 1 pictures of dataset '{name}' .* are missing; the first is .*/a.png"):
        make_cfg(*opts)


def test_evaluation_needs_no_pictures_of_training_and_a_test_set(config_file, tmp_path):
    write_cells(tmp_path, "images")
    (tmp_path / "images" / "a.png").unlink()
    entry = str([["cells_of_training", f"{tmp_path}/cells.json", f"{tmp_path}/images"]])
    opts = ["DATASETS.COCO_JSON", entry, "DATASETS.TRAIN", "['cells_of_training']", "DATASETS.TEST", "[]"]
    args = Namespace(config_file=config_file, opts=opts, eval_only=True, num_gpus=1)
    with pytest.raises(UserError, match="An evaluation needs a dataset in DATASETS.TEST, which is empty"):
        setup_config(args)


def test_a_batch_that_the_processes_cannot_share_is_refused_at_once(config_file):
    args = Namespace(config_file=config_file, opts=["SOLVER.IMS_PER_BATCH", "3"], num_gpus=2)
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH 3 cannot be divided among 2 processes"):
        setup_config(args)


def test_a_missing_config_file_is_named_with_the_nearest(config_file):
    wrong = config_file.replace("tiny.yaml", "tinny.yaml")
    with pytest.raises(UserError, match=f"{wrong} does not exist .did you mean {config_file}"):
        setup_config(Namespace(config_file=wrong, opts=[]))


def test_the_config_holds_the_class_names_of_the_dataset(make_cfg):
    assert make_cfg().MODEL.DETR.CLASS_NAMES == ["person", "balloon", "crate", "cone"]


def test_without_cuda_the_model_goes_to_the_cpu(make_cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert make_cfg("MODEL.DEVICE", "cuda").MODEL.DEVICE == "cpu"


def test_a_key_without_effect_is_named(make_cfg, caplog):
    make_cfg("TEST.AUG.ENABLED", True)
    assert "TEST.AUG.ENABLED is a key" in caplog.text


def test_more_gpus_than_there_are_is_refused(config_file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = Namespace(config_file=config_file, opts=["MODEL.DEVICE", "cuda"], num_gpus=4)
    with pytest.raises(UserError, match="--num-gpus is 4, but torch finds 0"):
        setup_config(args)


@pytest.mark.parametrize("error, code", [(UserError, 2), (NonFiniteLossError, 1)])
def test_expected_errors_become_a_line_and_an_exit_code(capsys, error, code):
    def main():
        raise error("This is wrong.")

    assert run_cli(main, "program") == code
    assert capsys.readouterr().err == "program: This is wrong.\n"


@pytest.fixture
def train_net(monkeypatch, capfd):
    """A function from arguments to the exit code, standard output and error of train_net.py, run in this process."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["train_net.py", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "train_net.py"), run_name="__main__")
        return caught.value.code, *capfd.readouterr()

    return run


def test_train_net_says_what_is_wrong_without_a_traceback(train_net, config_file):
    code, _, said = train_net("--config-file", config_file, "SOLVER.MAX_ITERS", 3)
    assert code == 2 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("train_net: There is no config key SOLVER.MAX_ITERS")


def test_an_expected_error_in_training_is_one_sentence_on_the_screen_and_in_the_log(train_net, config_file, tmp_path):
    # A learning rate without measure makes the loss infinite within a few steps.
    options = (
        "SOLVER.BASE_LR",
        "1e30",
        "SOLVER.MAX_ITER",
        20,
        "SOLVER.STEPS",
        "[]",
        "SOLVER.CLIP_GRADIENTS.ENABLED",
        False,
    )
    code, out, said = train_net("--config-file", config_file, *options, "DATASETS.TEST", "[]", "OUTPUT_DIR", tmp_path)
    assert code == 1 and "Traceback" not in out + said
    assert said.splitlines()[-1].startswith("train_net: Training stopped at iteration")
    assert "Training stopped at iteration" in (tmp_path / "log.txt").read_text()


def test_train_net_trains_and_evaluates_what_it_wrote(train_net, config_file, tmp_path):
    out = tmp_path / "out"
    options = ["--config-file", config_file, "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "[]", "OUTPUT_DIR", out]
    code, _, said = train_net(*options)
    assert code == 0, said
    assert (out / "model_final.pth").is_file() and (out / "metrics.json").is_file()
    assert (out / "inference" / "synthetic_crowd_val" / "report.html").is_file()  # of the last evaluation
    weights = "MODEL.WEIGHTS", out / "model_final.pth"
    code, _, said = train_net("--config-file", out / "config.yaml", "--eval-only", *weights, "OUTPUT_DIR", out / "eval")
    assert code == 0, said
    assert (out / "eval" / "inference" / "synthetic_crowd_val" / "report.html").is_file()
