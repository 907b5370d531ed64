# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads CrowdHuman's annotation file (odgt) and detection files: json-lines dumps and COCO results.

The odgt format is ``data.odgt``'s; a dump has one line per image,
``{"ID", "height", "width", "dtboxes": [{"box": [x, y, w, h], "score"}], "gtboxes": [{"box", "tag": 1 or -1}]}``, of
which only ``ID`` and ``dtboxes`` are needed. What a file gets wrong is said with its name and line.
"""

from __future__ import annotations

import codecs
import logging
import os
from collections import Counter
from collections.abc import Hashable, Iterator

import numpy as np

from ...data.json_columns import boxes_xyxy_of, numbers_of
from ...data.json_file import open_file, parse_json, value_of
from ...data.json_values import Unfit, absent, as_id, shown
from ...data.odgt import box_kind, image_name, read_odgt, size_of, sizes_of_pictures, tag_of
from .doubts import Noted
from .images import CrowdImage, Truth
from .values import entries_of, tags_of

logger = logging.getLogger(__name__)

NEWLINE = b"\n"


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
        wheres, odd_tags = [], Counter()
        for where, record in read_odgt(path):
            boxes = record["gtboxes"]
            odd_tags.update(shown(entry.get("tag")) for entry in boxes if entry.get("tag") not in ("person", "mask"))
            tags = np.array([tag_of(entry, self.box, where) for entry in boxes], dtype=np.int8)
            self.ids.append(record["ID"])
            self.truths.append(Truth(boxes_xyxy_of(boxes, self.box, where), tags))
            self.sizes.append(size_of(record, where))
            wheres.append(where)
        if odd_tags:
            logger.warning("%s: %d boxes have other tags than 'person' and 'mask' and are ignore regions: %s", path,
                           sum(odd_tags.values()), ", ".join(sorted(odd_tags))[:100])  # fmt: skip
        if image_folder is not None:
            unknown = [place for place, size in enumerate(self.sizes) if size is None]
            pictures = [(os.path.join(image_folder, f"{self.ids[place]}.jpg"), wheres[place]) for place in unknown]
            for place, size in zip(unknown, sizes_of_pictures(pictures)):
                self.sizes[place] = size
        self._places = {as_id(key): place for place, key in enumerate(self.ids)}
        self._numbered = not any(isinstance(key, int) for key in self._places)

    def place_of(self, key: Hashable) -> int | None:
        """Place of an image in the file, None where it is not annotated.

        7 and "7" are the same ID. Where no ID is a number, an integer may be the image's number, counted from 1, as in
        COCO forms.
        """
        key = as_id(key)
        if key not in self._places and self._numbered and isinstance(key, int) and 1 <= key <= len(self.ids):
            return key - 1
        return self._places.get(key)

    def hint_for(self, key: Hashable) -> str:
        """What an unknown ID is probably meant for."""
        bare = os.path.splitext(os.path.basename(str(key)))[0]
        place = self._places.get(as_id(bare)) if bare else None
        return "" if place is None else f" (an ID is {self.ids[place]!r}, without folder and ending)"

    def without_detections(self, place: int) -> CrowdImage:
        return CrowdImage(place, self.truths[place], np.zeros((0, 4)), np.zeros(0), self.sizes[place])


class JsonLines:
    """Detections in CrowdHuman's dump form, read in pieces so that several processes can share the work."""

    def __init__(self, path: str, annotations: Annotations):
        self.path, self.annotations, self.key = path, annotations, "box"

    def pieces(self, count: int) -> list[tuple[int, int]]:
        """Byte ranges; a line belongs to the range that it starts in."""
        edges = np.linspace(0, os.path.getsize(self.path), count + 1).astype(int).tolist()
        return list(zip(edges[:-1], edges[1:]))

    def images(self, piece: tuple[int, int], noted: Noted) -> Iterator[CrowdImage]:
        """The annotated images of a piece; what is odd goes into ``noted``."""
        start, stop = piece
        with open(self.path, "rb") as file:
            if start:
                file.seek(start - 1)
                file.readline()
            while (offset := file.tell()) < stop:
                line = file.readline()
                if line.strip() and (image := self._image(line, offset, noted)):
                    noted.note(image.place, image.boxes_xyxy, image.scores, image.size)
                    yield image

    def _image(self, line: bytes, offset: int, noted: Noted) -> CrowdImage | None:
        try:
            image = self._read(line, self.path)
        except ValueError:
            self._read(line, self._where(offset))  # raises again, with the line's number
            raise
        if image is None:
            key = image_name(parse_json(line, self.path), "ID", self.path)
            noted.note_unknown(f"{self._where(offset)}, {key!r}{self.annotations.hint_for(key)}")
        return image

    def _where(self, offset: int) -> str:
        with open(self.path, "rb") as file:
            return f"{self.path}, line {file.read(offset).count(NEWLINE) + 1}"

    def _read(self, line: bytes, where: str) -> CrowdImage | None:
        """The image of a line; None where it is not annotated."""
        record = parse_json(line, where)
        if isinstance(record, dict) and "ID" not in record and "annotations" in record:
            raise ValueError(f"{where}: a COCO json with 'annotations'; detections are json lines or a results list, "
                             '[{"image_id", "bbox", "score"}, ...]')  # fmt: skip
        key = image_name(record, "ID", where)
        where = f"{where}, image {key!r}"
        value_of(record, "dtboxes", where)
        place, found = self.annotations.place_of(key), entries_of(record, "dtboxes", where)
        if place is None:
            return None
        own_size = size_of(record, where)
        return CrowdImage(
            place,
            self.annotations.truths[place],
            boxes_xyxy_of(found, self._key(found), where),
            numbers_of(found, "score", where),
            size=self.annotations.sizes[place] or own_size,
            ji_truth=self._own_truth(record, where),
            ji_size=own_size,
        )

    def _key(self, entries: list[dict]) -> str:
        """The boxes' key: "box" or, in all entries, the kind's own, such as "fbox"."""
        return self.annotations.box if entries and self.annotations.box in entries[0] else "box"

    def _own_truth(self, record: dict, where: str) -> Truth | None:
        if absent(record.get("gtboxes")):
            return None
        boxes = entries_of(record, "gtboxes", where)
        return Truth(boxes_xyxy_of(boxes, self._key(boxes), where), tags_of(boxes, self.annotations.box, where))


