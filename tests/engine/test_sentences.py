# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""More of what a command line says in one sentence: files that are no configs, paths, processes, memory."""

import json
import re
from argparse import Namespace

import pytest
from PIL import Image

from paq_detr.engine import UserError, run_cli, setup_config


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty, must hold sections and keys"),
        (b"- a\n", "holds a list, must hold"),
        (b"words", "holds a str, must hold"),
        (bytes(range(256)), "wrong.yaml: "),
        ("OUTPUT_DIR: gr\u00fcn".encode("latin-1"), "wrong.yaml: 'utf-8' codec can't decode"),
    ],
    ids=["empty", "a list", "a text", "binary", "latin-1"],
)
def test_what_is_no_config_file_gives_one_sentence(tmp_path, content, message):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        setup_config(Namespace(config_file=str(path), opts=[]))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=f"The config file {tmp_path} is a folder"):
        setup_config(Namespace(config_file=str(tmp_path), opts=[]))


def test_merged_sections_of_yaml_are_no_repetition(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text("SOLVER: {AMP: &a {ENABLED: true}, CLIP_GRADIENTS: {<<: *a, CLIP_VALUE: 0.5, ENABLED: false}}\n"
                    "DATASETS: {TRAIN: [], TEST: []}\n")  # fmt: skip
    solver = setup_config(Namespace(config_file=str(path), opts=[])).SOLVER
    assert solver.AMP.ENABLED and not solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_VALUE == 0.5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_gpus": 0}, "--num-gpus is 0, must be at least 1"),
        ({"num_gpus": -1}, "--num-gpus is -1, must be at least 1"),
        ({"num_machines": 0}, "--num-machines is 0, must be at least 1"),
        ({"machine_rank": 1}, "--machine-rank is 1, must be from 0 to 0, as --num-machines is 1"),
        *(
            ({"dist_url": url}, f"--dist-url is {url}, must be auto, tcp://HOST:PORT or file:///PATH")
            for url in ("garbage", "tcp://127.0.0.1", "tcp://127.0.0.1:abc", "tcp://127.0.0.1:99999", "http://host:80")
        ),
        ({"num_machines": 2, "machine_rank": -1}, "--machine-rank is -1, must be from 0 to 1"),
    ],
    ids=str,
)
def test_numbers_of_processes_that_cannot_be_are_refused(config_file, options, message):
    with pytest.raises(UserError, match=message):
        setup_config(Namespace(config_file=config_file, opts=[], **{"num_gpus": 1, **options}))


def test_names_may_stand_in_a_list_without_quotes(config_file):
    opts = ["DATASETS.TRAIN", "[synthetic_crowd_val]", "DATASETS.TEST", "synthetic_crowd_val", "SOLVER.STEPS", "[]"]
    cfg = setup_config(Namespace(config_file=config_file, opts=opts))
    assert (list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)) == (["synthetic_crowd_val"], ["synthetic_crowd_val"])


def test_variables_in_paths_are_replaced(make_cfg, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "a.png")
    images = [{"id": 1, "file_name": "a.png"}]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "cells.json").write_text(json.dumps(content))
    (tmp_path / "w.pth").write_text("w")
    monkeypatch.setenv("PLACE", str(tmp_path))
    entry = "[['cells_of_a_place', '$PLACE/cells.json', '${PLACE}/images']]"
    opts = ("DATASETS.COCO_JSON", entry, "MODEL.WEIGHTS", "$PLACE/w.pth", "OUTPUT_DIR", "${PLACE}/out")
    cfg = make_cfg(*opts, "DATASETS.TRAIN", "['cells_of_a_place']", "DATASETS.TEST", "[]")
    assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == (f"{tmp_path}/out", f"{tmp_path}/w.pth")


@pytest.mark.parametrize(
    "key, value, unknown",
    [
        ("OUTPUT_DIR", "$NOWHERE/out", r"\$NOWHERE"),
        ("OUTPUT_DIR", "~nobody-of-this-name/out", "~nobody-of-this-name"),
        ("MODEL.WEIGHTS", "${NOWHERE}/w.pth", r"\$.NOWHERE."),
        ("DATASETS.COCO_JSON", "[['a', '$NOWHERE/x.json', '.']]", r"\$NOWHERE"),
        ("DATASETS.COCO_JSON", "[['a', 'x.json', '~nobody-of-this-name']]", "~nobody-of-this-name"),
    ],
)
def test_unknown_variables_and_homes_in_paths_are_named(make_cfg, key, value, unknown):
    with pytest.raises(UserError, match=f"{key}.* is .*, but {unknown} is no variable or user's home that is known"):
        make_cfg(key, value)


NO_MEMORY = {
    "a GPU": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB."),
    "the machine": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 256 bytes. Error"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
def test_memory_that_does_not_suffice_is_one_sentence(capsys, error):
    def main():
        raise error

    assert run_cli(main, "program") == 2
    said = capsys.readouterr().err
    assert said.startswith("program: The memory does not suffice") and said.count("\n") == 1
    assert "tried" not in str(error).lower() or re.search(" for (2.00 GiB|256 bytes) more: lower SOLVER", said)


def test_a_fault_of_the_program_keeps_its_traceback():
    def main():
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError):
        run_cli(main, "program")
