# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from PIL import Image

_EXIF_ORIENTATION = 0x112


def image_size(file_name: str) -> tuple[int, int]:
    """(width, height) of an image file as it is seen, that is after its EXIF rotation; reads the header alone."""
    with Image.open(file_name) as image:
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
        return image.size[::-1] if turned else image.size
