# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Class names of published weights: which class a row of a class head stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UserError

UNUSED = "N/A"  # a row that stands for no class, as published label lists call it


def coco_names(rows: int) -> list[str] | None:
    """Names of the rows of a head that was trained on COCO; None for another number of rows than 80 or 91.

    91 rows are COCO's category numbers, of which 0 and ten others between 1 and 90 are unused; 80 rows are the used
    ones, in their order.
    """
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES  # nothing else of this package needs Detectron2

    used = {category["id"]: category["name"] for category in COCO_CATEGORIES if category["isthing"]}
    if rows == len(used):
        return [used[number] for number in sorted(used)]
    return [used.get(number, UNUSED) for number in range(rows)] if rows == max(used) + 1 else None


def class_names_of(config: Mapping[str, Any]) -> list[str] | None:
    """Class names in the order of the logits from ``id2label`` of a ``transformers`` config; None where it has none.

    Raises:
        UserError: if the ids do not run from 0 without a gap.
    """
    labels = {int(index): str(name) for index, name in config.get("id2label", {}).items()}
    if sorted(labels) != list(range(len(labels))):
        raise UserError(f"The ids in id2label are {sorted(labels)}, they must run from 0 to {len(labels) - 1}.")
    return [labels[index] for index in range(len(labels))] or None
