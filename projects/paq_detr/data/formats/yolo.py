# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""YOLO as Ultralytics reads it (https://docs.ultralytics.com/datasets/detect): one txt file an image.

``data.yaml`` names the classes and, for each split, folders of pictures or txt lists of them; without it there are
folders images and labels. A picture's labels stand where "labels" replaces the last "images" in its path, or beside it;
a picture without them has no objects. A line is a class id and x, y of the centre, width and height, or the corners of
a polygon, all in shares of the image.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from ...errors import UserError
from ..image_file import PICTURES
from ..json_file import open_file
from ..json_values import Unfit, as_number, shown
from ..pictures import missing_files
from .source import Content, Source, decoded, pictures_in, read_class_file

_SPLITS = ("train", "val", "valid", "test")
_CLASS_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
_SLACK = 0.01  # of the image: rounding, and polygons that end a little outside


@dataclass(frozen=True)
class _Layout:
    """Where a dataset's parts are."""

    places: Mapping[str, list[str]]  # folders of pictures and txt lists, by split
    names: Sequence[str]  # of the classes; empty where nothing tells them
    names_file: str  # that tells them
    keypoints: int = 0  # numbers behind a box, which are not read


class YoloSource(Source):
    key, title, options = "yolo", "YOLO", ("classes",)

    @classmethod
    def find(cls, path: str) -> dict[str, Source]:
        layout = _find_layout(path)
        return {split: cls(path, split) for split in layout.places} if layout else {}

    def find_images(self) -> str:
        folders = {os.path.dirname(picture) for picture in self._pictures}
        return os.path.commonpath(folders) if folders else os.path.dirname(self.path)

    @cached_property
    def _layout(self) -> _Layout:
        layout = _find_layout(self.path)
        if layout is None:
            raise UserError(f"{self.path} is no longer a YOLO dataset")
        return layout

    @cached_property
    def _pictures(self) -> list[str]:
        """Paths of the split's pictures, each once."""
        return list(dict.fromkeys(p for place in self._layout.places[self.split] for p in self._pictures_of(place)))

    def _pictures_of(self, place: str) -> list[str]:
        """Paths of the pictures below a folder, or of those that a txt list names."""
        if os.path.isdir(place):
            return _files_below(place, PICTURES)
        with open_file(place) as file:
            names = [line.strip() for line in decoded(file.read(), place).split("\n") if line.strip()]
        folder = os.path.dirname(place)
        pictures = [os.path.normpath(os.path.join(folder, name)) for name in names]
        missing = missing_files(pictures)
        if not missing:
            return pictures
        with self.part():
            raise UserError(f"{len(missing)} of {len(pictures)} pictures that {place} names are missing; the first is "
                            f"{missing[0]}")  # fmt: skip
        return [picture for picture in pictures if picture not in set(missing)]

    def content(self) -> Content:
        names, names_file = self._names()
        pictures, labels = self._pictures, list(map(label_file, self._pictures))
        there = set(labels) - set(missing_files(labels))
        notes, doubts = self._check_labels(labels, there)
        images, annotations = [], []
        for number, (picture, label, size) in enumerate(zip(pictures, labels, self.sizes_of(pictures)), start=1):
            if size is None:
                continue
            file_name = os.path.relpath(picture, self.image_root)
            images.append({"id": number, "file_name": file_name, "width": size[0], "height": size[1]})
            for where, line in self._lines(label) if label in there else ():
                with self.part():
                    category, *shape = _numbers(line, where)
                    if not (category == int(category) and 0 <= category < len(names)):
                        raise UserError(f"{where}: the class is {category:g}, must be a whole number from 0 to "
                                        f"{len(names) - 1}, as {names_file} names {len(names)} classes")  # fmt: skip
                    known = {"id": len(annotations) + 1, "image_id": number, "category_id": int(category)}
                    shape = _shape(shape, *size, self._layout.keypoints, where)
                    annotations.append({**known, **shape, "iscrowd": 0})
        categories = [{"id": number, "name": name} for number, name in enumerate(names)]
        return Content({"images": images, "annotations": annotations, "categories": categories}, notes, doubts)

    def _lines(self, label: str) -> list[tuple[str, str]]:
        """The lines of a label file, each with its place for messages."""
        with self.part(), open_file(label) as file:
            lines = enumerate(decoded(file.read(), label).split("\n"), start=1)
            return [(f"{label}, line {number}", line) for number, line in lines if line.strip()]
        return []

    def _names(self) -> tuple[Sequence[str], str]:
        """The classes, and the file that names them."""
        if self.classes:
            return read_class_file(self.classes), self.classes
        if not self._layout.names:
            raise UserError(f"{self.path}: neither a data.yaml nor {' nor '.join(_CLASS_FILES)} names the classes; "
                            "name a file of them, one a line, by classes")  # fmt: skip
        return self._layout.names, self._layout.names_file

    def _check_labels(self, labels: Sequence[str], there: set[str]) -> tuple[list[str], list[str]]:
        """Notes on pictures without a label file, and doubts about label files without a picture."""
        if not labels:
            raise UserError(f"{self.path}: there is no picture in {', '.join(self._layout.places[self.split])}")
        if not there:
            raise UserError(f"{self.path}: none of the {len(labels)} pictures has a label file; that of the first "
                            f"would be {labels[0]}")  # fmt: skip
        folders = [place for place in self._layout.places[self.split] if os.path.isdir(place)]
        texts = [text for place in folders for text in _files_below(label_folder(place), (".txt",))]
        texts = [text for text in texts if os.path.basename(text) != "classes.txt"]
        lonely = sorted(set(texts) - there)
        bare = len(labels) - len(there)
        notes = [f"{bare} of {len(labels)} pictures have no label file, hence no object"] if bare else []
        if not lonely:
            return notes, []
        return notes, [f"{len(lonely)} of {len(texts)} label files have no picture; the first is {lonely[0]}"]


