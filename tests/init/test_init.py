# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""``paq-detr init``: from data and a machine to a config that sets up, builds and trains."""

import json
import re
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from paq_detr.cli import main
from paq_detr.data.statistics import Spread, Statistics
from paq_detr.detector import QueryDetector
from paq_detr.engine import UserError, setup_config
from paq_detr.engine.trainer import Trainer
from paq_detr.init import command
from paq_detr.init.advice import Machine, choose

from ..data.other_formats import WRITERS

CPU, GPU = Machine("", 8, pretrained=False), Machine("a GPU", 24, pretrained=True)


def statistics(objects=3.0, most=6.0, overlap=0.0, classes=3, size=50.0, sides=(640.0, 480.0), images=500):
    return Statistics(
        images=images,
        images_without_objects=0,
        objects=int(images * objects),
        ignore_regions=0,
        classes={f"class{i}": 100 for i in range(classes)},
        objects_per_image=Spread(0, objects, most, most),
        image_widths=Spread(*[sides[0]] * 4),
        image_heights=Spread(*[sides[1]] * 4),
        object_sizes=Spread(size, size, size, size),
        object_shares=Spread(*[0.1] * 4),
        size_shares={},
        overlap=overlap,
        classes_per_image=Spread(1, 1, 1, 1),
    )


SPARSE, OVERLAPPING, FULL = statistics(), statistics(overlap=0.03), statistics(objects=12)
GRID = "crowdhuman/paq_dh_detr_r50_54ep"


@pytest.mark.parametrize(
    "data, machine, base, system",
    [
        (SPARSE, CPU, "Base-small", "PaQ's patterns, small"),
        (SPARSE, replace(CPU, pretrained=True), "Base-small-pretrained", "PaQ's patterns, small"),
        (OVERLAPPING, CPU, "Base-small", "PaQ + DH-DETR, small"),
        (FULL, CPU, "Base-small", "PaQ + DH-DETR, small"),
        (OVERLAPPING, GPU, GRID, "PaQ + DH-DETR, ResNet-50"),
        (statistics(classes=80, overlap=0.03), GPU, GRID, "PaQ + DH-DETR, ResNet-50"),
        (SPARSE, GPU, "coco/paq_deformable_detr_plusplus_r50_12ep", "PaQ on Deformable-DETR++, ResNet-50"),
        (statistics(classes=20), GPU, "coco/paq_dino_r50_12ep", "PaQ on DINO, ResNet-50"),
    ],
)
def test_the_system_follows_from_overlap_objects_classes_and_machine(data, machine, base, system):
    choice = choose(data, machine)
    assert (choice.base, choice.system) == (base, system)


@pytest.mark.parametrize(
    "data, machine, expected",
    [
        (SPARSE, CPU, {"queries": 100, "short": 256, "long": 352, "batch": 4, "epochs": 26}),
        (statistics(most=700), CPU, {"queries": 1400}),
        (SPARSE, GPU, {"queries": 300, "short": 480, "batch": 8, "epochs": 50}),
        (SPARSE, replace(GPU, memory=6), {"batch": 2}),
        (statistics(size=10), CPU, {"short": 640}),  # small objects are looked at in large pictures
        (statistics(size=20, sides=(4000.0, 500.0)), CPU, {"short": 416, "long": 1056}),
        (statistics(images=100_000), CPU, {"epochs": 4}),
        (statistics(images=20), CPU, {"epochs": 100}),
    ],
)
def test_numbers_follow_from_the_data(data, machine, expected):
    choice = choose(data, machine)
    assert {name: getattr(choice, name) for name in expected} == expected


