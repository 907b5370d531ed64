# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From a path to its format and splits."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...errors import UserError
from .coco import CocoSource
from .csv_table import CsvSource
from .odgt import OdgtSource
from .source import Source
from .voc import VocSource
from .yolo import YoloSource

FORMATS: dict[str, type[Source]] = {
    source.key: source for source in (CocoSource, OdgtSource, YoloSource, VocSource, CsvSource)
}
_VALIDATION = ("val", "dev", "minival", "test")  # how the name of a split for evaluation begins, the best first
_KNOWN = "a COCO json, a CrowdHuman odgt, a YOLO data.yaml or images and labels, Pascal VOC's Annotations, a CSV table"


@dataclass(frozen=True)
class FoundDataset:
    """What lies under a path."""

    path: str
    splits: Mapping[str, Source]  # by name; a file of one split has ""

    @property
    def format(self) -> str:
        """In words, such as "Pascal VOC"."""
        return next(iter(self.splits.values())).title

    @property
    def training(self) -> Source | None:
        """The split to train on: "train...", or the only one."""
        if len(self.splits) == 1:
            return next(iter(self.splits.values()))
        return self._first("train")

    @property
    def validation(self) -> Source | None:
        """The split to evaluate on: "val...", else "test..."; None where there is none."""
        return next((found for found in map(self._first, _VALIDATION) if found), None)

    def _first(self, start: str) -> Source | None:
        return next((self.splits[name] for name in sorted(self.splits) if name.lower().startswith(start)), None)


def find_dataset(path: str, format: str = "") -> FoundDataset:
    """The dataset under ``path``, a file or a folder, of the format ``format`` (a key of ``FORMATS``) or of any.

    Raises:
        UserError: there is none, or there are several; one sentence without a full stop.
    """
    if not os.path.exists(path):
        raise UserError(f"the data {path} do not exist{_close_to(path)}")
    if format and format not in FORMATS:
        raise UserError(f"the format of {path} is {format!r}, must be one of {', '.join(FORMATS)}")
    kinds = [FORMATS[format]] if format else list(FORMATS.values())
    found = {kind: splits for kind in kinds if (splits := kind.find(path))}
    if len(found) > 1:
        kinds = " and ".join(kind.title for kind in found)
        raise UserError(f"{path} holds data as {kinds}: say which by format, one of {', '.join(k.key for k in found)}")
    if not found:
        raise UserError(f"{path} holds nothing of a known format ({FORMATS[format].title if format else _KNOWN})")
    return FoundDataset(path, next(iter(found.values())))


def find_source(path: str, split: str = "", format: str = "", **options: str) -> Source:
    """One split of the dataset under ``path``, with ``images``, ``classes`` and ``box`` as in ``Source``.

    Raises:
        UserError: as ``find_dataset``; there is no such split, several and none is named, or the format knows no such
            option.
    """
    found = find_dataset(path, format)
    listed = ", ".join(found.splits)
    if not split and len(found.splits) > 1:
        raise UserError(f"{path} ({found.format}) has the splits {listed}: say which by split")
    if split and split not in found.splits:
        have = f"has the splits {listed}" if listed else "is one split"
        raise UserError(f"{path} ({found.format}) has no split {split!r}, it {have}")
    source = found.splits[split] if split else next(iter(found.splits.values()))
    given = {name: value for name, value in options.items() if value}
    for name in given:
        if name not in source.options:
            raise UserError(f"{path} is {found.format}, which takes no {name!r}")
    return replace(source, **given)


def _close_to(path: str) -> str:
    folder, name = os.path.split(path.rstrip("/"))
    close = difflib.get_close_matches(name, os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
    return f" (did you mean {os.path.join(folder, close[0])}?)" if close else ""
