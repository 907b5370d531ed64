# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Json files, read with one sentence on what is wrong with them, and written without NaN, which json does not know."""

from __future__ import annotations

import json
import math
import os
from typing import Any, BinaryIO

_GZIP = b"\x1f\x8b"


def open_file(path: str) -> BinaryIO:
    """The file's bytes to read; a ``ValueError`` that names it where that is impossible or it is compressed."""
    try:
        file = open(path, "rb")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if file.peek(2).startswith(_GZIP):
        file.close()
        raise ValueError(f"{path} is compressed by gzip; unpack it first")
    return file


def parse_json(text: bytes, where: str) -> Any:
    """What a json text holds, with or without a byte order mark; a ``ValueError`` says where it is broken."""
    text = text.rstrip()
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if b"\n" in text else ""
        place = f"{error.msg.removesuffix(' at')} at {line}column {error.colno}"
        raise ValueError(f"{where}: not valid json: {place}") from None
    except ValueError as error:
        raise ValueError(f"{where}: not valid json: {error}") from None
    except RecursionError:
        raise ValueError(f"{where}: no such file of annotations: its lists are nested too deeply") from None


def value_of(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{where}: no {key!r} in {str(record)[:100]}")
    return record[key]


def write_json(content: Any, path: str | os.PathLike) -> None:
    """Write ``content`` at full precision, null for NaN and infinity."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(_without_nan(content), file, indent=1, allow_nan=False)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