@pytest.fixture
def content():
    """Two pictures, one of them a crowd of twelve."""
    boxes = [(1, [20 + 3 * i, 10 + 2 * i, 30, 20]) for i in range(12)] + [(2, [5, 5, 40, 40])]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 128, "height": 96} for i in (1, 2)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": 1 + number % 2, "bbox": box, "area": box[2] * box[3]}
            for number, (image, box) in enumerate(boxes, 1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


@pytest.fixture
def data(content, tmp_path):
    """A function that writes the content in a format; gives the path."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for image in content["images"]:
        Image.new("RGB", (image["width"], image["height"]), "grey").save(pictures / image["file_name"])

    def write(form):
        return WRITERS[form](content, str(pictures), tmp_path / "data")["path"]

    yield write
    for name in ("my_train", "my_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def written(path, data, machine):
    command.init(Namespace(data=data, output=str(path), format=""), machine)
    return path


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_what_is_written_sets_up_and_trains(data, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "cats.yaml", data(form), CPU)
    opts = ["SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "[]", "SOLVER.IMS_PER_BATCH", "2",
            "DATASETS.TEST", "[]", "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "[96]"]  # fmt: skip
    cfg = setup_config(Namespace(config_file=str(path), opts=opts, num_gpus=1))
    D = cfg.MODEL.DETR
    assert list(D.CLASS_NAMES) == ["cat", "dog"] and D.QUERIES.CONTENT == "patterns"
    assert list(D.DECODER.INTERACTION) == ["none", "dehomo", "dehomo"]
    assert cfg.OUTPUT_DIR == "output/cats" and cfg.TEST.DETECTIONS_PER_IMAGE == D.QUERIES.NUM == 100
    (tmp_path / "output" / "cats").mkdir(parents=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert (tmp_path / "output" / "cats" / "model_final.pth").is_file()


@pytest.mark.parametrize("found", [SPARSE, OVERLAPPING, statistics(classes=20)])
@pytest.mark.parametrize("machine", [CPU, replace(CPU, pretrained=True), GPU])
def test_every_choice_is_a_config_whose_model_can_be_built(data, tmp_path, monkeypatch, found, machine):
    if machine.pretrained:
        pytest.importorskip("timm", reason="timm is not installed")
    monkeypatch.setattr(command, "describe", lambda records, names: found)
    path = written(tmp_path / "my.yaml", data("coco"), machine)
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    cfg = setup_config(Namespace(config_file=str(path), opts=opts, num_gpus=1))
    with torch.device("meta"):
        model = QueryDetector(cfg)
    assert model.class_names == ("cat", "dog")
    assert cfg.TEST.CROWD.ENABLED == (found is OVERLAPPING)


def test_the_yaml_explains_itself_and_the_command_says_how_to_go_on(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", data("yolo"), "--output", "cats.yaml"]) == 0
    said = capsys.readouterr().out
    assert "2 training images, 13 objects of 2 classes" in said
    assert "  paq-detr train cats.yaml\n  paq-detr predict output/cats PICTURE --threshold auto\n" in said
    text = (tmp_path / "cats.yaml").read_text()
    assert re.search("# Crowded: .*docs/results.md", text, re.DOTALL) and max(map(len, text.splitlines())) < 250
    assert yaml.safe_load(text)["DATASETS"]["TRAIN"] == ["my_train"]


def test_a_bad_call_is_one_sentence_and_writes_nothing(data, content, tmp_path):
    path = data("coco")
    (tmp_path / "there.yaml").write_text("mine")
    content["annotations"] = []
    (tmp_path / "pictures" / "empty.json").write_text(json.dumps(content))
    before = sorted(tmp_path.rglob("*"))
    for source, output, message in (
        (path, "there.yaml", "there.yaml exists: name another"),
        (path, "my.txt", "my.txt, must end in .yaml"),
        (path, "nowhere/my.yaml", "nowhere/my.yaml: the folder .*nowhere does not exist"),
        (str(tmp_path / "nothing"), "my.yaml", "nothing do not exist"),
        (str(tmp_path / "pictures" / "empty.json"), "my.yaml", "empty.json holds no object in 2 images"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            written(tmp_path / output, source, CPU)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert sorted(tmp_path.rglob("*")) == before
