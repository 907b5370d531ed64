# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures that code hands over as arrays: taken where they have the wanted form, else one sentence with that form."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}


def check_batch(batch: Any, training: bool) -> None:
    """See that ``batch`` is what the detector reads: a list of dicts with ``image``, in training with ``instances``.

    Raises:
        ValueError: one sentence with what it is and what is wanted.
    """
    wanted = "must be a list of dicts, each with an 'image'" + (" and, in training, 'instances'" if training else "")
    if not isinstance(batch, (list, tuple)):
        raise ValueError(f"the batch is a {type(batch).__name__}, {wanted}")
    if not batch:
        raise ValueError("the batch holds no images")
    for entry in batch:
        if not isinstance(entry, dict):
            raise ValueError(f"the batch holds a {type(entry).__name__}, {wanted}")
        for key in ("image", "instances") if training else ("image",):
            if key not in entry:
                raise ValueError(f"an entry of the batch has no {key!r}, {wanted}")
        for key in () if training else ("height", "width"):
            side = entry.get(key, 1)
            if isinstance(side, str) or not side > 0:
                raise ValueError(f"the {key} of an entry of the batch is {side!r}, must be above 0")


def check_image_array(image: Any, image_format: str, where: str = "image") -> Tensor:
    """``image`` as the detector reads it: (C, H, W), uint8 or floating, values in 0..255, channels in ``image_format``.

    Tells apart what a caller may hand over by mistake: another number of channels (RGBA, grey), the channels last, no
    pixels, other number types, values of 16 bits. Looks at the values once, on the device where they are.
    One warning for a picture that is black, or holds fractions.

    Args:
        image: a tensor or an array.
        image_format: "RGB", "BGR" or "L".
        where: how messages call it.

    Raises:
        ValueError: one sentence with what it is and what is wanted.
    """
    wanted = f"must be ({_CHANNELS[image_format]}, height, width) in {image_format}, uint8 or floats from 0 to 255"
    try:
        tensor = torch.as_tensor(image)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"the {where} is a {type(image).__name__} that is no array, {wanted}") from None
    shape, channels = tuple(tensor.shape), _CHANNELS[image_format]
    if tensor.dim() != 3 or shape[0] != channels:
        raise ValueError(f"the {where} has the shape {shape}{_guess(shape, channels)}, {wanted}")
    if not tensor.numel():
        raise ValueError(f"the {where} has no pixels: its shape is {shape}, {wanted}")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise ValueError(f"the {where} is of {str(tensor.dtype).removeprefix('torch.')}, {wanted}")
    if tensor.is_floating_point():
        low, high = (float(value) for value in torch.aminmax(tensor))
        if not (low >= -0.5 and high <= 255.5):  # also where one of them is NaN; half a step is rounding
            raise ValueError(f"the {where} has values from {low:g} to {high:g}, {wanted}")
        if 0.01 < high <= 1:
            logger.warning("the %s has no value above %g: it is black, unless it holds fractions, and %s",
                           where, high, wanted)  # fmt: skip
    return tensor


def _guess(shape: tuple[int, ...], channels: int) -> str:
    if len(shape) == 3 and shape[-1] in (1, 3, 4) and shape[0] > 4:
        alpha = " and have an alpha channel" if shape[-1] == 4 else ""
        return f", as if its channels stood last{alpha}"
    if len(shape) == 3 and shape[0] == 4:
        return ", as if it had an alpha channel"
    if len(shape) == 2 or (len(shape) == 3 and shape[0] == 1 and channels == 3):
        return ", as if it were grey"
    if len(shape) == 4:
        return ", as if it were a batch"
    return ""
