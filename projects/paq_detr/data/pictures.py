# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether the pictures of datasets are there and what they should be, asked before a run needs the first of them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from .image_file import in_threads, look_at_header, size_fault, tell_of_deep_pictures

Size = tuple[int, int]  # width, height

_LOOK_AT = 1000  # pictures of a dataset

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_LABEL_TOOLS = {  # parts of the paths that label tools write in place of a file's
    "/data/upload/": "a path inside Label Studio",
    "/data/local-files/": "a path inside Label Studio",
    "/label-studio/": "a path inside Label Studio",
    "/api/tasks/": "an address inside CVAT",
}


def check_pictures(names: Iterable[str]) -> None:
    """See that each registered dataset has images, that their files exist, and that some of them can be opened and have
    the size that the dataset says; warn of pictures that are not 8-bit.

    Reads folders, and the headers of a thousand files spread over the dataset.

    Raises:
        ValueError: one sentence that counts the missing or faulty pictures, names the first, and says what its name
            looks like.
    """
    for name in dict.fromkeys(names):
        files, sizes = _files_and_sizes(name)
        metadata = MetadataCatalog.get(name)
        source = next((metadata.get(key) for key in ("json_file", "odgt_file", "source") if metadata.get(key)), "")
        where = f"dataset {name!r}" + (f" ({source})" if source else "")
        if not files:
            raise ValueError(f"{where} holds no image")
        # A URL is drawn on the fly, or of another code's reader.
        known = [(file, size) for file, size in zip(files, sizes, strict=True) if not _URL.match(file)]
        missing = missing_files([file for file, _ in known])
        if missing:
            there = f"{len(missing)} of {len(known)} pictures of {where} are missing; the first is {missing[0]}"
            raise ValueError(there + hint_at(missing[0], metadata.get("image_root") or "."))
        if known:
            _look_at_some(where, known)


def _files_and_sizes(name: str) -> tuple[Sequence[str], Sequence[Size | None]]:
    dataset = DatasetCatalog[name]
    if hasattr(dataset, "file_names"):  # a COCO json's need not be read again
        return dataset.file_names, dataset.sizes
    records = DatasetCatalog.get(name)
    sizes = [(r["width"], r["height"]) if "width" in r and "height" in r else None for r in records]
    return [record["file_name"] for record in records], sizes


def _look_at_some(where: str, pictures: Sequence[tuple[str, Size | None]]) -> None:
    """Open the headers of pictures spread over the dataset: what is wrong with many is then known at the start."""
    looked = [pictures[place] for place in np.unique(np.linspace(0, len(pictures) - 1, _LOOK_AT).astype(int))]
    found = list(in_threads(_look_at, looked))
    modes, faults = [mode for mode, _ in found], [fault for _, fault in found if fault]
    if faults:
        raise ValueError(f"{len(faults)} of {len(looked)} pictures looked at in {where} are faulty; the first: "
                         f"{faults[0]}")  # fmt: skip
    tell_of_deep_pictures(where, modes)


def _look_at(picture: tuple[str, Size | None]) -> tuple[str, str]:
    """The mode of a picture that is not 8-bit, and what is wrong with it; each may be empty."""
    file, wanted = picture
    try:
        size, mode = look_at_header(file)
    except ValueError as error:
        return "", str(error)
    return mode, size_fault(file, size, wanted) if wanted else ""


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
            if _same_name(entry.name, last) or os.path.splitext(entry.name)[0] == stem:
                return f"; {entry.path} exists"
    return ""


def _same_name(one: str, other: str) -> bool:
    """Whether names differ only by case, by blanks around them, by %20 and its kin, or by how accents are composed."""
    one, other = (unicodedata.normalize("NFC", unquote(name)).strip().casefold() for name in (one, other))
    return one == other
