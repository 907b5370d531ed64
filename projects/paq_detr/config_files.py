# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The configs that come with the package, by their names."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from .errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def _folder() -> Path:
    """In an installed package a part of it, else ``configs`` of the checkout; setup.py makes the one of the other."""
    inside = _PACKAGE / "_configs"
    return inside if inside.is_dir() else _PACKAGE.parents[1] / "configs"


def config_names() -> list[str]:
    """Such as "crowd/paq_dh"."""
    folder = _folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def configs(name: str = "") -> str:
    """The file of the config called ``name``, such as "crowd/paq_dh"; without a name, the folder of all.

    Raises:
        UserError: there is none of that name.
    """
    if not name:
        return str(_folder())
    if name not in config_names():
        raise UserError(f"There is no config {name}{close_names(name)}.")
    return str(_folder() / f"{name}.yaml")


def config_file(path: str) -> str:
    """``path`` where it is a file, else the file of the config of that name; ``path`` again where there is neither."""
    return configs(path) if not os.path.isfile(path) and path in config_names() else path


def close_names(path: str) -> str:
    """A hint at names that are almost ``path``; empty where none is."""
    name = path.removesuffix(".yaml")
    names = config_names()
    close = [known for known in names if known == name.split("configs/", 1)[-1]]
    close = close or [known for known in names if known.rsplit("/", 1)[-1] == name]
    close = close or difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return f" (did you mean {' or '.join(close[:3])}, which comes with the package?)" if close else ""
