# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Which detections are shown: from a given score on, or from the one that the run's evaluation found best."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ..engine.run_folder import BEST, Run
from ..errors import UserError
from ..evaluation.thresholds import read_thresholds

AUTO, DEFAULT = "auto", 0.3


def settle_threshold(threshold: Any, run: Run, datasets: Sequence[str] = ()) -> tuple[float, str]:
    """A threshold in [0, 1], and where it comes from in words.

    Args:
        threshold: a number, "auto" for the stored one, or None for ``DEFAULT``.
        datasets: of the run's evaluation, the one that counts first.

    Raises:
        UserError: it is neither, or out of range, or none is stored.
    """
    if threshold is None:
        return DEFAULT, "the default"
    if threshold == AUTO:
        return _stored(run, datasets)
    try:
        value = float(threshold)
    except (TypeError, ValueError):
        raise UserError(f"The threshold is {threshold}, must be a number from 0 to 1, or auto.") from None
    if not 0 <= value <= 1:
        hint = f" (did you mean {value / 100:g}?)" if 2 <= value <= 100 else ""
        raise UserError(f"The threshold is {value:g}, must be a number from 0 to 1, or auto{hint}.")
    return value, "as given"


def _stored(run: Run, datasets: Sequence[str]) -> tuple[float, str]:
    found = _of_best(run) if os.path.basename(run.weights) == BEST else {}
    found = found or read_thresholds(run.folder)
    if not found:
        config = run.config_file or "CONFIG"
        raise UserError(
            f"No threshold is stored in {run.folder}, as an evaluation that finds something does: run `paq-detr eval "
            f"{run.weights}` with the dataset of {config}, or give a number."
        )
    name = next((name for name in datasets if name in found), next(iter(found)))
    chosen = found[name]
    return float(chosen["threshold"]), f"best {chosen['metric']} on {name}, {float(chosen['value']):.3f}"


def _of_best(run: Run) -> dict[str, dict[str, Any]]:
    """What the evaluation that chose the best weights found; later evaluations were of other weights."""
    path = os.path.join(run.folder, f"{os.path.splitext(BEST)[0]}.json")
    with suppress(OSError, ValueError, KeyError, TypeError):
        with open(path, encoding="utf-8") as file:
            stored = json.load(file)["score_thresholds"]
        return {name: {key: entry[key] for key in ("threshold", "metric", "value")} for name, entry in stored.items()}
    return {}
