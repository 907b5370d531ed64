# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import importlib
import sys

import torch

from paq_detr import doctor, ops
from paq_detr.doctor import PROBLEM


def problems():
    return {finding.name: finding for finding in doctor.examine() if finding.state == PROBLEM}


def test_every_operator_is_tried(capsys):
    doctor.main()
    out = capsys.readouterr().out
    for name in ops._extension._operators:
        assert f"{name} (cpu)" in out


def test_a_missing_detectron2_is_a_problem_with_a_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    assert "-m paq_detr.install_detectron2" in problems()["detectron2"].cure


def test_a_missing_package_is_a_problem_with_a_cure(monkeypatch):
    found = importlib.import_module

    def without_pillow(name, *args):
        if name == "PIL":
            raise ModuleNotFoundError("No module named 'PIL'")
        return found(name, *args)

    monkeypatch.setattr(importlib, "import_module", without_pillow)
    assert problems()["PIL"].cure.endswith("pillow")


def test_an_operator_that_computes_something_else_is_a_problem(monkeypatch, capsys):
    monkeypatch.setattr(ops, "pair_iou", lambda *args: tuple(x + 1 for x in ops.pair_iou_torch(*args)))
    assert "differs from pure torch by 1" in problems()["pair_iou (cpu)"].text
    assert doctor.main() == 1
    assert "1 problem found" in capsys.readouterr().out


def test_a_library_that_was_built_and_is_gone_is_a_problem(monkeypatch):
    library = ops._extension.Library(False, "the native library is not built; build it: pip", {"torch": "2.11.0"})
    monkeypatch.setattr(ops._extension, "library", lambda: library)
    assert "not built" in problems()["native library"].text


def test_a_torchvision_of_another_build_is_a_problem(monkeypatch):
    import torchvision

    def broken(*args):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", broken)
    assert "same build" in problems()["torchvision operators"].cure


def test_a_machine_without_cuda_is_no_problem(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA devices" not in problems()
