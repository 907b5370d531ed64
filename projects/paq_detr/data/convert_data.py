# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""``paq-detr convert-data``: a dataset of any format as COCO json, or as CrowdHuman's odgt."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from pycocotools import mask as rle

from ..errors import UserError
from ..output_paths import check_output_file
from ..whole_file import whole_file
from .coco_file import check_coco
from .formats.coco import CocoSource
from .formats.find import FORMATS, find_source
from .formats.source import Source
from .odgt_coco import to_odgt
from .segmentation import as_segmentation, to_run_lengths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("--output", required=True, metavar="FILE",
                        help="OUT.json for COCO's form, OUT.odgt for CrowdHuman's")  # fmt: skip


def add_source_arguments(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """What tells a source, as an entry of ``DATASETS.FILES`` does."""
    parser.add_argument("source", metavar="SOURCE", nargs=nargs,
                        help="COCO json, odgt, data.yaml, csv; a folder of YOLO or Pascal VOC")  # fmt: skip
    parser.add_argument("--split", default="", help="which of the source's splits, where it has several")
    parser.add_argument("--images", default="", metavar="DIR", help="folder of the pictures; default: looked for")
    parser.add_argument("--classes", default="", metavar="FILE", help="class names, one a line")
    parser.add_argument("--format", default="", choices=FORMATS, help="default: told from the path")


def convert_data(options: argparse.Namespace) -> None:
    """Convert, and say what came of it.

    Raises:
        UserError: one sentence; nothing is written then.
    """
    try:
        kind = os.path.splitext(options.output)[1]
        if kind not in (".json", ".odgt"):
            raise UserError(f"--output is {options.output}, must end in .json or .odgt")
        check_output_file("--output", options.output)
        source = find_source(
            options.source, options.split, options.format, images=options.images, classes=options.classes
        )
        if os.path.exists(options.output) and os.path.samefile(options.output, source.path):
            raise UserError(f"--output {options.output} is the source itself")
        if isinstance(source, CocoSource) and kind == ".json":
            raise UserError(f"{source.path} is COCO json already")
        coco, *notes = source.content()
        notes = [*notes[0], *notes[1]]
        if kind == ".odgt":
            records, more = to_odgt(coco, source.path)
            notes, lines = [*notes, *more], [json.dumps(record, separators=(",", ":")) + "\n" for record in records]
        else:
            check_coco(coco, source.path)
            _add_areas(coco)
            lines = [json.dumps(coco, separators=(",", ":"))]
        with whole_file(options.output) as part, open(part, "w", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise UserError(f"{error.filename or options.output}: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(f"{str(error).removesuffix('.')}.") from error
    for note in notes:
        print(f"note: {note}")
    print(f"{source.title} {source.path}: {len(coco['images'])} images, {len(coco['annotations'])} boxes, "
          f"{len(coco['categories'])} classes")  # fmt: skip
    print(f"written to {options.output}; as a dataset of a config:")
    print(f"DATASETS: {{FILES: [{{name: NAME, path: {options.output}, images: {_image_root(source)}}}]}}")


def _image_root(source: Source) -> str:
    """Where the pictures are, which a source with sizes need not tell."""
    try:
        return source.image_root
    except UserError:
        return "DIR"


def _add_areas(coco: dict[str, Any]) -> None:
    """``area``, without which COCO's own evaluation does not run: of the polygons, else of the box."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    for annotation in coco["annotations"]:
        if "segmentation" in annotation:
            polygons = as_segmentation(annotation["segmentation"])
            annotation["area"] = float(rle.area(to_run_lengths(polygons, *sizes[annotation["image_id"]])))
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
