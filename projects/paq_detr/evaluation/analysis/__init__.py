# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What detections say beyond AP: curves, confusions, kinds of errors, which objects are missed, and what to do about
it. Pure functions on arrays (``scene``), and one page that shows them (``page``)."""

from ..._lazy import lazy_names

_HOMES = {
    "Analysis": "results",
    "Scene": "scene",
    "analyse": "results",
    "scene_of_evaluation": "sources",
    "write_report": "page",
}
__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
