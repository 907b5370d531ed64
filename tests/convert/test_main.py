# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""``python -m paq_detr.convert``."""

import json
import os
import runpy
import sys

import pytest
import torch
import torchvision

from paq_detr.convert.__main__ import main
from paq_detr.convert.files import read_checkpoint
from paq_detr.errors import UserError


def decoder(classes=3):
    """The smallest file of the original repository's names: two layers with their heads."""
    weights = {"transformer.level_embed": torch.randn(4, 8)}
    for layer in range(2):
        weights[f"transformer.decoder.layers.{layer}.cross_attn.sampling_offsets.weight"] = torch.randn(64, 8)
        weights[f"class_embed.{layer}.weight"] = torch.randn(classes, 8)
        weights[f"bbox_embed.{layer}.layers.2.bias"] = torch.randn(4)
        weights[f"transformer.decoder.bbox_embed.{layer}.layers.2.bias"] = weights[f"bbox_embed.{layer}.layers.2.bias"]
    return weights


@pytest.fixture
def weights(tmp_path):
    torch.save({"model": decoder(), "epoch": 1}, tmp_path / "in.pth")
    return tmp_path / "in.pth"


def test_the_file_holds_our_names_and_the_class_names(weights, tmp_path, capsys):
    main([str(weights), str(tmp_path / "out.pth"), "--class-names", "cat", "dog", "snowy owl"])
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert content["class_names"] == ["cat", "dog", "snowy owl"]
    stored = torch.load(weights, weights_only=True)["model"]
    head = content["model"]["routes.main.decoder.class_heads.1.weight"]
    assert torch.equal(head, stored["class_embed.1.weight"])
    printed = capsys.readouterr().out
    assert "layout: the original Deformable-DETR repository, single stage with box refinement" in printed
    assert printed.splitlines()[-1] == f"wrote {tmp_path / 'out.pth'}, with 3 class names"
    assert sorted(os.listdir(tmp_path)) == ["in.pth", "out.pth"]


@pytest.mark.parametrize("classes, first, last", [(91, "N/A", "toothbrush"), (80, "person", "toothbrush")])
def test_cocos_heads_get_cocos_names(tmp_path, classes, first, last):
    torch.save(decoder(classes), tmp_path / "in.pth")
    main([str(tmp_path / "in.pth"), str(tmp_path / "out.pth")])
    names = torch.load(tmp_path / "out.pth", weights_only=True)["class_names"]
    assert (len(names), names[0], names[-1]) == (classes, first, last)


def test_unknown_classes_stay_without_names(weights, tmp_path):
    main([str(weights), str(tmp_path / "out.pth")])
    assert list(torch.load(tmp_path / "out.pth", weights_only=True)) == ["model"]


def test_a_backbone_alone_is_converted(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "in.pth")
    main([str(tmp_path / "in.pth"), str(tmp_path / "out.pth")])
    assert "backbone.res2.0.conv1.weight" in torch.load(tmp_path / "out.pth", weights_only=True)["model"]


def test_names_stand_in_transformers_config_beside_the_weights(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    safetensors.save_file({"model.level_embed": torch.zeros(4, 8)}, tmp_path / "model.safetensors")
    assert read_checkpoint(str(tmp_path / "model.safetensors"))["config"] is None
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "cat"}}))
    assert read_checkpoint(str(tmp_path / "model.safetensors"))["config"] == {"id2label": {"0": "cat"}}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json, which tells the class names of .* cannot be read: "):
        read_checkpoint(str(tmp_path / "model.safetensors"))


def own(path):
    torch.save({"model": {"routes.main.decoder.class_heads.0.weight": torch.zeros(1)}}, path)


def unknown(path):
    torch.save({"stem.0.weight": torch.zeros(1)}, path)


def original(path):
    torch.save(decoder(), path)


TWO_NAMES = ("--class-names", "cat", "dog")


@pytest.mark.parametrize(
    "make, out, options, message",
    [
        (lambda path: None, "out.pth", (), "Weight file {in_} does not exist."),
        (lambda path: path.mkdir(), "out.pth", (), "Weight file {in_} is a folder; name a file in it; it holds none."),
        (lambda path: path.write_text("x"), "out.pth", (), "Weight file {in_} was not loaded: it is a text file."),
        (own, "out.pth", (), "Weight file {in_} is in this project's own layout already."),
        (original, "out.pkl", (), "OUT is {out}, must end with .pth."),
        (original, "there.pth", (), "{out} exists; --overwrite replaces it."),
        (original, "none/out.pth", (), "OUT {out}: the folder {folder}/none does not exist."),
        (original, "out.pth", TWO_NAMES, "There are 2 class names for weight file {in_}, which has 3 classes."),
    ],
    ids=["missing", "folder", "text", "own", "ending", "exists", "unwritable", "class_names"],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(tmp_path, capsys, make, out, options, message):
    (tmp_path / "there.pth").write_text("mine")
    make(tmp_path / "in.pth")
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "in.pth"), str(tmp_path / out), *options])
    assert caught.value.code == 2
    assert (
        capsys.readouterr().err
        == "python -m paq_detr.convert: "
        + message.format(in_=tmp_path / "in.pth", out=tmp_path / out, folder=tmp_path)
        + "\n"
    )
    assert (tmp_path / "there.pth").read_text() == "mine"


def test_an_unknown_layout_is_told_with_those_that_are_known(tmp_path, capsys):
    unknown(tmp_path / "in.pth")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "in.pth"), str(tmp_path / "out.pth")])
    text = capsys.readouterr().err
    assert "is of no known layout (its first tensor: stem.0.weight); known are " in text
    assert "the official DINO" in text and "Mr. DETR" in text and "Relation-DETR" not in text


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_command_overwrites_when_told(weights, tmp_path, monkeypatch):
    (tmp_path / "out.pth").write_text("old")
    monkeypatch.setattr(sys, "argv", ["convert", str(weights), str(tmp_path / "out.pth"), "--overwrite"])
    runpy.run_module("paq_detr.convert", run_name="__main__")
    assert "model" in torch.load(tmp_path / "out.pth", weights_only=True)
