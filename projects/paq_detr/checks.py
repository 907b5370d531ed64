# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of config values that any part can use; each raises one sentence with the full key."""

import math
import os
import re
from collections.abc import Iterable

from .errors import UserError


def check_choice(key: str, value: str | int, choices: Iterable[str | int]) -> str | int:
    """``value`` of the config key ``key``, if it is among ``choices``.

    Raises:
        UserError: naming the key, the value and the choices.
    """
    choices = list(choices)
    if value not in choices:
        shown = f'"{value}"' if isinstance(value, str) else value
        raise UserError(f"{key} is {shown}, must be one of {', '.join(str(choice) or '(empty)' for choice in choices)}")
    return value


def check_range(key: str, value: float, interval: str) -> float:
    """``value`` of the config key ``key``, if it lies in ``interval``, such as "(0, 1]" or "[1, inf)".

    Raises:
        UserError: naming the key, the value and the interval.
    """
    low, high = map(float, interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        raise UserError(f"{key} is {value}, must be {_in_words(low, high, interval)}")
    return value


def expanded_path(key: str, path: str) -> str:
    """``path`` of the config key ``key`` with a leading ~ or ~NAME and with $NAME or ${NAME} replaced.

    Raises:
        UserError: there is no such variable or user, nor a file of that very name.
    """
    expanded = os.path.expandvars(os.path.expanduser(path))
    left = re.search(r"^~[^/]*|\$\w+|\$\{[^}]*\}", expanded)
    if left and not os.path.exists(expanded):
        raise UserError(f"{key} is {path}, but {left[0]} is no variable or user's home that is known here")
    return expanded


def _in_words(low: float, high: float, interval: str) -> str:
    if low == -math.inf:
        return "finite" if high == math.inf else f"at most {high:.10g}"
    if high == math.inf:
        return f"{'at least' if interval[0] == '[' else 'above'} {low:g}"
    return f"in {interval}"
