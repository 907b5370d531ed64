# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch

from paq_detr.engine import UserError, compile
from tests.modeling.assemblies import ASSEMBLIES, make_image, make_model, wake_up

IMAGE = make_image(64, 96, [[4, 6, 40, 50], [30, 8, 90, 60]], [0, 2], seed=1)
CPU = torch.device("cpu")


def test_without_a_compiler_nothing_is_compiled_and_a_warning_says_so(monkeypatch, caplog):
    def fail(function):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(logging.getLogger("paq_detr"), "propagate", True)
    model = make_model()
    compile.compile_parts(model, ["backbone"], CPU)
    (said,) = caplog.messages
    assert said == (
        "MODEL.COMPILE ['backbone'] is left out, as torch.compile does not work here: No working C++ compiler found"
    )
    assert model.backbone._compiled_call_impl is None


def test_other_names_and_models_are_refused(make_cfg, monkeypatch):
    with pytest.raises(UserError, match="MODEL.COMPILE is .*neck.*, must be one of"):
        make_cfg("MODEL.COMPILE", "[neck]")
    monkeypatch.setattr(compile, "compiler_fault", lambda device: "")
    with pytest.raises(UserError, match="MODEL.COMPILE names decoder, which a Linear has not"):
        compile.compile_parts(torch.nn.Linear(1, 1), ["decoder"], CPU)


@pytest.mark.slow
@pytest.mark.parametrize("part", list(compile.PARTS))
def test_a_compiled_part_has_the_losses_and_gradients_of_the_plain_one(part):
    if compile.compiler_fault(CPU):
        pytest.skip("there is no compiler")
    found = []
    for names in ([], [part]):
        model = wake_up(make_model(ASSEMBLIES["plusplus_paq"], **{"MODEL.DETR.DROPOUT": 0.0})).train()
        before = list(model.state_dict())
        compile.compile_parts(model, names, CPU)
        assert list(model.state_dict()) == before
        losses = model([IMAGE])
        sum(losses.values()).backward()
        found.append((losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    for plain, compiled in zip(*found):
        for name, value in plain.items():
            torch.testing.assert_close(compiled[name], value, rtol=2e-3, atol=1e-4, msg=name)
