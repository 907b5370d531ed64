# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Where Detectron2 is missing, every entry says so in one sentence, with the command that brings it."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAID = "Detectron2 is not installed, which pip does not bring along: run `python -m paq_detr.install_detectron2`."

# In one process, as each takes seconds to import torch.
PROGRAM = """
import contextlib, io, json, runpy, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "detectron2":
            raise ModuleNotFoundError("No module named 'detectron2'", name=name)

sys.meta_path.insert(0, Hidden())

def commands(*arguments):
    from paq_detr.cli import main
    return lambda: main(arguments)

def program(name):
    return lambda: runpy.run_path(name, run_name="__main__")

def module(name, *arguments):
    sys.argv = [name, *arguments]
    return runpy.run_module(name, run_name="__main__")

def statement(code):
    return lambda: exec(code, {})

entries = {
    **{name: commands(name, *arguments) for name, *arguments in (
        ("train", "demo"), ("eval", "run"), ("predict", "run", "image.jpg"), ("export", "run"), ("demo",))},
    "-m export": lambda: module("paq_detr.export", "run"),
    "train_net": program("train_net.py"),
    "attribute": statement("import paq_detr; paq_detr.Detector"),
    "name": statement("from paq_detr import load_config"),
    "module": statement("from paq_detr.data import register_coco_json"),
    "convert": statement("import paq_detr.average, paq_detr.convert.__main__"),
    "configs": statement("import paq_detr, paq_detr.ops; print(paq_detr.configs('demo'))"),
}
found = {}
for name, entry in entries.items():
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = entry()
        except SystemExit as end:
            code = end.code
        except ModuleNotFoundError as error:
            code = f"{error}"
    found[name] = (code, out.getvalue(), err.getvalue())
print(json.dumps(found))
"""


def test_every_entry_says_it():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("train", "eval", "predict", "export", "demo"):
        assert found.pop(name) == [2, "", f"paq-detr: {SAID}\n"], name
    assert found.pop("-m export") == [2, "", f"paq-detr export: {SAID}\n"]
    assert found.pop("train_net") == [2, "", f"train_net: {SAID}\n"]
    for name in ("attribute", "name", "module"):
        assert found.pop(name) == [SAID, "", ""], name
    assert found.pop("convert") == [None, "", ""]  # neither needs it
    code, out, err = found.pop("configs")
    assert (code, err, found) == (None, "", {}) and out.endswith("demo.yaml\n")
