# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Datasets and the mapper that feeds the detector."""

from .builtin import SyntheticDataset, register_datasets, register_synthetic_crowd
from .coco_json import register_coco_json
from .crowdhuman import register_crowdhuman
from .mapper import DetrDatasetMapper, read_image
from .synthetic_crowd import SyntheticCrowd

__all__ = [
    "DetrDatasetMapper",
    "SyntheticCrowd",
    "SyntheticDataset",
    "read_image",
    "register_coco_json",
    "register_crowdhuman",
    "register_datasets",
    "register_synthetic_crowd",
]
