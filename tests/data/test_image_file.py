# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from paq_detr.data import image_file, read_image
from paq_detr.data.image_file import (
    MAX_PIXELS,
    allow_pixels,
    image_size,
    look_at_header,
    tell_of_deep_pictures,
    to_8_bit,
)

RAMP = np.tile(np.linspace(0, 1, 256), (8, 1))


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(image_file, "_told_of_depth", False)
    yield
    allow_pixels(MAX_PIXELS)


DEEP = {
    "16 bits": ("x.png", (RAMP * 65535).astype(np.uint16), 255),
    "12 of 16 bits": ("x.png", (RAMP * 4095).astype(np.uint16), 255),
    "10 of 16 bits": ("x.png", (RAMP * 1023).astype(np.uint16), 255),
    "8 of 16 bits": ("x.png", (RAMP * 255).astype(np.uint16), 255),
    "a dark one of 12 bits": ("x.png", (RAMP * 2100).astype(np.uint16), 131),
    "16 bits in a tiff": ("x.tiff", (RAMP * 65535).astype(np.uint16), 255),
    "16 bits in int32": ("x.tiff", (RAMP * 65535).astype(np.int32), 255),
    "12 bits in int32": ("x.tiff", (RAMP * 4095).astype(np.int32), 255),
    "more than 16 bits": ("x.tiff", (RAMP * 1e6).astype(np.int32), 255),
    "signed": ("x.tiff", (RAMP * 4000 - 1000).astype(np.int32), 255),
    "fractions": ("x.tiff", RAMP.astype(np.float32), 255),
    "floats of 8 bits": ("x.tiff", (RAMP * 255).astype(np.float32), 255),
    "large floats": ("x.tiff", (RAMP * 65535).astype(np.float32), 255),
    "negative floats": ("x.tiff", (RAMP * 2 - 1).astype(np.float32), 255),
}


