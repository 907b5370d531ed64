# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From a trained run and pictures to detections, drawn and saved."""

from .._lazy import lazy_names

_HOMES = {"Detector": "predictor", "Result": "results"}
__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
