# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Hooks of MkDocs (mkdocs.yml): which pages the site has, and those that are files elsewhere in the project."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# Pages of the site that stand elsewhere, by their place in the project.
ELSEWHERE = {
    "README.md": "index.md",
    "projects/paq_detr/papers/README.md": "papers.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
# In this order; what does not exist is left out, and what is missing here stands below "More".
NAV = {
    "Start": ["index.md"],
    "Use": ["tutorial.md", "which_config.md", "data.md", "training.md", "augmentation.md", "logging.md", "crowds.md",
            "evaluation.md", "predict.md", "export.md", "serving.md", "faq.md"],
    "Reference": ["configs.md", "config_reference.md", "operators.md", "papers.md", "reliability.md", "security.md"],
    "Measured": ["results.md", "performance.md"],
    "Inside": ["design.md", "contributing.md", "changelog.md"],
}  # fmt: skip
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for source, name in ELSEWHERE.items():
        if (ROOT / source).is_file():
            text = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, name, content=moved_links(text, source)))
    return files


def on_config(config: Any) -> Any:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    pages |= {name for source, name in ELSEWHERE.items() if (ROOT / source).is_file()}
    nav = [{title: [page for page in names if page in pages]} for title, names in NAV.items()]
    more = sorted(pages - {page for names in NAV.values() for page in names})
    config.nav = [*nav, {"More": more}] if more else nav
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links from docs/ to what is elsewhere in the project."""
    if page.file.generated_by:
        return markdown
    return moved_links(markdown, f"docs/{page.file.src_uri}")


def moved_links(markdown: str, source: str) -> str:
    """The text with its links to files of the project as they are on the site; what is not there loses its link.

    Args:
        source: the file's place in the project.
    """

    def moved(link: re.Match) -> str:
        image, text, target, anchor = link.groups(default="")
        if not target or ":" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in ELSEWHERE:
            return f"[{text}]({ELSEWHERE[path]}{anchor})"
        if path.startswith("docs/"):
            return f"{image}[{text}]({path.removeprefix('docs/')}{anchor})"
        return text

    return _LINK.sub(moved, markdown)
