# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC: one xml file an image (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html).

Annotations/*.xml, JPEGImages and, for splits, ImageSets/Main/SPLIT.txt; or the xml files beside their pictures, as
label tools write them, with folders as splits.

An object with ``difficult`` 1 is an ignore region, neither right nor wrong. VOC counts pixels from 1, and xmax is the
last one of the object: the box goes from xmin - 1 to xmax. Label tools count from 0: where some xmin or ymin of the
dataset is below 1, all its boxes are taken as they stand. Which of the two it is is logged.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from ...errors import UserError
from ..json_file import open_file
from ..json_values import Unfit, as_flag, as_number, as_size, shown
from .source import Content, Source, decoded, pictures_in, read_class_file

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Object:
    name: str
    corners: list[float]  # xmin, ymin, xmax, ymax as written
    difficult: int


@dataclass(frozen=True)
class _Image:
    file: str  # the xml
    name: str  # of the picture, as written
    size: tuple[int, int] | None  # width, height, where the file says them
    objects: list[_Object]


class VocSource(Source):
    key, title, options = "voc", "Pascal VOC", ("images", "classes")

    @classmethod
    def find(cls, path: str) -> dict[str, Source]:
        if not os.path.isdir(path):
            return {}
        if _xmls(os.path.join(path, "Annotations")):
            lists = sorted(glob.glob(os.path.join(glob.escape(path), "ImageSets", "Main", "*.txt")))
            names = [os.path.basename(file).removesuffix(".txt") for file in lists]
            # aeroplane_train.txt and its kin tell which images hold a class.
            splits = [name for name in names if not ("_" in name and name.rpartition("_")[2] in names)]
            return {split: cls(path, split) for split in splits or [""]}
        if _xmls(path):
            return {"": cls(path)}
        folders = sorted(glob.glob(os.path.join(glob.escape(path), "*", "")))
        return {os.path.basename(os.path.dirname(f)): cls(os.path.dirname(f)) for f in folders if _xmls(f)}

    @property
    def open_classes(self) -> bool:
        return not self.classes

    def find_images(self) -> str:
        folders = [os.path.join(self.path, name) for name in ("JPEGImages", "images")]
        return next((folder for folder in folders if os.path.isdir(folder)), self.path)

    @property
    def _folder(self) -> str:
        """Of the xml files."""
        folder = os.path.join(self.path, "Annotations")
        return folder if os.path.isdir(folder) else self.path

    def content(self) -> Content:
        everything: dict[str, _Image] = {}
        for file in _xmls(self._folder):
            with self.part():
                everything[file] = self._read_xml(os.path.join(self._folder, file))
        objects = [each for image in everything.values() for each in image.objects]
        names = read_class_file(self.classes) if self.classes else sorted({each.name for each in objects})
        if not names:
            raise UserError(f"{self._folder}: no xml file holds an object")
        first = 1 if all(min(each.corners) >= 1 for each in objects) else 0
        pictures = _Pictures(self.image_root)
        images, annotations = [], []
        for number, image in enumerate(self._chosen(everything), start=1):
            entry = {"id": number, "file_name": pictures.of(image)}
            images.append({**entry, "width": image.size[0], "height": image.size[1]} if image.size else entry)
            for each in image.objects:
                if each.name not in names:
                    with self.part():
                        raise UserError(f"{image.file}: the class {each.name!r} is not in {self.classes}")
                    continue
                x0, y0, x1, y1 = each.corners
                box = [x0 - first, y0 - first, x1 - x0 + first, y1 - y0 + first]
                known = {"id": len(annotations) + 1, "image_id": number, "category_id": names.index(each.name) + 1}
                annotations.append({**known, "bbox": box, "iscrowd": each.difficult})
        categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
        coco = {"images": images, "annotations": annotations, "categories": categories}
        self.fill_sizes(coco)
        return Content(coco, _notes(annotations, first))

    def _chosen(self, everything: dict[str, _Image]) -> list[_Image]:
        """The images of the split, in its order."""
        if not self.split:
            return list(everything.values())
        path = os.path.join(self.path, "ImageSets", "Main", f"{self.split}.txt")
        with open_file(path) as file:
            lines = [line.split()[0] for line in decoded(file.read(), path).split("\n") if line.strip()]
        names, there = [f"{name}.xml" for name in dict.fromkeys(lines)], set(_xmls(self._folder))
        missing = [name for name in names if name not in there]
        with self.part():
            if missing:
                raise UserError(f"{len(missing)} of {len(names)} images of {path} have no xml file; the first would be "
                                f"{os.path.join(self._folder, missing[0])}")  # fmt: skip
        if not names:
            raise UserError(f"{path} names no image")
        return [everything[name] for name in names if name in everything]  # less what is faulty

    def _read_xml(self, file: str) -> _Image:
        """One file, checked.

        Raises:
            UserError: naming the file, the object and what is wrong with it.
        """
        with open_file(file) as stream:
            try:
                root = ElementTree.parse(stream).getroot()
            except (ElementTree.ParseError, ValueError, LookupError) as error:
                raise UserError(f"{file} is no valid xml: {error}") from None
        if root.tag != "annotation":
            raise UserError(f"{file} is no file of Pascal VOC: its top element is {root.tag!r}, must be 'annotation'")
        objects = []
        for place, element in enumerate(root.findall("object"), start=1):
            with self.part():
                objects.append(_object(element, f"{file}, object {place}"))
        return _Image(file, (root.findtext("filename") or "").strip(), _size(root), objects)


def _notes(annotations: list[dict], first: int) -> list[str]:
    how = "from 1, as VOC's" if first else "from 0, as some box starts there"
    difficult = sum(annotation["iscrowd"] for annotation in annotations)
    regions = f"{difficult} of {len(annotations)} objects have 'difficult' 1: they are ignore regions"
    return [f"pixels count {how}", *([regions] if difficult else [])]


class _Pictures:
    """Finds the pictures that xml files speak of."""

    def __init__(self, root: str):
        self.root = root
        self.by_stem = {os.path.splitext(name)[0]: name for name in pictures_in(root)}

    def of(self, image: _Image) -> str:
        """Of the xml's own name where there is one: copies keep the ``filename`` of what they were copied from."""
        stem = os.path.splitext(os.path.basename(image.file))[0]
        return self.by_stem.get(stem) or image.name or f"{stem}.jpg"


def _xmls(folder: str) -> list[str]:
    """Names of the xml files of a folder, sorted."""
    return sorted(n for n in os.listdir(folder) if n.endswith(".xml")) if os.path.isdir(folder) else []


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """(width, height); some tools write 0 for what they do not know."""
    try:
        return as_size(root.findtext("size/width")), as_size(root.findtext("size/height"))
    except Unfit:
        return None


def _object(element: ElementTree.Element, where: str) -> _Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{where} has no name")
    texts = [element.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    try:
        x0, y0, x1, y1 = corners = [as_number(text) for text in texts]
        difficult = as_flag(element.findtext("difficult"))
    except Unfit as error:
        raise UserError(f"{where}, {name}: a value is {error} ({_shown_box(texts)})") from None
    if x1 < x0 or y1 < y0:
        raise UserError(f"{where}, {name}: its box is {_shown_box(texts)}, where max cannot be below min")
    return _Object(name, corners, difficult)


def _shown_box(texts: Sequence[str | None]) -> str:
    return ", ".join(f"{corner} {shown(text)}" for corner, text in zip(_CORNERS, texts))
