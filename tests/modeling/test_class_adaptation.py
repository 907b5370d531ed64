# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import torch

from paq_detr.engine import DetrCheckpointer

from .assemblies import PLUSPLUS, make_model

NAMES = "MODEL.DETR.CLASS_NAMES"


def moved(options, old_names, new_names, folder):
    """A model of ``old_names`` saved and loaded into one of ``new_names``; (old, new, report)."""
    old, new = make_model(options, seed=0, **{NAMES: old_names}), make_model(options, seed=1, **{NAMES: new_names})
    DetrCheckpointer(old, str(folder)).save("model")
    checkpointer = DetrCheckpointer(new)
    checkpointer.load(str(folder / "model.pth"))
    return old, new, checkpointer.report


def test_every_class_sized_tensor_follows_the_class_names(tmp_path):
    old, new, report = moved(PLUSPLUS, ["cat", "dog", "owl"], ["owl", "emu", "cat", "ape"], tmp_path)
    for theirs, ours in zip(old.routes["main"].decoder.class_heads, new.routes["main"].decoder.class_heads):
        assert torch.equal(ours.weight[[0, 2]], theirs.weight[[2, 0]])
        assert torch.equal(ours.bias[[0, 2]], theirs.bias[[2, 0]])
    assert report.missing == [] and report.reshaped == []


def test_the_encoders_objectness_row_stays_the_first(tmp_path):
    old, new, report = moved(PLUSPLUS, ["cat", "dog", "owl"], ["emu", "owl"], tmp_path)
    theirs, ours = old.sources["main"].class_head, new.sources["main"].class_head
    assert torch.equal(ours.weight, theirs.weight[:2])
    assert report.reshaped == []


def test_the_encoders_real_classes_follow_their_names(tmp_path):
    options = {**PLUSPLUS, "MODEL.DETR.QUERIES.SCORE": "max"}
    old, new, _ = moved(options, ["cat", "dog", "owl"], ["owl", "cat"], tmp_path)
    assert torch.equal(new.sources["main"].class_head.weight, old.sources["main"].class_head.weight[[2, 0]])
