# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Query-based detectors for Detectron2. ``add_paq_detr_config`` also registers their meta-architecture there."""

from ._lazy import lazy_names

__version__ = "0.1.0"

_HOMES = {
    "Detector": "predict",
    "QueryDetector": "detector",
    "add_paq_detr_config": "detector",
    "configs": "config_files",
    "load_config": "engine.run_folder",
}
__all__ = ["__version__", *_HOMES]
__getattr__ = lazy_names(__name__, _HOMES)
