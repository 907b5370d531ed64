# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of config values that any part can use; each raises one sentence with the full key."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from typing import Any, ClassVar

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


class Choice:
    """A config key that takes one of a fixed set of values: called with one, it returns or refuses it.

    A part that has such a key makes one beside its builder. All of them are checked with the config, before data and
    weights are read, whether the part is used or not.
    """

    all: ClassVar[dict[str, Choice]] = {}

    def __init__(self, key: str, choices: Iterable[str | int]):
        self.key, self.choices = key, tuple(choices)
        Choice.all[key] = self

    def __call__(self, value: str | int) -> str | int:
        return check_choice(self.key, value, self.choices)


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


def check_numbers(key: str, values: Any, interval: str = "(-inf, inf)", length: int | None = None) -> None:
    """See that the config key ``key`` holds a list of numbers in ``interval``, ``length`` of them where that is given.

    Raises:
        UserError: naming the key, the value and what it must be.
    """
    numbers = isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values)
    if not numbers or length not in (None, len(values)):
        raise UserError(f"{key} is {values}, must be a list of {f'{length} ' if length else ''}numbers")
    for value in values:
        check_range(f"a number of {key}", value, interval)


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
