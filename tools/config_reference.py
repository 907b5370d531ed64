# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Write docs/config_reference.md: every config key of this project with its default and its comment in the sources.

python tools/config_reference.py
"""

from __future__ import annotations

import ast
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from paq_detr import add_paq_detr_config, config, registry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config_reference.md"
HEAD = """# Config reference

Every key that this project adds to Detectron2's own, or gives another default. Made from the comments in the sources by
`python tools/config_reference.py`. A text that stands above several keys is about all of them. Keys of Detectron2 that
are not here (`INPUT.MIN_SIZE_TRAIN`, `SOLVER.STEPS`, ...) mean what they mean there.
"""


@dataclass
class Entry:
    """A key, or a section of keys (``default`` None), with what its comment says."""

    key: str
    default: str | None
    text: str


def entries(function: Callable) -> Iterator[Entry]:
    """What a function that adds keys to ``cfg`` sets, in its order."""
    source = textwrap.dedent(inspect.getsource(function))
    comments = _comments(source)
    names = {"cfg": ""}  # variables, by the section that they stand for
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.Assign):
            continue
        keys = [key for target in node.targets if (key := _key(target, names))]
        value_key = _key(node.value, names)
        for target in node.targets:
            if isinstance(target, ast.Name) and (keys or value_key):
                names[target.id] = keys[0] if keys else value_key
        if keys:
            is_section = isinstance(node.value, ast.Call)
            yield Entry(keys[0], None if is_section else ast.unparse(node.value), _text(comments, node))


def _key(node: ast.AST, names: dict[str, str]) -> str:
    """The config key that an expression such as ``D.MATCHER.COST`` stands for; empty for any other."""
    if isinstance(node, ast.Attribute):
        base = node.value.id if isinstance(node.value, ast.Name) else None
        section = names.get(base) if base else _key(node.value, names)
        return "" if section is None or (not base and not section) else f"{section}.{node.attr}".lstrip(".")
    return ""


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """By line: the text of a comment, and whether the line holds nothing else."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _text(comments: dict[int, tuple[str, bool]], node: ast.Assign) -> str:
    """The comment lines right above an assignment, then the one behind it."""
    above, line = [], node.lineno - 1
    while line in comments and comments[line][1]:
        above.insert(0, comments[line][0])
        line -= 1
    behind = [comments[node.end_lineno][0]] if node.end_lineno in comments else []
    return " ".join(above + behind)


def functions() -> Iterator[tuple[str, list[Callable]]]:
    """Headings and the functions whose keys stand below them: the core's, then those of each plug-in."""
    yield "The core", list(config.CORE)
    modules = {adder.__module__: adder for adder in registry._adders}
    for name in sorted(name for name in modules if name.startswith("paq_detr.")):
        module, adder = sys.modules[name], modules[name]
        title = module.__doc__.strip().splitlines()[0].rstrip(".").replace("``", "`")
        yield f"{title} (`{name.rsplit('.', 1)[1]}`)", [adder]


def page() -> str:
    """The whole page as Markdown."""
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    parts = [HEAD]
    for heading, adders in functions():
        rows = [entry for adder in adders for entry in entries(adder) if entry.text or entry.default is not None]
        lines = [f"\n## {heading}\n", "| key | default | meaning |", "|---|---|---|"]
        lines += [f"| `{row.key}` | {_cell(_default(cfg, row), code=True)} | {_cell(row.text)} |" for row in rows]
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)


def _default(cfg: CfgNode, row: Entry) -> str:
    if row.default is None:
        return ""
    for part in row.key.split("."):
        cfg = cfg[part]
    return repr(cfg)


def _cell(text: str, code: bool = False) -> str:
    text = text.replace("|", "\\|")
    if code:
        return f"`{text}`" if text else ""
    return text.replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: written")
