# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluators: COCO box AP per class, query use, crowds."""

from .._lazy import lazy_names

_HOMES = {
    "CocoBoxEvaluator": "coco",
    "CrowdHumanEvaluator": "crowd.evaluator",
    "QueryUseEvaluator": "query_use",
    "build_evaluator": "build",
    "gini_coefficient": "query_use",
}
__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
