# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""CrowdHuman's odgt as a source: a file, or a folder of files whose names are its splits."""

from __future__ import annotations

import glob
import os

from ..odgt import read_odgt
from ..odgt_coco import to_coco
from .source import Content, Source, first_existing


class OdgtSource(Source):
    key, title, options = "odgt", "CrowdHuman odgt", ("images", "box")

    @classmethod
    def find(cls, path: str) -> dict[str, Source]:
        if os.path.isfile(path):
            return {"": cls(path)} if path.endswith(".odgt") else {}
        files = sorted(glob.glob(os.path.join(glob.escape(path), "*.odgt")))
        return {os.path.basename(f).removesuffix(".odgt").removeprefix("annotation_"): cls(f) for f in files}

    def find_images(self) -> str:
        _, first = next(read_odgt(self.path))
        return first_existing(self.path, f"{first['ID']}.jpg")

    def content(self) -> Content:
        """Of the full boxes, which COCO's form is about."""
        coco, notes = to_coco(self.path)
        self.fill_sizes(coco)
        return Content(coco, doubts=notes)
