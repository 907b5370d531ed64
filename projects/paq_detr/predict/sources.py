# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Where pictures come from: files, folders, patterns, videos and cameras, as one stream of frames."""

from __future__ import annotations

import difflib
import glob
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.image_file import PICTURES, read_picture
from ..errors import UserError

logger = logging.getLogger(__name__)

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


@dataclass(frozen=True)
class Source:
    """A picture file, a video file or a camera; ``name`` tells it from the others of a call, as a relative path."""

    path: str
    name: str
    kind: str  # "picture", "video" or "camera"


@dataclass(frozen=True)
class Frame:
    """A picture, or one of a video's; ``fault`` says why it could not be read."""

    source: Source
    pixels: np.ndarray | None  # (H, W, 3) uint8 RGB
    number: int = 0  # in a video, from 0
    per_second: float = 0.0  # of a video
    fault: str = ""


def find_sources(wanted: Sequence[str]) -> list[Source]:
    """The pictures and videos that paths, folders, patterns ("*.jpg", "**/*.png") and camera numbers stand for.

    Of a folder, the pictures that lie in it, sorted. A file given twice counts once.

    Raises:
        UserError: one of them leads to nothing, or OpenCV is needed and not there.
    """
    found: dict[str, str] = {}  # kind by path
    for text in wanted:
        text = os.path.expanduser(text)
        if text.isdecimal() and not os.path.exists(text):
            found.setdefault(text, "camera")
        elif "://" in text:
            raise UserError(f"The source {text} is an address: download it first.")
        elif os.path.isdir(text):
            found.update((path, "picture") for path in _in_folder(text))
        elif os.path.isfile(text):
            found.setdefault(os.path.normpath(text), _kind(text))
        elif glob.has_magic(text):
            found.update((path, _kind(path)) for path in _matching(text))
        else:
            raise UserError(f"The source {text} does not exist{_close_to(text)}.")
    for path, kind in found.items():
        if kind != "picture":
            _open_video(path, kind).release()  # what is wrong with it is said before the first picture
    return [Source(path, name, kind) for (path, kind), name in zip(found.items(), _names(list(found.items())))]


def _kind(path: str) -> str:
    return "video" if path.lower().endswith(VIDEOS) else "picture"


def _in_folder(folder: str) -> list[str]:
    names = sorted(os.listdir(folder))
    paths = [os.path.join(folder, name) for name in names if name.lower().endswith(PICTURES) and name[0] != "."]
    if paths:
        return [os.path.normpath(path) for path in paths]
    if not names:
        raise UserError(f"The folder {folder} is empty.")
    hint = ""
    if any(name.lower().endswith(VIDEOS) for name in names):
        hint = "; its videos are named one by one, or by a pattern in quotes"
    elif any(os.path.isdir(os.path.join(folder, name)) for name in names):
        hint = f"; those of its folders are found by '{os.path.join(folder, '**', '*.jpg')}'"
    raise UserError(f"There are no pictures in the folder {folder}{hint}.")


def _matching(pattern: str) -> list[str]:
    matches = sorted(os.path.normpath(path) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    paths = [path for path in matches if path.lower().endswith((*PICTURES, *VIDEOS))]
    if not paths:
        found = f"{len(matches)} files match, none of them a picture" if matches else "no file matches"
        raise UserError(f"The source {pattern}: {found}.")
    return paths


def _close_to(path: str) -> str:
    folder, name = os.path.split(path.rstrip("/"))
    close = difflib.get_close_matches(name, os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
    return f" (did you mean {os.path.join(folder, close[0])}?)" if close else ""


def _names(found: list[tuple[str, str]]) -> list[str]:
    """File names where all differ, else paths below the folder that all are in."""
    names = [f"camera_{path}" if kind == "camera" else os.path.basename(path) for path, kind in found]
    if len(set(names)) == len(names):
        return names
    files = [os.path.abspath(path) for path, kind in found if kind != "camera"]
    root = os.path.commonpath([os.path.dirname(path) for path in files])
    return [
        name if kind == "camera" else os.path.relpath(os.path.abspath(path), root)
        for (path, kind), name in zip(found, names)
    ]


def frames(sources: Sequence[Source]) -> Iterator[Frame]:
    """Every frame of every source; a picture that cannot be read is a frame with a fault."""
    for source in sources:
        if source.kind == "picture":
            try:
                yield Frame(source, read_picture(source.path, "RGB"))
            except ValueError as error:
                yield Frame(source, None, fault=str(error))
        else:
            yield from _video_frames(source)


def count_frames(sources: Sequence[Source]) -> int | None:
    """How many frames there are, as far as videos tell; None with a camera."""
    if any(source.kind == "camera" for source in sources):
        return None
    total = 0
    for source in sources:
        if source.kind == "picture":
            total += 1
        else:
            video = _open_video(source.path, source.kind)
            total += max(int(video.get(_cv2().CAP_PROP_FRAME_COUNT)), 0)
            video.release()
    return total


def _video_frames(source: Source) -> Iterator[Frame]:
    video, number = _open_video(source.path, source.kind), 0
    try:
        per_second = video.get(_cv2().CAP_PROP_FPS) or 25.0
        while True:
            read, pixels = video.read()
            if not read:
                break
            yield Frame(source, np.ascontiguousarray(pixels[..., ::-1]), number, per_second)
            number += 1
    finally:
        video.release()
    if not number:
        yield Frame(source, None, fault=f"the {source.kind} {source.path} holds no picture that can be read")


def _open_video(path: str, kind: str) -> Any:
    video = _cv2().VideoCapture(int(path) if kind == "camera" else path)
    if not video.isOpened():
        reason = "there is none of this number" if kind == "camera" else "it is broken, or of a kind OpenCV cannot read"
        raise UserError(f"The {kind} {path} cannot be opened: {reason}.")
    return video


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "Videos and cameras need OpenCV: pip install paq_detr[video], or opencv-python-headless."
        ) from error
    return cv2
