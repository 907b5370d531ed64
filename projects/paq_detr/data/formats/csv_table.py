# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A CSV table as a source: one line a box.

Without a header ``image,x1,y1,x2,y2,label``, corners in pixels, and perhaps ``image_width,image_height`` behind them,
as in SKU110K (https://github.com/eg4000/SKU110K_CVPR19); with one, columns of these or usual other names in any order.
A line whose box and label are empty is an image without objects.
"""

from __future__ import annotations

import csv
import glob
import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ...errors import UserError
from ..json_file import open_file
from ..json_values import Unfit, as_number, as_size, shown
from .source import Content, Source, decoded, first_existing, read_class_file

_COLUMNS = {  # names that headers give them, without regard to case, blanks and underscores
    "image": ("image", "imagename", "imagepath", "imagefile", "imageid", "filename", "file", "path", "img"),
    "x1": ("x1", "xmin", "left", "x0"),
    "y1": ("y1", "ymin", "top", "y0"),
    "x2": ("x2", "xmax", "right"),
    "y2": ("y2", "ymax", "bottom"),
    "label": ("label", "class", "classname", "category", "name", "labelname"),
    "width": ("imagewidth", "width", "imgwidth"),
    "height": ("imageheight", "height", "imgheight"),
}
_NEEDED, _SIZE = ("image", "x1", "y1", "x2", "y2", "label"), ("width", "height")
_LOOK_AT = 1000  # lines, for the folder of the pictures
_WANTED = "image,x1,y1,x2,y2,label and perhaps image_width,image_height"


class CsvSource(Source):
    key, title, options = "csv", "CSV", ("images", "classes")

    @classmethod
    def find(cls, path: str) -> dict[str, Source]:
        if os.path.isfile(path):
            return {"": cls(path)} if path.endswith(".csv") else {}
        files = [file for file in sorted(glob.glob(os.path.join(glob.escape(path), "*.csv"))) if _is_table(file)]
        return {os.path.basename(f).removesuffix(".csv").removeprefix("annotations_"): cls(f) for f in files}

    @property
    def open_classes(self) -> bool:
        return not self.classes

    def find_images(self) -> str:
        names = []
        for where, cells, columns, width in itertools.islice(_cells(self.path), _LOOK_AT):
            try:
                names.append(_row(cells, columns, width, where)["image"])
            except UserError:
                if self.faults is None:  # else told when all is read
                    raise
        if not names:
            raise UserError(f"{self.path} holds no line")
        for name in dict.fromkeys(names):  # the first one may be missing
            with suppress(UserError):
                return first_existing(self.path, name)
        return first_existing(self.path, names[0])

    def content(self) -> Content:
        names = read_class_file(self.classes) if self.classes else []
        images: dict[str, dict] = {}
        annotations = []
        for where, row in self._rows():
            image = images.setdefault(row["image"], {"id": len(images) + 1, "file_name": row["image"]})
            with self.part():
                _add_size(image, row, where)
                if not any(row[key] for key in _NEEDED[1:]):
                    continue
                if not row["label"] or (self.classes and row["label"] not in names):
                    known = f"which is not in {self.classes}" if self.classes else "must be a class"
                    raise UserError(f"{where}: the label is {row['label']!r}, {known}")
                known = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": row["label"]}
                annotations.append({**known, "bbox": _box(row, where), "iscrowd": 0})
        if not annotations:
            raise UserError(f"{self.path} holds no box")
        names = names or sorted({annotation["category_id"] for annotation in annotations})
        ids = {name: number for number, name in enumerate(names, start=1)}
        for annotation in annotations:
            annotation["category_id"] = ids[annotation["category_id"]]
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        coco = {"images": list(images.values()), "annotations": annotations, "categories": categories}
        self.fill_sizes(coco)
        return Content(coco)

    def _rows(self) -> Iterator[tuple[str, dict[str, str]]]:
        """As ``_cells``, each line as texts by the keys of ``_COLUMNS``."""
        for where, cells, columns, width in _cells(self.path):
            row = None
            with self.part():
                row = _row(cells, columns, width, where)
            if row is not None:
                yield where, row


def _is_table(file: str) -> bool:
    """Whether a file in a folder is such a table, not a list of classes or a log of metrics."""
    try:
        return next(_cells(file), None) is not None
    except ValueError:
        return False


def _cells(path: str) -> Iterator[tuple[str, list[str], dict[str, int], int]]:
    """Of each line that is no header: its place for messages, its cells, which of them hold the keys of ``_COLUMNS``,
    and how many there must be."""
    with open_file(path) as file:
        lines = csv.reader(decoded(file.read(), path).splitlines())
    columns = None
    for cells in lines:
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        where = f"{path}, line {lines.line_num}"
        if columns is None:
            columns = _header(cells, where)
            if columns is not None:
                width = len(cells)
                continue
            width = len(cells)
            columns = dict(zip((*_NEEDED, *_SIZE), range(width)))
        yield where, cells, columns, width


def _row(cells: list[str], columns: dict[str, int], width: int, where: str) -> dict[str, str]:
    if len(cells) != width:
        raise UserError(f"{where} has {len(cells)} columns, the first line has {width}")
    row = {key: cells[column] for key, column in columns.items()}
    if not row["image"]:
        raise UserError(f"{where} names no image")
    return row


def _header(cells: list[str], where: str) -> dict[str, int] | None:
    """The column of each key where the first line is a header; None where it is a box already.

    Raises:
        UserError: it is neither.
    """
    plain = [cell.lower().replace("_", "").replace(" ", "") for cell in cells]
    columns = {}
    for key, names in _COLUMNS.items():
        found = [plain.index(name) for name in names if name in plain]
        if found:
            columns[key] = found[0]
    if set(_NEEDED) <= columns.keys():
        return columns
    if len(cells) in (len(_NEEDED), len(_NEEDED) + len(_SIZE)) and all(map(_number_or_empty, cells[1:5])):
        return None
    hint = ", parted by commas" if len(cells) == 1 else ""
    raise UserError(f"{where} is {shown(','.join(cells))}, must be {_WANTED}{hint}, or name such columns")


def _number_or_empty(text: str) -> bool:
    try:
        return not text or as_number(text) is not None
    except Unfit:
        return False


def _add_size(image: dict[str, Any], row: dict[str, str], where: str) -> None:
    """What a line says of its image's size."""
    for key in _SIZE:
        if row.get(key):
            try:
                size = as_size(row[key])
            except Unfit as error:
                raise UserError(f"{where}: the image's {key} is {error}") from None
            if image.setdefault(key, size) != size:
                raise UserError(f"{where}: the image's {key} is {size}, an earlier line says {image[key]}")


def _box(row: dict[str, str], where: str) -> list[float]:
    """x, y, width, height."""
    try:
        x0, y0, x1, y1 = (as_number(row[key]) for key in _NEEDED[1:5])
    except Unfit as error:
        raise UserError(f"{where}: a corner is {error}") from None
    if x1 < x0 or y1 < y0:
        raise UserError(f"{where}: the box x1,y1,x2,y2 is {x0:g},{y0:g},{x1:g},{y1:g}, but x2 and y2 cannot be the "
                        "smaller ones")  # fmt: skip
    return [x0, y0, x1 - x0, y1 - y0]
