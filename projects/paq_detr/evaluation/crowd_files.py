# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads CrowdHuman's annotation file (odgt) and detection files: json-lines dumps and COCO results.

Formats: https://www.crowdhuman.org/download.html for odgt; a dump has one line per image,
``{"ID", "height", "width", "dtboxes": [{"box": [x, y, w, h], "score"}], "gtboxes": [{"box", "tag": 1 or -1}]}``, of
which only ``ID`` and ``dtboxes`` are needed. What a file gets wrong is said with its name and line.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np

from .crowd_metrics import CrowdImage, Truth

BOX_KINDS = ("fbox", "vbox", "hbox")  # full body, visible part, head
KNOWN_TAGS = ("background", "person")  # place in the list is the tag number; others, such as "mask", are ignored


class Annotations:
    """An odgt file: the ground truth and, where the file has them, the sizes of its images.

    Ignore regions are boxes whose tag is not a person's or whose ``extra.ignore`` is not 0; for heads also those whose
    ``head_attr.ignore`` is not 0.

    Args:
        path: the odgt file.
        box: "fbox", "vbox" or "hbox".
        image_folder: where to look up the size (``ID.jpg``) of images that have none in the file; None: nowhere.
    """

    def __init__(self, path: str, box: str = "fbox", image_folder: str | None = None):
        self.path, self.box = path, box
        self.ids: list[Hashable] = []
        self.truths: list[Truth] = []
        self.sizes: list[tuple[float, float] | None] = []
        for number, line in enumerate(_open(path), start=1):
            if line.strip():
                self._add(line, f"{path}, line {number}", image_folder)
        if not self.ids:
            raise ValueError(f"{path} holds no annotations")
        self._places = {key: place for place, key in enumerate(self.ids)}
        if len(self._places) < len(self.ids):
            double = next(key for key, count in Counter(self.ids).items() if count > 1)
            raise ValueError(f"{path} annotates the image {double!r} more than once")
        self._numbered = not any(isinstance(key, int) for key in self.ids)

    def _add(self, line: bytes, where: str, image_folder: str | None) -> None:
        record = _parse(line, where)
        key, boxes = _value(record, "ID", where), _value(record, "gtboxes", where)
        where = f"{where}, image {key!r}"
        truth = Truth(
            boxes_xyxy=_boxes(boxes, self.box, where),
            tags=np.array([_tag(box, self.box == "hbox", where) for box in boxes], dtype=np.int8),
        )
        size = _size(record, where)
        if size is None and image_folder is not None:
            size = _size_of_picture(image_folder, key)
        self.ids.append(key)
        self.truths.append(truth)
        self.sizes.append(size)

    def place_of(self, key: Hashable, where: str) -> int:
        """Place of an image in the file. An integer may be the image's number, counted from 1, as in COCO forms."""
        place = self._places.get(key)
        if place is None and self._numbered and isinstance(key, int) and 1 <= key <= len(self.ids):
            return key - 1
        if place is None:
            raise ValueError(f"{where}: the image {key!r} is not annotated in {self.path}")
        return place

    def without_detections(self, place: int) -> CrowdImage:
        return CrowdImage(place, self.truths[place], np.zeros((0, 4)), np.zeros(0), self.sizes[place])


class JsonLines:
    """Detections in CrowdHuman's dump form, read in pieces so that several processes can share the work."""

    def __init__(self, path: str, annotations: Annotations):
        self.path, self.annotations = path, annotations

    def pieces(self, count: int) -> list[tuple[int, int]]:
        """Byte ranges; a line belongs to the range that it starts in."""
        edges = np.linspace(0, os.path.getsize(self.path), count + 1).astype(int).tolist()
        return list(zip(edges[:-1], edges[1:]))

    def images(self, piece: tuple[int, int]) -> Iterator[CrowdImage]:
        start, stop = piece
        with open(self.path, "rb") as file:
            if start:
                file.seek(start - 1)
                file.readline()
            while (offset := file.tell()) < stop:
                line = file.readline()
                if line.strip():
                    yield self._image(line, offset)

    def _image(self, line: bytes, offset: int) -> CrowdImage:
        try:
            return self._read(line, self.path)
        except ValueError:
            with open(self.path, "rb") as file:
                number = file.read(offset).count(b"\n") + 1
            self._read(line, f"{self.path}, line {number}")  # raises again, with the line's number
            raise

    def _read(self, line: bytes, where: str) -> CrowdImage:
        record = _parse(line, where)
        key = _value(record, "ID", where)
        where = f"{where}, image {key!r}"
        place, found = self.annotations.place_of(key, where), _value(record, "dtboxes", where)
        own_size = _size(record, where)
        return CrowdImage(
            place,
            self.annotations.truths[place],
            _boxes(found, self.annotations.box, where),
            _scores(found, where),
            size=self.annotations.sizes[place] or own_size,
            ji_truth=self._own_truth(record, where),
            ji_size=own_size,
        )

    def _own_truth(self, record: dict, where: str) -> Truth | None:
        if "gtboxes" not in record:
            return None
        boxes, heads = record["gtboxes"], self.annotations.box == "hbox"
        tags = [b["tag"] if isinstance(b.get("tag"), int) else _tag(b, heads, where) for b in boxes]
        return Truth(_boxes(boxes, self.annotations.box, where), np.array(tags, dtype=np.int8))


