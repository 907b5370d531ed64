# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint averaging: what is averaged, what is kept, and what does not go together."""

import re

import pytest
import torch

from paq_detr.average import average, main


def save(path, value, names=("cat", "dog"), **more):
    model = {"w": torch.full((2, 3), value), "steps": torch.tensor(int(value)), **more}
    torch.save({"model": model, "class_names": list(names), "run_config": "yaml", "iteration": 7}, path)
    return str(path)


def test_numbers_are_averaged_by_their_shares_and_the_rest_is_the_firsts(tmp_path):
    files = [save(tmp_path / f"{i}.pth", value) for i, value in enumerate((1.0, 2.0, 6.0))]
    mixed = average(files, [0.5, 0.25, 0.25])
    assert torch.equal(mixed["model"]["w"], torch.full((2, 3), 2.5)) and mixed["model"]["w"].dtype == torch.float32
    assert mixed["model"]["steps"] == 1 and mixed["class_names"] == ["cat", "dog"] and "iteration" not in mixed
    assert torch.equal(average(files)["model"]["w"], torch.full((2, 3), 3.0))


def test_the_command_writes_a_checkpoint_and_overwrites_none(tmp_path, capsys):
    files, out = [save(tmp_path / f"{i}.pth", i) for i in (1.0, 3.0)], str(tmp_path / "out.pth")
    assert main([out, *files]) == 0
    content = torch.load(out, weights_only=True)
    assert torch.equal(content["model"]["w"], torch.full((2, 3), 2.0)) and content["run_config"] == "yaml"
    assert main([out, *files]) == 1
    assert f"{out} exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "shares", "message"),
    [
        ({"extra": torch.zeros(1)}, None, "different models: extra is only in .*b.pth"),
        ({"w": torch.zeros(2, 4)}, None, r"different models: w is \(2, 3\) here and \(2, 4\) there"),
        ({"names": ["dog", "cat"]}, None, "different class names"),
        ({}, [1.0], "--shares has 1 entries for 2 files"),
        ({}, [0.5, 0.6], "must be at least 0 and have a sum of 1"),
        (None, None, "b.pth does not exist"),
        ("text", None, "b.pth was not loaded: it is a text file"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(tmp_path, capsys, other, shares, message):
    first, second = save(tmp_path / "a.pth", 1.0), str(tmp_path / "b.pth")
    if isinstance(other, dict):
        save(second, 2.0, **other)
    elif other:
        (tmp_path / "b.pth").write_text("no weights")
    options = [] if shares is None else ["--shares", *map(str, shares)]
    assert main([str(tmp_path / "out.pth"), first, second, *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "out.pth").exists()