def label_file(picture: str) -> str:
    """Where the labels of a picture are looked for."""
    return os.path.splitext(os.path.join(label_folder(os.path.dirname(picture)), os.path.basename(picture)))[0] + ".txt"


def label_folder(folder: str) -> str:
    """The folder of the labels of a folder's pictures."""
    parts = folder.split(os.sep)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return os.sep.join(parts)


# ----------------------------------------------------------------------------------------------------------------------
# Lines


def _numbers(line: str, where: str) -> list[float]:
    try:
        return [as_number(value) for value in line.split()]
    except Unfit:
        raise UserError(f"{where}: {shown(line)} must be a class id and numbers, parted by blanks") from None


def _shape(numbers: list[float], width: int, height: int, keypoints: int, where: str) -> dict[str, Any]:
    """``bbox`` and, of a polygon, ``segmentation``, in pixels."""
    if len(numbers) == 4 + keypoints:
        numbers = numbers[:4]
    elif keypoints:
        raise UserError(f"{where} holds {len(numbers)} numbers behind the class, must hold a box and {keypoints} "
                        "numbers of keypoints, as kpt_shape says")  # fmt: skip
    elif len(numbers) < 6 or len(numbers) % 2:
        hint = ", as if its last were a score" if len(numbers) == 5 else ""
        raise UserError(f"{where} holds {len(numbers)} numbers behind the class{hint}, must hold x, y, width and "
                        "height, or x, y of three corners or more")  # fmt: skip
    odd = next((value for value in numbers if not -_SLACK <= value <= 1 + _SLACK), None)
    if odd is not None:
        raise UserError(f"{where} holds {odd:g}, must be shares of the image from 0 to 1{_pixels(odd)}")
    if len(numbers) == 4:
        x, y, w, h = numbers
        return {"bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]}
    xs, ys = [x * width for x in numbers[::2]], [y * height for y in numbers[1::2]]
    polygon = [value for corner in zip(xs, ys) for value in corner]
    x, y = min(xs), min(ys)
    return {"bbox": [x, y, max(xs) - x, max(ys) - y], "segmentation": [polygon]}


def _pixels(value: float) -> str:
    return "; it is probably in pixels" if value > 2 else ""


# ----------------------------------------------------------------------------------------------------------------------
# Where things are


def _find_layout(path: str) -> _Layout | None:
    """None where ``path`` is no YOLO dataset."""
    if os.path.isfile(path):
        return _of_yaml(path) if path.endswith((".yaml", ".yml")) else None
    yamls = [file for ending in ("yaml", "yml") for file in glob.glob(os.path.join(glob.escape(path), f"*.{ending}"))]
    described = [layout for file in sorted(yamls) if (layout := _of_yaml(file, ask=True))]
    if len(described) > 1:
        raise UserError(f"{path} holds {len(described)} yaml files that describe YOLO data: name one of them")
    return described[0] if described else _of_folders(path)


def _of_yaml(file: str, ask: bool = False) -> _Layout | None:
    """What a data.yaml says; with ``ask`` None where it is none.

    Raises:
        UserError: it is none, or says something that cannot be.
    """
    with open_file(file) as stream:
        try:
            content = yaml.safe_load(decoded(stream.read(), file))
        except (yaml.YAMLError, UserError, RecursionError) as error:
            if ask:
                return None
            raise UserError(f"{file} is no yaml: {' '.join(str(error).split())}") from None
    splits = [split for split in _SPLITS if isinstance(content, dict) and content.get(split)]
    if not splits or "names" not in content:
        if ask:
            return None
        raise UserError(f"{file} is no data.yaml of YOLO data, which names classes (names) and splits (train, val)")
    names = _names_of(content["names"], content.get("nc"), file)
    keypoints = content.get("kpt_shape") or [0, 0]
    return _Layout(
        {split: _places(content[split], split, content.get("path"), file) for split in splits},
        names,
        file,
        keypoints[0] * keypoints[1],
    )


def _names_of(names: Any, count: Any, file: str) -> list[str]:
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(type(name) in (str, int, float, bool) for name in names):
        raise UserError(f"{file}: names is {shown(names)}, must be a list of class names, or these by number from 0 on")
    if count not in (None, len(names)):
        raise UserError(f"{file}: nc is {shown(count)}, but there are {len(names)} names")
    return [str(name) for name in names]


def _places(value: Any, split: str, root: Any, file: str) -> list[str]:
    """Folders and lists of a split, which start at ``root``, or else at the yaml's folder."""
    folder = os.path.dirname(file)
    roots = [os.path.join(folder, root), root, folder] if isinstance(root, str) else [folder]
    places = []
    for name in value if isinstance(value, list) else [value]:
        if not isinstance(name, str):
            raise UserError(f"{file}: {split} is {shown(value)}, must be a folder, a txt list or several of them")
        # Roboflow writes "../train/images" for what lies beside the yaml.
        tries = [os.path.normpath(os.path.join(start, n)) for n in (name, name.removeprefix("../")) for start in roots]
        found = next((place for place in tries if os.path.exists(place)), None)
        if found is None:
            raise UserError(f"{file}: {split} is {name}, but there is no {' and no '.join(dict.fromkeys(tries))}")
        places.append(found)
    return places


def _of_folders(path: str) -> _Layout | None:
    """images and labels, or both in each split's folder, or pictures and labels side by side with classes.txt."""
    images, places = os.path.join(path, "images"), {}
    for split in _SPLITS:
        for folder in (os.path.join(images, split), os.path.join(path, split, "images")):
            if os.path.isdir(folder) and os.path.isdir(label_folder(folder)):
                places[split] = [folder]
    if not places and os.path.isdir(images) and _files_below(os.path.join(path, "labels"), (".txt",)):
        places[""] = [images]
    if not places and pictures_in(path) and os.path.isfile(os.path.join(path, "classes.txt")):
        places[""] = [path]
    if not places:
        return None
    file = next((f for f in (os.path.join(path, name) for name in _CLASS_FILES) if os.path.isfile(f)), "")
    return _Layout(places, read_class_file(file) if file else [], file)


def _files_below(folder: str, endings: tuple[str, ...]) -> list[str]:
    return sorted(
        os.path.join(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(endings) and name[0] != "."
    )