class CocoResults:
    """Detections as a COCO results list: ``[{"image_id", "bbox": [x, y, w, h], "score"}, ...]``."""

    def __init__(self, path: str, annotations: Annotations):
        self.path, self.annotations = path, annotations
        with open(path, "rb") as file:
            rows = _parse(file.read(), path)
        self._found: dict[Hashable, list[dict]] = {}
        for row in rows:
            self._found.setdefault(_value(row, "image_id", path), []).append(row)
        self._keys = list(self._found)

    def pieces(self, count: int) -> list[list[Hashable]]:
        """The image ids in ``count`` parts."""
        edges = np.linspace(0, len(self._keys), count + 1).astype(int).tolist()
        return [self._keys[start:stop] for start, stop in zip(edges[:-1], edges[1:])]

    def images(self, piece: list[Hashable]) -> Iterator[CrowdImage]:
        for key in piece:
            place, where = self.annotations.place_of(key, self.path), f"{self.path}, image {key!r}"
            found = self._found[key]
            truth, size = self.annotations.truths[place], self.annotations.sizes[place]
            yield CrowdImage(place, truth, _boxes(found, "bbox", where), _scores(found, where), size)


def open_detections(path: str, annotations: Annotations) -> JsonLines | CocoResults:
    """The detection file at ``path``, whose form is told by its first character."""
    with _open(path) as file:
        first = file.read(256).lstrip()[:1]
    if first not in (b"", b"[", b"{"):
        raise ValueError(f"{path} holds neither json lines nor a COCO results list; it starts with {first!r}")
    return CocoResults(path, annotations) if first == b"[" else JsonLines(path, annotations)


def _open(path: str):
    try:
        return open(path, "rb")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not valid json: {error}") from None


def _value(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{where}: no {key!r} in {str(record)[:100]}")
    return record[key]


def _boxes(entries: list[dict], kind: str, where: str) -> np.ndarray:
    """(G, 4) xyxy of entries that hold xywh under ``kind`` or, in dumps, under "box"."""
    if not entries:
        return np.zeros((0, 4))
    try:
        key = kind if kind in entries[0] else "box"
        boxes = np.array([entry[key] for entry in entries], dtype=np.float64)
    except KeyError:
        raise ValueError(f"{where}: a box without {kind!r}") from None
    except (TypeError, ValueError):
        boxes = np.zeros(0)
    if boxes.shape != (len(entries), 4) or not np.isfinite(boxes).all():
        raise ValueError(f"{where}: a {key!r} that is not four finite numbers")
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _scores(entries: list[dict], where: str) -> np.ndarray:
    try:
        scores = np.array([entry["score"] for entry in entries], dtype=np.float64)
    except KeyError:
        raise ValueError(f"{where}: a detection without 'score'") from None
    except (TypeError, ValueError):
        scores = np.array(np.nan)
    if scores.shape != (len(entries),) or not np.isfinite(scores).all():
        raise ValueError(f"{where}: a score that is not a finite number")
    return scores


def _tag(box: dict, head: bool, where: str) -> int:
    tag = _value(box, "tag", where)
    if box.get("extra", {}).get("ignore", 0) != 0 or tag not in KNOWN_TAGS:
        return -1
    if not head:
        return KNOWN_TAGS.index(tag)
    return -1 if box.get("head_attr", {}).get("ignore", 0) != 0 else 1


def _size(record: dict, where: str) -> tuple[float, float] | None:
    if "height" not in record or "width" not in record:
        return None
    size = record["height"], record["width"]
    if not all(isinstance(side, (int, float)) and side > 0 for side in size):
        raise ValueError(f"{where}: height {size[0]!r} and width {size[1]!r} are no image size")
    return size


def _size_of_picture(folder: str, key: Hashable) -> tuple[float, float]:
    from PIL import Image

    path = os.path.join(folder, f"{key}.jpg")
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except OSError as error:
        raise ValueError(
            f"no size of image {key!r} in the annotation file, and {path} cannot be read: {error}"
        ) from None
