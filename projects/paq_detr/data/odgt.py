# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""CrowdHuman's annotation format (odgt): one json object a line, one line an image.

``{"ID", "gtboxes": [{"tag": "person" or "mask", "fbox", "vbox", "hbox": [x, y, w, h], "extra", "head_attr"}]}``, boxes
in pixels, full bodies also outside the image (https://www.crowdhuman.org/download.html). The official files hold no
image sizes; where a line has ``height`` and ``width``, they count. What a file gets wrong is said with its name, the
line and the image.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from .image_file import image_size, in_threads
from .json_file import open_file, parse_json, value_of
from .json_values import Unfit, absent, as_number

BOX_KINDS = {"full": "fbox", "visible": "vbox", "head": "hbox"}  # by the names that one may use as well
KNOWN_TAGS = ("background", "person")  # place in the list is the tag number; others, such as "mask", are ignored


def read_odgt(path: str) -> Iterator[tuple[str, dict]]:
    """The lines of an odgt file as ("PATH, line N, image 'ID'", record); a record has ``ID`` and ``gtboxes``.

    Raises:
        ValueError: the file cannot be read or holds no image, a line is broken, or an image comes twice.
    """
    lines: dict[Hashable, int] = {}
    with open_file(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            record = parse_json(line, where)
            key, boxes = image_name(record, "ID", where), value_of(record, "gtboxes", where)
            where = f"{where}, image {key!r}"
            if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
                raise ValueError(f"{where}: 'gtboxes' is no list of objects: {str(boxes)[:100]}")
            if key in lines:
                raise ValueError(f"{path}, line {number} annotates the image {key!r} more than once; line {lines[key]} "
                                 "does already")  # fmt: skip
            lines[key] = number
            yield where, record
    if not lines:
        raise ValueError(f"{path} holds no annotations")


def image_name(record: Any, key: str, where: str) -> str | int:
    """The image that a record names under ``key``."""
    name = value_of(record, key, where)
    if isinstance(name, bool) or not isinstance(name, (str, int)) or absent(name):
        raise ValueError(f"{where}: the {key} {name!r} is no name, must be text or an integer")
    return name


def box_kind(name: str, where: str) -> str:
    """The key, such as "fbox", of the kind of boxes that ``name`` means: the key itself or its word, such as "full"."""
    if name not in (*BOX_KINDS, *BOX_KINDS.values()):
        raise ValueError(
            f"{where}: the box must be 'full', 'visible' or 'head' (or 'fbox', 'vbox', 'hbox'), got {name!r}"
        )
    return BOX_KINDS.get(name, name)


def tag_of(box: dict, kind: str, where: str) -> int:
    """1 for a person, -1 for an ignore region, 0 for the tag "background" (which CrowdHuman does not use).

    A region is a box whose tag is not a person's or whose ``extra.ignore`` is not 0; for heads ("hbox") also one whose
    ``head_attr.ignore`` is not 0.
    """
    tag = value_of(box, "tag", where)
    if _ignored(box, "extra", where) or tag not in KNOWN_TAGS:
        return -1
    if kind != "hbox":
        return KNOWN_TAGS.index(tag)
    return -1 if _ignored(box, "head_attr", where) else 1


def _ignored(box: dict, key: str, where: str) -> bool:
    flags = box.get(key) or {}
    if not isinstance(flags, dict):
        raise ValueError(f"{where}: {key!r} is no object: {str(flags)[:100]}")
    ignore = flags.get("ignore")
    if absent(ignore):
        return False
    try:
        return (float(ignore) if isinstance(ignore, bool) else as_number(ignore)) != 0
    except Unfit:
        text = f"{where}: '{key}.ignore' is {ignore!r}, must be a number, 0 for a box that counts"
        raise ValueError(text) from None


def size_of(record: dict, where: str) -> tuple[float, float] | None:
    """(height, width) where the record holds them."""
    size = record.get("height"), record.get("width")
    if any(map(absent, size)):
        return None
    try:
        height, width = map(as_number, size)
    except Unfit:
        height = width = 0.0
    if height <= 0 or width <= 0:
        raise ValueError(f"{where}: height {size[0]!r} and width {size[1]!r} are no image size, both must be positive")
    return tuple(int(side) if side.is_integer() else side for side in (height, width))


def sizes_of_pictures(pictures: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """(height, width) from the headers of pictures, given as (file name, where it is asked for).

    Raises:
        ValueError: a picture is missing or broken.
    """
    return list(in_threads(_size_of_picture, pictures))


def _size_of_picture(picture: tuple[str, str]) -> tuple[int, int]:
    file_name, where = picture
    try:
        width, height = image_size(file_name)
    except ValueError as error:
        raise ValueError(f"{where}: no image size there, and {error}") from None
    return height, width
