# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Imports run downwards, without circles: read from the sources."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "projects" / "paq_detr"

# From the ground up; a module imports its own floor and those below it.
FLOORS = (
    (
        *("errors", "_detectron2", "_lazy", "_threads", "config_files", "install_detectron2", "output_paths"),
        *("whole_file", "window_masks", "drawing"),
    ),
    ("checks", "structures", "config", "model_config", "ops"),
    ("registry", "layers"),
    ("modeling", "data", "convert"),
    ("papers", "evaluation"),
    ("assembly",),
    ("detector",),
    ("engine", "doctor", "average"),
    ("predict", "export", "demo", "init"),
    ("check_data",),
    ("cli",),
    ("__main__",),
)
# Hosts that anything below must not need: operators and data types are wanted without them.
WITHOUT_DETECTRON2 = ("errors", "checks", "structures", "window_masks", "ops", "layers", "registry")


def modules():
    """Files by dotted name below the package; a folder's ``__init__`` by the folder's."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(name, path, known):
    """Modules of the package that a module imports, also for its annotations."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    package = [part for part in package if part != "__init__"]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            elif node.module and node.module.split(".")[0] == "paq_detr":
                base = node.module.split(".")[1:]
            else:
                continue
            whole = ".".join(base)
            for alias in node.names:
                inner = f"{whole}.{alias.name}".lstrip(".")
                yield inner if inner in known else whole


def graph():
    known = modules()
    arrows = {name: {t for t in imports(name, path, known) if t in known and t} for name, path in known.items()}
    return {name: targets - {name} for name, targets in arrows.items()}


def floor_of(name):
    return next(i for i, floor in enumerate(FLOORS) if name.split(".")[0] in floor)


def test_every_module_has_a_floor_and_imports_none_above_it():
    upwards = [
        f"{name} -> {target}"
        for name, targets in graph().items()
        for target in targets
        if name and floor_of(target) > floor_of(name)
    ]
    assert upwards == []


def test_there_is_no_circle():
    arrows = {name: targets for name, targets in graph().items() if name}
    # A package's face names its modules; what they import of their own package is not an arrow back.
    arrows = {name: {t for t in targets if not name.startswith(f"{t}.")} for name, targets in arrows.items()}
    TopologicalSorter(arrows).prepare()


def test_the_ground_needs_no_detectron2():
    needing = [
        name
        for name, path in modules().items()
        if name.split(".")[0] in WITHOUT_DETECTRON2
        and "import detectron2" in path.read_text().replace("from", "import")
    ]
    assert needing == []


def test_the_core_names_no_paper():
    known = modules()
    papers = {name for name in known if name.startswith("papers.")}
    core = [name for name in known if name and floor_of(name) != floor_of("papers") or name.startswith("evaluation")]
    named = [(name, paper) for name in core for paper in papers & set(imports(name, known[name], set(known)))]
    assert papers >= {"papers.paq", "papers.dh_detr"} and named == []
