# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Datasets and the mapper that feeds the detector."""

from .._lazy import lazy_names

_HOMES = {
    "DetrDatasetMapper": "mapper",
    "SyntheticCrowd": "synthetic_crowd",
    "SyntheticDataset": "builtin",
    "check_batch": "image_array",
    "check_image_array": "image_array",
    "check_pictures": "pictures",
    "read_image": "mapper",
    "register_coco_json": "coco_json",
    "register_crowdhuman": "crowdhuman",
    "register_datasets": "builtin",
    "register_synthetic_crowd": "builtin",
}
__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
