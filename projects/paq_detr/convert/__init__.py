# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of other projects under this project's names.

The layout of a file is recognised by its names alone. ``LAYOUTS`` lists them in the order in which they are tried: one
whose files also have the markers of another comes before it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import asag, backbones, box_detectors, deformable, dense, detrex, dino, mr_detr
from .classes import class_names_of, coco_names
from .layout import Conversion, Layout, convert, number_of_classes, part_of

logger = logging.getLogger(__name__)

__all__ = ["LAYOUTS", "Conversion", "Layout", "class_names_of", "convert_if_foreign", "part_of"]

LAYOUTS: tuple[Layout, ...] = (
    *asag.LAYOUTS,
    *mr_detr.LAYOUTS,
    *dense.LAYOUTS,
    *detrex.LAYOUTS,
    *dino.LAYOUTS,
    *deformable.LAYOUTS,
    *box_detectors.LAYOUTS,
    *backbones.LAYOUTS,
)


def convert_if_foreign(state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Conversion:
    """The weights under this project's names, and their class names where they are known.

    Args:
        state_dict: named tensors of any layout; those of an unknown one are returned as they are.
        config: of a ``transformers`` model (its ``config.json``, or ``model.config.to_dict()``), for the class names.

    Raises:
        UserError: if the layout is known but holds names that are not understood, or contradicts itself.
    """
    names = class_names_of(config) if config else None
    layout = next((layout for layout in LAYOUTS if layout.recognises(state_dict)), None)
    if layout is None:
        return Conversion(dict(state_dict), names)
    conversion = convert(state_dict, layout)
    classes = number_of_classes(conversion.weights)
    if names is None and classes:
        names = coco_names(classes)
        if names:
            logger.info("The %d classes of the weights are taken for COCO's, unless the file names others", classes)
    conversion.class_names = names
    return conversion
