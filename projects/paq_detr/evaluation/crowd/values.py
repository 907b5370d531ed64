# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The lists and tags of detection files."""

from __future__ import annotations

import numpy as np

from ...data.json_values import Unfit, absent, as_number, shown
from ...data.odgt import tag_of


def entries_of(record: dict, key: str, where: str) -> list[dict]:
    """The list of objects under ``key``; null stands for none."""
    entries = [] if absent(record[key]) else record[key]
    if not isinstance(entries, list):
        raise ValueError(f"{where}: {key!r} is {shown(entries)}, must be a list of objects")
    for place, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: entry {place} of {key!r} is {shown(entry)}, must be an object")
    return entries


def tags_of(entries: list[dict], kind: str, where: str) -> np.ndarray:
    """(G,) int8 tags of a dump's ground truth: 1, 0 and -1 as they stand, or by name as in an odgt file."""
    tags = []
    for place, entry in enumerate(entries, start=1):
        try:
            tag = as_number(entry.get("tag"))
        except Unfit:
            tag = tag_of(entry, kind, where)
        if tag not in (1, 0, -1):
            raise ValueError(f"{where}: the tag of entry {place} is {entry['tag']!r}, must be 1 (person), -1 (ignored) "
                             "or a name")  # fmt: skip
        tags.append(tag)
    return np.array(tags, dtype=np.int8)
