# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""One value of a json file as the type that its key asks for, as far as there is no doubt about what is meant.

Numbers may be texts ("12.5"), flags may be 0, 1, true, false or these as texts, and null or an empty text means the
default. Whatever is left raises ``Unfit`` with the value and what it must be; the caller adds file, entry and key.
"""

from __future__ import annotations

import math
import re
from typing import Any

_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")  # json can hold one of a pair alone, files in UTF-8 cannot
_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1}


class Unfit(ValueError):
    """The value is not what its key asks for; the text continues a sentence that ends in "is"."""


def absent(value: Any) -> bool:
    """Whether the key may as well not be there."""
    return value is None or (isinstance(value, str) and not value.strip())


def shown(value: Any) -> str:
    """The value as messages show it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def as_number(value: Any) -> float:
    """A finite number as float."""
    if type(value) is float or type(value) is int or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        try:
            number = float(value)
        except OverflowError:  # an integer of hundreds of digits
            number = math.inf
        if math.isfinite(number):
            return number
        raise Unfit(f"{shown(value)}, which is not finite")
    raise Unfit(f"{shown(value)}, must be a number")


def as_size(value: Any) -> int:
    """A positive whole number of pixels."""
    try:
        number = as_number(value)
    except Unfit:
        number = 0.0
    if number < 1 or number != int(number):
        raise Unfit(f"{shown(value)}, must be a positive integer")
    return int(number)


def as_flag(value: Any) -> int:
    """0 or 1; 0 where it is absent."""
    if absent(value):
        return 0
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return int(value)
    if isinstance(value, str) and value.strip().lower() in _FLAGS:
        return _FLAGS[value.strip().lower()]
    raise Unfit(f"{shown(value)}, must be 0 or 1")


def as_text(value: Any) -> str:
    """A text that is not blank and can be written to a file; a number is written out."""
    if isinstance(value, str) and value.strip():
        if not value.isprintable() and _SURROGATE.search(value):
            raise Unfit(f"{shown(value)}, which holds half a character")
        return value
    if type(value) in (int, float):
        return str(value)
    raise Unfit(f"{shown(value)}, must be a text")


def as_id(value: Any) -> int | str:
    """An id to compare by: 7, 7.0 and "7" are the same one."""
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"0|-?[1-9]\d{0,17}", value, re.ASCII):
        return int(value)
    if type(value) is int or (isinstance(value, str) and value.strip()):
        return value
    raise Unfit(f"{shown(value)}, must be an integer or a text")
