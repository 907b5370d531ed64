# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Dataset formats: each finds its datasets by path, and reads them as the content of a COCO json."""

from ..._lazy import lazy_names

_HOMES = {
    "FoundDataset": "find",
    "Source": "source",
    "find_dataset": "find",
    "find_source": "find",
    "open_source": "open",
    "register_source": "open",
}
__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
