# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads CrowdHuman's annotation file (odgt) and detection files: json-lines dumps and COCO results.

The odgt format is ``data.odgt``'s; a dump has one line per image,
``{"ID", "height", "width", "dtboxes": [{"box": [x, y, w, h], "score"}], "gtboxes": [{"box", "tag": 1 or -1}]}``, of
which only ``ID`` and ``dtboxes`` are needed. What a file gets wrong is said with its name and line.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Hashable, Iterator

import numpy as np

from ...data.json_file import open_file, parse_json, value_of
from ...data.odgt import box_kind, boxes_xyxy_of, image_name, read_odgt, size_of, sizes_of_pictures, tag_of
from .images import CrowdImage, Truth


class Annotations:
    """An odgt file: the ground truth and, where the file has them, the sizes of its images.

    Args:
        path: the odgt file.
        box: "fbox", "vbox" or "hbox", or in words "full", "visible" or "head".
        image_folder: where to look up the size (``ID.jpg``) of images that have none in the file; None: nowhere.
    """

    def __init__(self, path: str, box: str = "fbox", image_folder: str | None = None):
        self.path, self.box = path, box_kind(box, path)
        self.ids: list[Hashable] = []
        self.truths: list[Truth] = []
        self.sizes: list[tuple[float, float] | None] = []
        wheres = []
        for where, record in read_odgt(path):
            boxes = record["gtboxes"]
            tags = np.array([tag_of(entry, self.box, where) for entry in boxes], dtype=np.int8)
            self.ids.append(record["ID"])
            self.truths.append(Truth(boxes_xyxy_of(boxes, self.box, where), tags))
            self.sizes.append(size_of(record, where))
            wheres.append(where)
        if image_folder is not None:
            unknown = [place for place, size in enumerate(self.sizes) if size is None]
            pictures = [(os.path.join(image_folder, f"{self.ids[place]}.jpg"), wheres[place]) for place in unknown]
            for place, size in zip(unknown, sizes_of_pictures(pictures)):
                self.sizes[place] = size
        self._places = {key: place for place, key in enumerate(self.ids)}
        self._numbered = not any(isinstance(key, int) for key in self.ids)

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
        record = parse_json(line, where)
        key = image_name(record, "ID", where)
        where = f"{where}, image {key!r}"
        place, found = self.annotations.place_of(key, where), value_of(record, "dtboxes", where)
        own_size = size_of(record, where)
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
        boxes, box = record["gtboxes"], self.annotations.box
        boxes_xyxy = _boxes(boxes, box, where)
        tags = [b["tag"] if isinstance(b.get("tag"), int) else tag_of(b, box, where) for b in boxes]
        return Truth(boxes_xyxy, np.array(tags, dtype=np.int8))


class CocoResults:
    """Detections of persons as a COCO results list: ``[{"image_id", "bbox": [x, y, w, h], "score"}, ...]``.

    A list that holds several ``category_id`` is refused, since nothing says which of them are persons.
    """

    def __init__(self, path: str, annotations: Annotations):
        self.path, self.annotations = path, annotations
        with open_file(path) as file:
            rows = parse_json(file.read(), path)
        self._found: dict[Hashable, list[dict]] = {}
        for row in rows:
            self._found.setdefault(image_name(row, "image_id", path), []).append(row)
        categories = sorted({str(row.get("category_id")) for row in rows})
        if len(categories) > 1:
            ids = ", ".join(categories)[:60]
            raise ValueError(
                f"{path} holds {len(categories)} category ids ({ids}); keep the detections of persons only"
            )
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
            yield CrowdImage(place, truth, boxes_xyxy_of(found, "bbox", where), _scores(found, where), size)


def open_detections(path: str, annotations: Annotations) -> JsonLines | CocoResults:
    """The detection file at ``path``, whose form is told by its first character."""
    with open_file(path) as file:
        first = file.read(256).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if first not in (b"", b"[", b"{"):
        raise ValueError(f"{path} holds neither json lines nor a COCO results list; it starts with {first!r}")
    return CocoResults(path, annotations) if first == b"[" else JsonLines(path, annotations)


def _boxes(entries: list[dict], kind: str, where: str) -> np.ndarray:
    """(G, 4) xyxy of a dump's entries, which hold xywh under "box" or, all of them, under ``kind``."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{where}: boxes that are no list of objects: {str(entries)[:60]}")
    return boxes_xyxy_of(entries, kind if entries and kind in entries[0] else "box", where)


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
