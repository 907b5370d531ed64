# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Trained detectors as files for other runtimes."""

from .._lazy import lazy_names

_HOMES = {"Shape": "wrapper", "export_model": "write", "main": "command", "open_file": "write"}
__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
