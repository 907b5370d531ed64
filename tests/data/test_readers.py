# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Whoever opens a picture, for training, evaluation, prediction, a check or a sheet, sees the same 8-bit pixels."""

import numpy as np
import pytest
from PIL import Image

from paq_detr.data import DetrDatasetMapper
from paq_detr.data.image_file import image_size, look_at_header, look_at_picture, to_8_bit
from paq_detr.predict.arrays import as_rgb
from paq_detr.predict.sources import find_sources, frames

RAMP = np.tile(np.linspace(0, 1, 40), (30, 1))
COLOURS = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)


def _turned(path):
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was held on its side: to be turned a quarter clockwise
    Image.fromarray(COLOURS).save(path, exif=exif)


def _palette(path):
    Image.fromarray(COLOURS).quantize(16).save(path)


FILES = {  # how a file is made, and the pixels that all shall see; None: whatever they are, the same
    "8 bits.png": (lambda path: Image.fromarray(COLOURS).save(path), COLOURS),
    "grey.png": (lambda path: Image.fromarray(COLOURS[..., 0]).save(path), COLOURS[..., :1].repeat(3, 2)),
    "16 bits.png": (lambda path: Image.fromarray((RAMP * 65535).astype(np.uint16)).save(path), RAMP * 255),
    "12 of 16 bits.png": (lambda path: Image.fromarray((RAMP * 4095).astype(np.uint16)).save(path), RAMP * 255),
    "12 bits.tiff": (lambda path: Image.fromarray((RAMP * 4095).astype(np.uint16)).save(path), RAMP * 255),
    "int32.tiff": (lambda path: Image.fromarray((RAMP * 1e6).astype(np.int32)).save(path), RAMP * 255),
    "fractions.tiff": (lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path), RAMP * 255),
    "large floats.tiff": (lambda path: Image.fromarray((RAMP * 5e4).astype(np.float32)).save(path), RAMP * 255),
    "alpha.png": (lambda path: Image.fromarray(np.dstack([COLOURS, COLOURS[..., 0]])).save(path), COLOURS),
    "turned.png": (_turned, np.rot90(COLOURS, -1)),
    "palette.png": (_palette, None),
    "cmyk.jpg": (lambda path: Image.fromarray(COLOURS).convert("CMYK").save(path), None),
    "two frames.tiff": (
        lambda path: Image.fromarray(COLOURS).save(path, save_all=True, append_images=[Image.fromarray(255 - COLOURS)]),
        COLOURS,
    ),
}


def mapped(path, is_train):
    width, height = image_size(path)
    mapper = DetrDatasetMapper(is_train, augmentations=[], image_format="RGB", num_classes=1)
    record = {"file_name": path, "image_id": 1, "height": height, "width": width, "annotations": []}
    return mapper(record)["image"].numpy().transpose(1, 2, 0)


READERS = {
    "train": lambda path: mapped(path, True),
    "eval": lambda path: mapped(path, False),
    "Detector": as_rgb,
    "predict": lambda path: next(frames(find_sources([path]))).pixels,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("name", FILES)
def test_every_reader_sees_the_same(tmp_path, name, reader):
    write, wanted = FILES[name]
    path = str(tmp_path / name)
    write(path)
    pixels = reader(path)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3
    if wanted is None:
        assert np.array_equal(pixels, as_rgb(path))
    else:
        wanted = wanted if wanted.ndim == 3 else wanted[..., None]
        assert np.abs(pixels - wanted.astype(np.float64)).max() <= 1  # of rounding
    for size in (image_size(path), look_at_header(path)[0], look_at_picture(path)[0]):
        assert size == pixels.shape[1::-1]


@pytest.mark.parametrize("reader", [*READERS.values(), look_at_picture], ids=[*READERS, "check-data"])
def test_every_reader_refuses_a_picture_with_nan(tmp_path, reader):
    pixels = RAMP.astype(np.float32)
    pixels[3, 3] = np.nan
    path = str(tmp_path / "x.tiff")
    Image.fromarray(pixels).save(path)
    message = "x.tiff cannot be read: it holds values that are NaN or infinite"
    if reader is READERS["predict"]:  # goes on with other pictures
        assert message in next(frames(find_sources([path]))).fault
        return
    with pytest.raises(ValueError, match=message):
        reader(path)


def test_an_array_goes_by_the_rule_of_files(tmp_path):
    pixels = (RAMP * 4095).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(as_rgb(pixels), as_rgb(tmp_path / "x.png"))
    assert np.array_equal(as_rgb(pixels)[..., 0], to_8_bit(pixels))
