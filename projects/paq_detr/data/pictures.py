# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether the pictures of datasets are there, asked before a run needs the first of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from .image_file import tell_of_deep_pictures

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_LABEL_TOOLS = {  # parts of the paths that label tools write in place of a file's
    "/data/upload/": "a path inside Label Studio",
    "/data/local-files/": "a path inside Label Studio",
    "/label-studio/": "a path inside Label Studio",
    "/api/tasks/": "an address inside CVAT",
}


def check_pictures(names: Iterable[str]) -> None:
    """See that each registered dataset has images and that their files exist; warn of pictures that are not 8-bit.

    Reads folders, not files, so that a hundred thousand pictures take a second.

    Raises:
        ValueError: one sentence that counts the missing pictures, names the first, and says what its name looks like.
    """
    for name in dict.fromkeys(names):
        files = getattr(DatasetCatalog[name], "file_names", None)  # a COCO json's need not be read again
        if files is None:
            files = [record["file_name"] for record in DatasetCatalog.get(name)]
        source = MetadataCatalog.get(name).get("json_file") or MetadataCatalog.get(name).get("odgt_file")
        where = f"dataset {name!r}" + (f" ({source})" if source else "")
        if not files:
            raise ValueError(f"{where} holds no image")
        files = [file for file in files if not _URL.match(file)]  # drawn on the fly, or of another code's reader
        missing = missing_files(files)
        if missing:
            there = f"{len(missing)} of {len(files)} pictures of {where} are missing; the first is {missing[0]}"
            raise ValueError(there + hint_at(missing[0], MetadataCatalog.get(name).get("image_root") or "."))
        if files:
            tell_of_deep_pictures(where, files)


def missing_files(files: Sequence[str]) -> list[str]:
    """Those of the files that do not exist; lists each folder once, which is much faster than to ask for each file."""
    entries: dict[str, set[str]] = {}
    missing = []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in entries:
            entries[folder] = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
        # A name that is listed may be a link to nowhere, which reading it will say; one that is not may differ by case.
        if name not in entries[folder] and not os.path.isfile(file):
            missing.append(file)
    return missing


def local_name(root: str, file_name: str) -> str:
    """Path of the picture that an annotation file names; a Windows path's backslashes part folders here as well."""
    path = os.path.join(root, file_name)
    if "\\" in file_name and not os.path.isfile(path):
        return os.path.join(root, file_name.replace("\\", "/"))
    return path


def hint_at(path: str, root: str) -> str:
    """What a name that leads nowhere looks like."""
    root = os.path.join(root, "")
    name = path.removeprefix(root)
    if _URL.match(name):
        return "; that is a URL, and pictures must be local files: download them and write their names into the file"
    for part, what in _LABEL_TOOLS.items():
        if part in f"/{name}":
            return f"; that is {what}, and must become the file's name under {root}{_as_seen(name, root)}"
    if re.match(r"[A-Za-z]:[\\/]", name):
        what = "a path of a Windows machine"
        return f"; that is {what}, and must become the file's name under {root}{_as_seen(name, root)}"
    return _as_seen(name, root)


def _as_seen(name: str, root: str) -> str:
    """Where a file of the same last part stands, if it does."""
    last = re.split(r"[\\/]", name)[-1].split("=")[-1]
    stem = os.path.splitext(last)[0]
    candidates = [last, os.path.join(os.path.basename(os.path.dirname(name)), last)]
    for candidate in candidates:
        if candidate != name and os.path.isfile(os.path.join(root, candidate)):
            return f"; {os.path.join(root, candidate)} exists"
    if os.path.isdir(root):
        for entry in os.scandir(root):
            if entry.name.lower() == last.lower() or os.path.splitext(entry.name)[0] == stem:
                return f"; {entry.path} exists"
    return ""
