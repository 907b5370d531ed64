# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures in any form that code has them in, as (H, W, 3) uint8 RGB, or one sentence."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..checks import check_choice
from ..data.image_file import picture_pixels, read_picture, to_8_bit
from ..errors import UserError

logger = logging.getLogger(__name__)

_WANTED = (
    "must be a path, a PIL image, an array (height, width) or (height, width, 3 or 4), or a tensor (3, height, width)"
)
_EXIF_ORIENTATION = 0x112


def as_rgb(image: Any, channels: str = "RGB", where: str = "image") -> np.ndarray:
    """``image`` as (H, W, 3) uint8 RGB.

    Grey becomes RGB, alpha is left out; numbers other than uint8 become so by ``image_file.to_8_bit`` (fractions up to
    1 are multiplied by 255, integers count as of the smallest of 8, 10, 12, 14, 16 bits that holds the largest).

    Args:
        image: a path, whose EXIF rotation is applied; a PIL image, taken as it stands; an array (H, W), (H, W, 1, 2
            (grey and alpha), 3 or 4); a tensor, channels first, or last where only these are as many.
        channels: the order in arrays and tensors, "RGB" or "BGR" (OpenCV's).
        where: how messages call it.

    Raises:
        UserError: one sentence on what it is and what is wanted.
    """
    check_choice("channels", channels, ("RGB", "BGR"))
    try:
        if isinstance(image, (str, os.PathLike)):
            return read_picture(os.path.expanduser(os.fspath(image)), "RGB")
        if isinstance(image, Image.Image):
            return _of_pil(image, where)
        array = _pixels(image, where)
        colours = array[..., :3] if array.shape[-1] >= 3 else array[..., :1].repeat(3, -1)
        rgb = to_8_bit(colours)
    except UserError:
        raise
    except ValueError as error:
        text = str(error)
        raise UserError(f"{text[0].upper()}{text[1:]}." if image_named(text) else f"The {where}: {text}.") from error
    return np.ascontiguousarray(rgb[..., ::-1] if channels == "BGR" and array.shape[-1] >= 3 else rgb)


def image_named(text: str) -> bool:
    """Whether a reader's sentence names its file."""
    return text.startswith("the image ")


def _of_pil(image: Image.Image, where: str) -> np.ndarray:
    if not image.width or not image.height:
        raise UserError(f"The {where} has no pixels: it is {image.width} x {image.height}.")
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        logger.warning("the %s has an EXIF rotation, which is not applied to PIL images: hand over the path, or "
                       "PIL.ImageOps.exif_transpose of it", where)  # fmt: skip
    return picture_pixels(image, "RGB")


def _pixels(image: Any, where: str) -> np.ndarray:
    """(H, W, C) numbers, C in 1 .. 4."""
    if image is None:
        raise UserError(f"The {where} is None, {_WANTED}; cv2.imread gives None for a file that it cannot read.")
    if isinstance(image, torch.Tensor):
        array = _of_tensor(image)
    elif hasattr(image, "__array__") or hasattr(image, "__array_interface__"):
        array = np.asarray(image)
    else:
        raise UserError(f"The {where} is a {type(image).__name__}, {_WANTED}.")
    if array.dtype.kind not in "biuf":
        raise UserError(f"The {where} holds {array.dtype}, no numbers of a picture, {_WANTED}.")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 2, 3, 4):
        raise UserError(f"The {where} has the shape {tuple(array.shape)}{_guess(array.shape)}, {_WANTED}.")
    if not array.size:
        raise UserError(f"The {where} has no pixels: its shape is {tuple(array.shape)}.")
    return array


def _of_tensor(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    if tensor.dim() == 3 and (tensor.shape[0] in (1, 3, 4) or tensor.shape[-1] not in (1, 2, 3, 4)):
        tensor = tensor.permute(1, 2, 0)
    return tensor.numpy()


def _guess(shape: tuple[int, ...]) -> str:
    if len(shape) == 4:
        return ", as if it were a batch (hand over a list of images)"
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return ", as if its channels stood first (hand over image.transpose(1, 2, 0))"
    return ""