@pytest.mark.parametrize("name, pixels, brightest", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
def test_a_picture_of_more_than_8_bits_is_neither_black_nor_white(tmp_path, name, pixels, brightest, image_format):
    Image.fromarray(pixels).save(tmp_path / name)
    read = read_image(str(tmp_path / name), image_format)
    assert read.dtype == np.uint8 and read.shape == (8, 256, 1 if image_format == "L" else 3)
    assert np.abs(read[..., 0] - RAMP * brightest).max() <= 1
    assert (read == read[..., :1]).all()


def test_an_8_bit_picture_and_its_copy_in_16_bits_are_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7)).astype(np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "8.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert np.array_equal(read_image(str(tmp_path / "8.png"), "RGB"), read_image(str(tmp_path / "16.png"), "RGB"))


def test_flat_pictures_do_not_divide_by_zero():
    for value, kind, wanted in ((0, np.uint16, 0), (65535, np.uint16, 255), (-5, np.int32, 0), (0.5, np.float32, 128)):
        assert (to_8_bit(np.full((2, 2), value, kind)) == wanted).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_float_picture_with_nan_is_refused(tmp_path, value):
    pixels = RAMP.astype(np.float32)
    pixels[3, 3] = value
    Image.fromarray(pixels).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="x.tiff cannot be read: it holds values that are NaN or infinite"):
        read_image(str(tmp_path / "x.tiff"), "RGB")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_8_bit_modes_are_converted_as_before_without_a_word(tmp_path, mode, caplog):
    from detectron2.data.detection_utils import read_image as detectron2s

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)).convert(mode)
    file = str(tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png"))
    picture.save(file)
    assert np.array_equal(read_image(file, "RGB"), detectron2s(file, "RGB"))
    assert not caplog.records


def test_the_rule_is_said_once(tmp_path, caplog):
    Image.fromarray((RAMP * 4095).astype(np.uint16)).save(tmp_path / "x.png")
    for _ in range(3):
        read_image(str(tmp_path / "x.png"), "RGB")
    assert len(caplog.records) == 1 and "x.png is not 8-bit (Pillow's mode I;16): integers" in caplog.messages[0]


def test_the_deep_pictures_of_a_dataset_are_counted_and_reading_adds_no_word(tmp_path, caplog):
    files = [str(tmp_path / f"{i}.png") for i in range(5)]
    for i, file in enumerate(files):
        Image.fromarray((RAMP * 255).astype(np.uint16 if i < 2 else np.uint8)).save(file)
    tell_of_deep_pictures("dataset 'x'", [look_at_header(file)[1] for file in files])
    read_image(files[0], "RGB")
    assert [m.split(":")[0] for m in caplog.messages] == [
        "2 of 5 pictures looked at in dataset 'x' are not 8-bit (Pillow's mode I;16)"
    ]


def png16(pixels, colour_type):
    """A PNG of 16 bits a channel, which Pillow cannot write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("colour_type, channels", [(2, 3), (4, 2), (6, 4)], ids=["RGB", "grey with alpha", "RGBA"])
def test_of_16_bit_colours_the_upper_8_count_and_this_is_said(tmp_path, caplog, colour_type, channels):
    pixels = (np.tile(RAMP[..., None], channels) * 65535).astype(np.uint16)
    (tmp_path / "x.png").write_bytes(png16(pixels, colour_type))
    assert np.abs(read_image(str(tmp_path / "x.png"), "RGB")[..., 0] - RAMP * 255).max() <= 1
    assert len(caplog.records) == 1 and "x.png is not 8-bit" in caplog.messages[0]
    assert "of 16-bit colours, the upper 8 bits count" in caplog.messages[0]


def other_files():
    """Pictures of the ramp as other programs write them."""
    words = (RAMP * 65535).astype(">u2")
    return {
        "pgm of 16 bits": b"P5 256 8 65535\n" + words.tobytes(),
        "pgm of 12 bits": b"P5 256 8 4095\n" + (RAMP * 4095).astype(">u2").tobytes(),
        "pgm up to 100": b"P5 256 8 100\n" + (RAMP * 100).astype("u1").tobytes(),
        "ppm of 16 bits": b"P6 256 8 65535\n" + np.stack([words] * 3, -1).tobytes(),
        "pfm": b"Pf 256 8 -1\n" + RAMP.astype("<f4").tobytes(),
        "tiff of signed 16 bits": tiff(16, 2, (RAMP * 65535 - 32768).astype("<i2")),
        "tiff of 32 bits": tiff(32, 1, (RAMP * 4294967295).astype("<u4")),
    }


def tiff(bits, kind, pixels):
    """A bare TIFF of one grey strip; kind 1: unsigned, 2: signed, 3: float."""
    data = pixels.tobytes()
    height, width = pixels.shape
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height),
               (279, len(data)), (339, kind)]  # fmt: skip
    table = b"".join(struct.pack("<HHII", key, 4, 1, value) for key, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)


@pytest.mark.parametrize("kind", other_files())
def test_deep_files_of_other_programs_are_neither_black_nor_white(tmp_path, kind):
    (tmp_path / "x").write_bytes(other_files()[kind])
    assert np.abs(read_image(str(tmp_path / "x"), "RGB")[..., 1] - RAMP * 255).max() <= 3


@pytest.mark.parametrize("bits, kind, dtype", [(64, 3, "<f8"), (16, 3, "<f2"), (24, 1, "<u4")])
def test_deep_files_that_pillow_does_not_know_are_refused(tmp_path, bits, kind, dtype):
    (tmp_path / "x.tiff").write_bytes(tiff(bits, kind, RAMP.astype(dtype)))
    with pytest.raises(ValueError, match="x.tiff cannot be read: it is no picture of a known format"):
        read_image(str(tmp_path / "x.tiff"), "RGB")


def jpeg_with_exif(exif):
    """A JPEG of 40 x 30 with these bytes as its EXIF block."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(file, "jpeg")
    block = b"Exif\0\0" + exif
    return file.getvalue()[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + file.getvalue()[2:]


def tiff_entry(kind, count, value):
    """An EXIF block whose only entry is the orientation."""
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHI", 1, 0x112, kind, count) + value.ljust(4, b"\0") + b"\0\0\0\0"


EXIF = {
    "orientation 1": (tiff_entry(3, 1, b"\x01"), (40, 30)),
    "orientation 3": (tiff_entry(3, 1, b"\x03"), (40, 30)),
    "orientation 6": (tiff_entry(3, 1, b"\x06"), (30, 40)),
    "orientation 8": (tiff_entry(3, 1, b"\x08"), (30, 40)),
    "orientation 0": (tiff_entry(3, 1, b"\x00"), (40, 30)),
    "orientation 9": (tiff_entry(3, 1, b"\x09"), (40, 30)),
    "orientation 255": (tiff_entry(3, 1, b"\xff"), (40, 30)),
    "a text": (tiff_entry(2, 2, b"6\0"), (40, 30)),
    "two numbers": (tiff_entry(3, 2, b"\x06\0\x06\0"), (30, 40)),  # the first counts
    "an unknown type": (tiff_entry(99, 1, b"\x06"), (40, 30)),
    "cut off": (tiff_entry(3, 1, b"\x06")[:13], (40, 30)),
    "an offset beyond the file": (tiff_entry(2, 4000, b"\xff\xff\xff\x7f"), (40, 30)),
    "no tiff": (b"JUNKJUNKJUNK", (40, 30)),
    "empty": (b"", (40, 30)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exif, size", EXIF.values(), ids=EXIF)
def test_size_and_pixels_agree_whatever_the_exif_holds(tmp_path, exif, size):
    (tmp_path / "x.jpg").write_bytes(jpeg_with_exif(exif))
    assert image_size(str(tmp_path / "x.jpg")) == size
    assert read_image(str(tmp_path / "x.jpg"), "RGB").shape == (*size[::-1], 3)


BROKEN = {
    "empty": b"",
    "text": b"no picture",
    "a web page": b"<!DOCTYPE html><html></html>",
    "a pnm without size": b"P6 abc",
    "a pnm of letters": b"P6\nab cd\n255\n",
    "a pnm of negative size": b"P5\n-3 4\n255\n",
    "a pnm without end": b"P2" + b"1" * 500,
    "a png of zero size": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 17,
    "a png without an end": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "a jpeg's head": b"\xff\xd8\xff\xe0 and no more",
    "a tiff that points beyond": b"II*\0\xff\xff\xff\x7f",
    "a tiff without entries": b"II*\0\x08\0\0\0\0\0",
    "a gif's head": b"GIF89a",
    "a bmp's head": b"BM" + b"\0" * 30,
    "a webp's head": b"RIFF\x04\0\0\0WEBP",
    "an ico's head": b"\0\0\1\0\1\0",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("read", [image_size, lambda file: read_image(file, "RGB")], ids=["size", "pixels"])
def test_a_broken_file_is_one_sentence_that_names_it(tmp_path, content, read):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"the image {tmp_path}/x.png cannot be read: ")) as caught:
        read(str(tmp_path / "x.png"))
    assert "\n" not in str(caught.value) and "BytesIO" not in str(caught.value)


@pytest.mark.parametrize("name, reason", [("nowhere.png", "No such file"), (".", "Is a directory"), ("a\0b", "null")])
@pytest.mark.parametrize("read", [image_size, lambda file: read_image(file, "RGB")], ids=["size", "pixels"])
def test_what_is_no_file_is_named_with_the_reason(tmp_path, name, reason, read):
    with pytest.raises(ValueError, match=f"the image .* cannot be read: .*{reason}"):
        read(f"{tmp_path}/{name}")


@pytest.mark.parametrize("read", [image_size, lambda file: read_image(file, "L")], ids=["size", "pixels"])
def test_a_key_allows_larger_pictures(tmp_path, read):
    Image.new("1", (150, 100)).save(tmp_path / "x.png")
    allow_pixels(14_000)
    with pytest.raises(
        ValueError, match=r"x.png cannot be read: Image size \(15000 pixels\) exceeds .*INPUT.MAX_PIXELS"
    ):
        read(str(tmp_path / "x.png"))
    for limit in (0, 15_000, 100_000):
        allow_pixels(limit)
        read(str(tmp_path / "x.png"))


def test_the_mapper_and_the_sizes_of_a_json_go_by_the_key(cfg, content, save, tmp_path):
    from paq_detr.data import DetrDatasetMapper, register_datasets

    path, root = save(content)
    cfg.INPUT.MAX_PIXELS = 500
    cfg.DATASETS.COCO_JSON, cfg.DATASETS.TRAIN = [["cells", path, root]], ("cells",)
    register_datasets(cfg)
    allow_pixels(0)  # as in a loader's process that knows nothing yet
    with pytest.raises(ValueError, match=r"a.png cannot be read: Image size \(1200 pixels\)"):
        DetrDatasetMapper(cfg, False)({"file_name": f"{root}/a.png"})
    del content["images"][0]["width"]
    path, root = save(content, "other.json")
    cfg.DATASETS.COCO_JSON = [["other", path, root]]
    with pytest.raises(ValueError, match=r"image 5 has no width and height, and .*a.png cannot be read: Image size"):
        register_datasets(cfg)
