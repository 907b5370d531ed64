# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Detectors that are small enough to be exported in seconds."""

from paq_detr.modeling.heads import ClassHead

from ..modeling.assemblies import ASSEMBLIES, make_model, wake_up


def smaller(options):
    """The assembly with two levels and two decoder layers, where it can have them."""
    lists = [options.get(f"MODEL.DETR.{key}", []) for key in ("DECODER.INTERACTION", "DECODER.CROSS_ATTENTION")]
    fewer = {} if any(len(entries) == 3 for entries in lists) else {"MODEL.DETR.DECODER.NUM_LAYERS": 2}
    if "MODEL.DETR.NECK.NUM_LEVELS" not in options and "MODEL.DETR.ASAG.PATCH_SIZE" not in options:
        fewer |= {"MODEL.DETR.NECK.NUM_LEVELS": 2, "MODEL.RESNETS.OUT_FEATURES": ["res4", "res5"]}
    return {**fewer, **options}


def small_model(name):
    """The assembly of that name, smaller, with weights that do something, and scores of which DH-DETR drops some."""
    model = wake_up(make_model(smaller(ASSEMBLIES[name])))
    for module in model.modules():
        if isinstance(module, ClassHead):
            module.bias.data += 2.0
    return model.eval()
