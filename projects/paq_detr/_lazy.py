# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Packages whose names are imported at first use: commands that need neither torch nor Detectron2 start at once."""

from collections.abc import Callable
from importlib import import_module

from ._detectron2 import MISSING, is_missing


def lazy_names(package: str, homes: dict[str, str]) -> Callable[[str], object]:
    """The ``__getattr__`` (PEP 562) of ``package``; ``homes`` tells in which of its modules each public name is."""

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(f"{package}.{homes[name]}"), name)
        except ModuleNotFoundError as error:
            if is_missing(error):
                raise ModuleNotFoundError(MISSING, name=error.name) from None
            raise

    return get
