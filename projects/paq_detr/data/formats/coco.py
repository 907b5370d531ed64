# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""COCO json as a source: a file, or a folder of files whose names are its splits."""

from __future__ import annotations

import glob
import json
import mmap
import os
import re

from ...errors import UserError
from ..json_file import open_file, parse_json
from .source import Content, Source, first_existing

_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_PLACES = ("*.json", "annotations/*.json", "*/_annotations.coco.json")  # in a folder; the last are Roboflow's


class CocoSource(Source):
    key, title, options = "coco", "COCO json", ("images",)

    @classmethod
    def find(cls, path: str) -> dict[str, Source]:
        if os.path.isfile(path):
            return {"": cls(path)} if path.endswith(".json") else {}
        files = [file for place in _PLACES for file in sorted(glob.glob(os.path.join(glob.escape(path), place)))]
        files = [file for file in files if _holds_images(file)]
        instances = [file for file in files if os.path.basename(file).startswith("instances_")]
        files = instances or files  # beside COCO's captions and keypoints
        return {_split_of(file): cls(file) for file in files}

    def find_images(self) -> str:
        with open_file(self.path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            found = _NAME.search(text)
            name = json.loads(found[1]) if found else ""
        if not name:
            raise UserError(f"{self.path} names no picture, which would tell the folder of the pictures")
        return first_existing(self.path, name, [_split_of(self.path)])

    def content(self) -> Content:
        with open_file(self.path) as file:
            return Content(parse_json(file.read(), self.path))


def _holds_images(file: str) -> bool:
    """Whether a json file is probably of COCO's form: its keys are looked for without reading it as json."""
    if not os.path.getsize(file):
        return False
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return all(text.find(key) >= 0 for key in (b'"images"', b'"categories"'))


def _split_of(file: str) -> str:
    """ "train2017" of instances_train2017.json, and of train2017/_annotations.coco.json."""
    folder, name = os.path.split(os.path.abspath(file))
    stem = name.removesuffix(".json")
    if stem == "_annotations.coco":
        return os.path.basename(folder)
    return re.sub(r"^(instances|annotations?)[_-]", "", stem)
