# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What is said where Detectron2 is missing: pip cannot bring it, as it is not on PyPI under its own name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

MISSING = "Detectron2 is not installed, which pip does not bring along: run `python -m paq_detr.install_detectron2`."


def is_missing(error: ModuleNotFoundError) -> bool:
    return error.name == "detectron2"


@contextmanager
def needed_by(program: str) -> Iterator[None]:
    """Ends a command line within it by one sentence and exit code 2 where Detectron2 is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not is_missing(error):
            raise
        print(f"{program}: {MISSING}", file=sys.stderr)
        sys.exit(2)
