# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What all dataset formats have in common: a source, which is one split of a dataset on disk."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from ...errors import UserError
from ..image_file import PICTURES, image_sizes, sizes_or_faults
from ..json_file import open_file
from ..pictures import local_name

_IMAGE_FOLDERS = ("images", "Images", "JPEGImages", "imgs")  # beside an annotation file, or beside its folder


class Content(NamedTuple):
    """What a source holds."""

    coco: Any  # the content of a COCO json, not checked yet
    notes: Sequence[str] = ()  # what was decided on the way, one sentence each
    doubts: Sequence[str] = ()  # what is probably wrong with the files


@dataclass(frozen=True)
class Source(ABC):
    """One split of a dataset on disk: what an entry of ``DATASETS.FILES`` means."""

    path: str  # a file or a folder
    split: str = ""  # which of those in ``path``; empty where that holds one alone
    images: str = ""  # folder that the pictures' names start at; empty: looked for
    classes: str = ""  # file of class names, one a line; empty: the data tell
    box: str = ""  # of odgt files: full, visible or head
    # Where sentences on faulty lines, files and pictures go, which are left out then; None: the first one is raised.
    faults: list[str] | None = field(default=None, compare=False, repr=False)

    key: ClassVar[str]  # of ``format`` in an entry
    title: ClassVar[str]
    options: ClassVar[tuple[str, ...]]  # which of images, classes and box the format knows

    @classmethod
    @abstractmethod
    def find(cls, path: str) -> dict[str, Source]:
        """The splits of ``path``, which exists, by name; empty where it is not of this format."""

    @cached_property
    def image_root(self) -> str:
        """Folder that the pictures' names start at.

        Raises:
            UserError: it is not given, and the pictures are in none of the usual places.
        """
        return self.images or self.find_images()

    @abstractmethod
    def find_images(self) -> str:
        """That folder, where it is not given."""

    @abstractmethod
    def content(self) -> Content:
        """Read it all.

        Raises:
            UserError, ValueError: one sentence with file, line where there are lines, and value.
        """

    @contextmanager
    def part(self) -> Iterator[None]:
        """Around the reading of one line, file or picture: what is wrong with it goes to ``faults``, or is raised."""
        try:
            yield
        except ValueError as error:
            if self.faults is None:
                raise
            self.faults.append(str(error))

    @property
    def open_classes(self) -> bool:
        """Whether the classes are those that the split happens to hold, so that another split may have more."""
        return False

    @cached_property
    def _sizes(self) -> dict[str, tuple[int, int]]:
        return {}

    def sizes_of(self, files: Sequence[str]) -> list[tuple[int, int] | None]:
        """(width, height) of pictures from their headers, each of which is read once in this source's life; None of one
        that cannot be read and has gone to ``faults``."""
        new = [file for file in files if file not in self._sizes]
        if self.faults is None:
            self._sizes.update(zip(new, image_sizes(new)))
        else:
            sizes = dict(zip(new, sizes_or_faults(new)))
            self.faults.extend(str(size) for size in sizes.values() if isinstance(size, ValueError))
            self._sizes.update((file, size) for file, size in sizes.items() if not isinstance(size, ValueError))
        return [self._sizes.get(file) for file in files]

    def fill_sizes(self, coco: dict[str, Any]) -> None:
        """Give those of a COCO json's images that have no width and height what their files say; those whose files
        have gone to ``faults`` are left out with their objects."""
        unknown = [image for image in coco["images"] if not ("width" in image and "height" in image)]
        files = [local_name(self.image_root, image["file_name"]) for image in unknown]
        gone = set()
        for image, size in zip(unknown, self.sizes_of(files)):
            if size is None:
                gone.add(image["id"])
            else:
                image.update(height=size[1], width=size[0])
        if gone:
            coco["images"] = [image for image in coco["images"] if image["id"] not in gone]
            coco["annotations"] = [each for each in coco["annotations"] if each["image_id"] not in gone]

    def entry(self, name: str) -> dict[str, str]:
        """The entry of ``DATASETS.FILES`` that means this source."""
        keys = ("path", "split", "images", "classes", "box")
        return {"name": name, **{key: value for key in keys if (value := getattr(self, key))}}

    def __str__(self) -> str:
        split = f", split {self.split}" if self.split else ""
        return f"{self.title} {self.path}{split}, images in {self.image_root}"


def first_existing(annotations: str, name: str, more: Iterable[str] = ()) -> str:
    """The folder of the picture ``name`` that an annotation file speaks of.

    Raises:
        UserError: it is in none of the usual places.
    """
    folder = os.path.dirname(annotations)
    above = os.path.dirname(os.path.abspath(folder or "."))
    above = os.path.relpath(above) if not os.path.isabs(folder) else above
    places = [folder, *(os.path.join(start, usual) for start in (folder, above) for usual in (*_IMAGE_FOLDERS, *more))]
    for place in dict.fromkeys(places):
        if os.path.isfile(os.path.join(place, name)):
            return place
    raise UserError(
        f"{annotations}: its first picture, {name}, is in none of the folders {', '.join(p or '.' for p in places)}: "
        "name the folder of the pictures"
    )


def read_class_file(path: str) -> list[str]:
    """Class names, one a line; empty lines at the end do not count.

    Raises:
        UserError, ValueError: the file cannot be read, is empty, or names a class twice or a line names none.
    """
    with open_file(path) as file:
        names = [name.strip() for name in decoded(file.read(), path).rstrip().split("\n")]
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{path}, line {number} is empty, must be the name of a class")
        if name in names[: number - 1]:
            raise UserError(f"{path}, line {number} names the class {name!r} again")
    return names


def decoded(text: bytes, where: str) -> str:
    """A file's text, in UTF-8 with or without a byte order mark, with "\\n" at the end of lines."""
    try:
        return text.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is no text in UTF-8 (byte {error.start})") from None


def pictures_in(folder: str) -> list[str]:
    """Names of the pictures that lie in a folder, sorted; none where there is no such folder."""
    if not os.path.isdir(folder):
        return []
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(PICTURES) and name[0] != ".")
