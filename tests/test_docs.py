# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What documents say of files, names and commands, held against the project."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from check_package import Fault, check_holds
from docs_site import ELSEWHERE, NAV, moved_links

import paq_detr
from paq_detr.cli import _COMMANDS
from paq_detr.config_files import config_names

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "projects" / "paq_detr" / "papers" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:)([^)\s#]+)", re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8")))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page):
    if page.stem == "CHANGELOG":
        pytest.skip("tells of earlier versions")
    named = set(re.findall(r"paq-detr ([a-z][a-z0-9-]*)", page.read_text(encoding="utf-8")))
    assert named <= set(_COMMANDS)


def test_the_readme_fits_a_screen_or_two():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 100


def test_configs_that_the_readme_recommends_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your data -> this config")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z0-9_]+/[a-z0-9_]+)`", text))
    assert named and named <= set(config_names())


def test_links_on_the_site_lead_to_its_pages():
    text = "[a](docs/design.md#b) ![c](docs/images/d.png) [e](projects/paq_detr/papers/README.md) [f](Makefile) [g](https://h.i)"
    assert moved_links(text, "README.md") == "[a](design.md#b) ![c](images/d.png) [e](papers.md) f [g](https://h.i)"
    assert moved_links("[a](../README.md) [b](faq.md) [c](#d)", "docs/x.md") == "[a](index.md) [b](faq.md) [c](#d)"


def test_pages_from_elsewhere_have_their_place_on_the_site():
    known = {page for pages in NAV.values() for page in pages}
    assert set(ELSEWHERE.values()) <= known and all((ROOT / file).is_file() for file in ELSEWHERE)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == paq_detr.__version__ and citation["license"] == "Apache-2.0"


def test_issues_ask_for_the_doctor():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8"))
    assert "paq-detr doctor" in form["body"][0]["attributes"]["label"]


@pytest.mark.parametrize("cpu", [True, False])
def test_make_install_takes_cpu_builds_where_it_is_asked_to(tmp_path, cpu):
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    command = ["make", "-n", "install", f"VENV={tmp_path / 'env'}", *["CPU=1"] * cpu]
    plan = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    first = next(line for line in plan.splitlines() if " pip install " in line)
    index = " --index-url https://download.pytorch.org/whl/cpu"
    assert (" torch torchvision " in first and first.endswith(index)) if cpu else index not in plan


def test_what_a_package_lacks_is_said():
    with pytest.raises(Fault, match="the sdist lacks 2 files, such as a.h, b.h"):
        check_holds("sdist", ["c.h"], ["b.h", "a.h", "c.h"])
