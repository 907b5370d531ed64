# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From a source to Detectron2's dataset dicts."""

from __future__ import annotations

from ..coco_file import Masks
from ..coco_json import CocoDataset, register_coco
from ..crowdhuman import CrowdHumanDataset, register_crowdhuman
from .odgt import OdgtSource
from .source import Source

_BOX = "full"  # of odgt files, where nothing else is asked for


def open_source(source: Source, name: str = "data", masks: Masks = False) -> CocoDataset | CrowdHumanDataset:
    """The dataset of a source, without registering it: call it for Detectron2's dicts; ``class_names`` in their order.

    Raises:
        FileNotFoundError, ValueError: it is missing or broken; one sentence without a full stop.
    """
    if isinstance(source, OdgtSource):
        return CrowdHumanDataset(name, source.path, source.image_root, source.box or _BOX)
    return CocoDataset(name, source, masks)


def register_source(source: Source, name: str, masks: Masks = False) -> None:
    """Register a source with Detectron2's catalogs.

    Raises:
        FileNotFoundError, ValueError: as ``open_source``; the name already stands for another dataset.
    """
    if isinstance(source, OdgtSource):
        register_crowdhuman(name, source.path, source.image_root, source.box or _BOX)
    else:
        register_coco(name, source, masks)