class CocoResults:
    """Detections of persons as a COCO results list: ``[{"image_id", "bbox": [x, y, w, h], "score"}, ...]``.

    A list that holds several ``category_id`` is refused, since nothing says which of them are persons.
    """

    def __init__(self, path: str, annotations: Annotations):
        self.path, self.annotations, self.key = path, annotations, "bbox"
        with open_file(path) as file:
            rows = parse_json(file.read(), path)
        self._found: dict[Hashable, list[dict]] = {}
        for number, row in enumerate(rows, start=1):
            key = image_name(row, "image_id", f"{path}, result {number}")
            self._found.setdefault(as_id(key), []).append(row)
        categories = sorted({_category(row) for row in rows})
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

    def images(self, piece: list[Hashable], noted: Noted) -> Iterator[CrowdImage]:
        """The annotated images of a piece; what is odd goes into ``noted``."""
        for key in piece:
            place, where, found = self.annotations.place_of(key), f"{self.path}, image {key!r}", self._found[key]
            if place is None:
                noted.note_unknown(f"{self.path}, {key!r}{self.annotations.hint_for(key)}")
                continue
            boxes_xyxy, scores = boxes_xyxy_of(found, "bbox", where), numbers_of(found, "score", where)
            image = CrowdImage(place, self.annotations.truths[place], boxes_xyxy, scores, self.annotations.sizes[place])
            noted.note(place, boxes_xyxy, scores, image.size)
            yield image


def open_detections(path: str, annotations: Annotations) -> JsonLines | CocoResults:
    """The detection file at ``path``, whose form is told by its first character."""
    with open_file(path) as file:
        first = file.read(256).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if first not in (b"", b"[", b"{"):
        raise ValueError(f"{path} holds neither json lines nor a COCO results list; it starts with {first!r}")
    return CocoResults(path, annotations) if first == b"[" else JsonLines(path, annotations)


def _category(row: dict) -> str:
    try:
        return str(as_id(row.get("category_id")))
    except Unfit:
        return str(row.get("category_id"))
