# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""An output path that takes nothing is one sentence, exit code 2, of every command, before it reads anything."""

import importlib
import os

import pytest

from paq_detr.cli import main as paq_detr
from paq_detr.engine import run_cli
from paq_detr.errors import UserError
from paq_detr.output_paths import check_output_file, make_output_folder

FILES = [
    ("missing/x", "the folder .*missing does not exist"),
    ("file/x", "file is a file, no folder"),
    ("folder", "is a folder, must be a file"),
    ("/proc/x", "cannot be written to: "),
]
FOLDERS = [
    ("file", "is a file, must be a folder"),
    ("file/x", "cannot be written to: Not a directory"),
    ("/proc/x", "cannot be written to: "),
    ("a\0b", "cannot be written to: embedded null"),
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    yield
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("path, reason", FILES)
def test_a_place_that_takes_no_file_is_named(path, reason):
    with pytest.raises(UserError, match=rf"--output {path}(:| )\s*{reason}"):
        check_output_file("--output", path)


@pytest.mark.parametrize("path, reason", FOLDERS)
def test_a_place_that_takes_no_folder_is_named(path, reason):
    with pytest.raises(UserError, match=f"OUTPUT_DIR {path} {reason}"):
        make_output_folder("OUTPUT_DIR", path)


def test_what_takes_files_is_left_as_it_was():
    for path in ("new", "file", "folder/new"):
        check_output_file("--output", path)
    make_output_folder("--output", "folder")
    assert os.listdir("folder") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("average", "missing/x.pth", "no.pth"),
        ("convert", "no.pth", "missing/x.pth"),
        ("convert-data", "no.json", "--output", "missing/x.json"),
        ("init", "no", "--output", "missing/x.yaml"),
        ("report", "--gt", "no", "--dt", "no", "--output", "missing/x.html"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_says_it_before_it_reads_anything(arguments, capsys):
    try:
        code = paq_detr(arguments)
    except SystemExit as end:
        code = end.code
    (said,) = capsys.readouterr().err.splitlines()
    assert code == 2 and said.endswith("the folder missing does not exist.")


@pytest.mark.parametrize(
    "tool, arguments",
    [
        ("plot_anchors", ("--config-file", "no.yaml", "--output", "missing/x")),
        ("plot_augmentations", ("--output", "missing/x")),
        ("plot_denoising_mask", ("--output", "missing/x")),
        ("record_training", ("--output", "missing/x")),
        ("cost", ("--configs", "file", "--json", "missing/x")),
        ("compare", ("--configs", "file", "--output", "file/x")),
        ("density_stress", ("--runs", "no", "--output", "file/x")),
        ("plot_query_similarity", ("--config-file", "no.yaml", "--output", "file/x")),
        ("query_count", ("--run", "no", "--output", "file/x")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tool_says_it_before_it_reads_anything(tool, arguments, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [tool, *arguments])
    assert run_cli(importlib.import_module(tool).main, tool) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{tool}: --") and said.endswith(("the folder missing does not exist.", "Not a directory."))
