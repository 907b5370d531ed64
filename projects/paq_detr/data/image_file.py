# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Picture files: their size and their pixels, by one way for training, evaluation and prediction.

Pixels become 8 bit by one rule, ``to_8_bit``. Every fault of a file is a ``ValueError`` that names it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

logger = logging.getLogger(__name__)

THREADS = 16  # that read headers
MAX_PIXELS = 178_956_970  # what Pillow itself refuses to go beyond
#: Endings of picture files.
PICTURES = (
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip

_EXIF_ORIENTATION = 0x112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEEP_MODES = ("I", "F")  # Pillow's for more than 8 bits; also "I;16" and its kin
_BITS = (8, 10, 12, 14, 16)  # of cameras and scanners, whose values stand in 16

_told_of_depth = False


def allow_pixels(limit: int) -> None:
    """Read pictures of up to ``limit`` pixels (0: of any size) from now on in this process.

    Sets Pillow's own limit, which it knows at half of what it refuses.
    """
    Image.MAX_IMAGE_PIXELS = -(-limit // 2) if limit else None
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def image_size(file_name: str) -> tuple[int, int]:
    """(width, height) of an image file as it is seen, that is after its EXIF rotation; reads the header alone.

    Raises:
        ValueError: naming the file, if it is missing, broken or too large.
    """
    return look_at_header(file_name)[0]


def image_sizes(file_names: Sequence[str]) -> list[tuple[int, int]]:
    """``image_size`` of many files at once: reading headers waits for the disk.

    Raises:
        ValueError: counting the files that cannot be read, with the first one's sentence.
    """
    sizes = sizes_or_faults(file_names)
    faults = [size for size in sizes if isinstance(size, ValueError)]
    if faults:
        raise ValueError(f"{len(faults)} of {len(sizes)} pictures are faulty; the first: {faults[0]}")
    return sizes


def sizes_or_faults(file_names: Sequence[str]) -> list[tuple[int, int] | ValueError]:
    """As ``image_sizes``, with the error of each file that cannot be read in its place."""
    return list(in_threads(lambda file_name: _or_fault(image_size, file_name), file_names))


def in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """``map``, by threads: for what waits for the disk, or decodes pictures."""
    with ThreadPoolExecutor(THREADS) as threads:
        yield from threads.map(function, items)


def look_at_picture(file_name: str) -> tuple[tuple[int, int], list[str]]:
    """((width, height), traits) of a picture that is read to its last pixel; traits are keys of ``TRAITS``.

    Raises:
        ValueError: as ``read_picture``.
    """
    with opened(file_name) as image:
        turn = _orientation(image)
        traits = {
            "deep": bool(_depth(image)),
            "turned": (turn or 1) > 1,
            "cmyk": image.mode == "CMYK",
            "transparent": image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info,
            "frames": getattr(image, "n_frames", 1) > 1,
        }
        pixels = picture_pixels(image, "RGB", _TURNS.get(turn))
        return pixels.shape[1::-1], [name for name, there in traits.items() if there]


def _or_fault(function: Callable[[str], Any], file_name: str) -> Any:
    try:
        return function(file_name)
    except ValueError as error:
        return error


def read_picture(file_name: str, image_format: str) -> np.ndarray:
    """The pixels of an image file, EXIF rotation applied, as (H, W, C) uint8 in ``image_format``.

    Raises:
        ValueError: naming the file, if it is missing, broken or too large, or holds NaN.
    """
    with opened(file_name) as image:
        depth = _depth(image)
        if depth:
            _tell_of_depth(file_name, depth)
        return picture_pixels(image, image_format, _TURNS.get(_orientation(image)))


def picture_pixels(image: Image.Image, image_format: str, turn: Image.Transpose | None = None) -> np.ndarray:
    """The pixels of Pillow's image of any mode as (H, W, C) uint8 in ``image_format``, turned by ``turn``.

    Raises:
        ValueError: it holds NaN.
    """
    from detectron2.data.detection_utils import convert_PIL_to_numpy  # the evaluation of files does without detectron2

    if _is_deep(image):
        unsigned = _raw_mode(image) == "I;32N"  # which Pillow counts on from 2^31 below 0
        pixels = np.asarray(image)
        image = Image.fromarray(to_8_bit(pixels.view(np.uint32) if unsigned else pixels))
    return convert_PIL_to_numpy(image if turn is None else image.transpose(turn), image_format)


def to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """Pixels of any number type as uint8.

    Integers from 0 to 65535 count as of the smallest of 8, 10, 12, 14 and 16 bits that holds the largest one, so that
    the 12 bits of a camera in a 16-bit file are neither black nor white. Fractions from 0 to 1 are multiplied by 255,
    and floats from 0 to 255 stay. Whatever else is stretched from its smallest to its largest value.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_ or not pixels.size:
        return pixels.astype(np.uint8) * 255
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it holds values that are NaN or infinite")
    if np.issubdtype(pixels.dtype, np.integer):
        low, high = (0, _white(high)) if 0 <= low and high < 2**16 else (low, high)
    elif 0 <= low and high <= 255:
        low, high = 0, 1 if high <= 1 else 255
    scaled = (pixels.astype(np.float64) - low) * (255 / max(high - low, 1e-300))
    return (scaled + 0.5).astype(np.uint8)


def _white(largest: float) -> int:
    return next(2**bits - 1 for bits in _BITS if largest < 2**bits)


def look_at_header(file_name: str) -> tuple[tuple[int, int], str]:
    """((width, height), mode) of a picture as ``image_size`` and as ``tell_of_deep_pictures`` want them; the mode is
    empty where the picture is 8-bit.

    Raises:
        ValueError: as ``image_size``.
    """
    with opened(file_name) as image:
        depth = _depth(image)
        return image.size[::-1] if (_orientation(image) or 1) >= 5 else image.size, depth


def tell_of_deep_pictures(dataset: str, modes: Sequence[str]) -> None:
    """One warning that counts the pictures that are not 8-bit, by the modes of those that were looked at."""
    global _told_of_depth
    deep = [mode for mode in modes if mode]
    if deep:
        _told_of_depth = True  # also for the loader's processes, which this one forks
        logger.warning("%d of %d pictures looked at in %s are not 8-bit (Pillow's mode %s): %s",
                       len(deep), len(modes), dataset, ", ".join(sorted(set(deep))), _RULE)  # fmt: skip


_RULE = (
    "integers are taken as of 8, 10, 12, 14 or 16 bits, whichever the largest value of the file needs (of 16-bit "
    "colours, the upper 8 bits count), fractions of 1 as 0..255, others are stretched from their smallest to their "
    "largest value"
)


#: What is worth to know of pictures, though they can be read.
TRAITS = {
    "deep": f"are not 8-bit: {_RULE}",
    "turned": "have an EXIF rotation, which is applied before their boxes are",
    "cmyk": "are CMYK, and become RGB",
    "transparent": "have an alpha channel, which is dropped",
    "frames": "have several frames, of which the first is read",
}


def size_fault(file_name: str, size: tuple[int, int], wanted: tuple[int, int]) -> str:
    """What is wrong with the picture's (width, height) where its annotations say ``wanted``; empty if they agree."""
    if size == tuple(wanted):
        return ""
    hint = ""
    if size[::-1] == tuple(wanted):
        hint = "; perhaps the annotations swap them, or are of the image before its EXIF rotation"
    return f"{file_name} is {size[1]} x {size[0]} (height x width), its annotations say {wanted[1]} x {wanted[0]}{hint}"


def _tell_of_depth(file_name: str, mode: str) -> None:
    global _told_of_depth
    if not _told_of_depth:
        _told_of_depth = True
        logger.warning("%s is not 8-bit (Pillow's mode %s): %s; this is said once", file_name, mode, _RULE)


def _depth(image: Image.Image) -> str:
    """The mode of a picture that is not 8-bit, else empty. Pillow itself cuts 16-bit colours down to 8."""
    if _is_deep(image):
        return image.mode
    return f"{image.mode};16" if ";16" in _raw_mode(image) else ""


def _raw_mode(image: Image.Image) -> str:
    """How the file holds its pixels, by Pillow's name; known until they are loaded."""
    arguments = next((tile[3] for tile in getattr(image, "tile", ())), "")
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _is_deep(image: Image.Image) -> bool:
    return image.mode in _DEEP_MODES or image.mode.startswith("I;")


@contextmanager
def opened(file_name: str) -> Iterator[Image.Image]:
    """The file as Pillow's image; whatever goes wrong in the block becomes a ``ValueError`` that names the file."""
    try:
        with _open(file_name) as file, Image.open(file) as image:
            yield image
    except Exception as error:  # broken files raise nearly anything: SyntaxError, struct.error, IndexError, ...
        raise ValueError(f"the image {file_name} cannot be read: {_reason(error)}") from error


def _open(file_name: str) -> BinaryIO:
    if "://" in file_name and not os.path.isfile(file_name):  # of a dataset that other code registered
        from detectron2.utils.file_io import PathManager

        return PathManager.open(file_name, "rb")
    return open(file_name, "rb")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture of a known format, or broken"
    if isinstance(error, Image.DecompressionBombError):
        return f"{str(error).split(', could')[0]}; INPUT.MAX_PIXELS (0: no limit) allows larger ones"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "it does not fit into the memory"
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; None where there is none, or a broken one."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Pillow raises nearly anything for a broken EXIF; the picture can be read all the same
        return None
    return orientation if isinstance(orientation, int) and orientation in _TURNS else None
