# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The score from which detections are worth showing: found at evaluation, stored there, and read for prediction."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from ..data.json_file import write_json

logger = logging.getLogger(__name__)

# What the evaluators write into their folder; of several, the first counts: JI, where a crowd was evaluated as one.
JI_FILE, F1_FILE = FILES = ("ji_threshold.json", "f1_threshold.json")
_IOU_50, _ALL_SIZES = 0, 0  # places in COCOeval's IoU thresholds and area ranges


def best_f1(scores: np.ndarray, is_true: np.ndarray, objects: int) -> tuple[float, float]:
    """The threshold whose detections (score at least that) have the best F1 = 2 TP / (detections + objects), and it.

    The threshold lies half-way to the next lower score. NaN, 0 where nothing is right.

    Args:
        scores, is_true: (D,) of all detections that count.
        objects: how many there are to find.
    """
    order = np.argsort(-scores, kind="stable")
    scores, true = scores[order], np.cumsum(is_true[order])
    if not len(scores) or not true[-1]:
        return math.nan, 0.0
    f1 = 2 * true / (np.arange(1, len(true) + 1) + objects)
    f1[:-1][scores[:-1] == scores[1:]] = 0  # equal scores are shown together
    best = int(f1.argmax())
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    return float(scores[best] + below) / 2, float(f1[best])


def f1_thresholds(evaluation: COCOeval, max_detections: int, class_names: Mapping[int, str]) -> dict[str, Any]:
    """The best threshold of all classes together, and each class's own.

    Args:
        evaluation: evaluated and accumulated.
        max_detections: of a class in an image that count.
        class_names: by category id.
    """
    params = evaluation.params
    per_class = {}
    images = len(params.imgIds)
    for place, category in enumerate(params.catIds):
        start = (place * len(params.areaRng) + _ALL_SIZES) * images
        found = [_counted(image, max_detections) for image in evaluation.evalImgs[start : start + images] if image]
        scores, true, objects = zip(*found) if found else ((), (), ())
        per_class[class_names[category]] = _joined(scores), _joined(true), sum(objects)
    scores, true, objects = zip(*per_class.values())
    threshold, value = best_f1(_joined(scores), _joined(true), sum(objects))
    classes = {name: dict(zip(("threshold", "value"), best_f1(*parts))) for name, parts in per_class.items()}
    return {"threshold": threshold, "metric": "F1 at IoU 0.5", "value": value, "classes": classes}


def _counted(image: dict[str, Any], max_detections: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores, which of them are right, and the objects of an image, without what lies in ignore regions."""
    keep = ~np.asarray(image["dtIgnore"][_IOU_50][:max_detections], dtype=bool)
    true = np.asarray(image["dtMatches"][_IOU_50][:max_detections]) > 0
    scores = np.asarray(image["dtScores"][:max_detections], dtype=np.float64)
    return scores[keep], true[keep], int((np.asarray(image["gtIgnore"]) == 0).sum())


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if len(parts) else np.zeros(0)


def ji_thresholds(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The threshold of the best JI, mean over the classes that have objects; of ``metrics.summarize`` by class."""
    counted = [summary["thresholds"] for summary in summaries.values() if summary["persons"]]
    means = np.array([[line["JI"] for line in lines] for lines in counted]).mean(0) if counted else np.zeros(0)
    best = int(np.nanargmax(means)) if np.isfinite(means).any() and np.nanmax(means) > 0 else None
    classes = {name: {"threshold": s["JI_threshold"], "value": s["JI"]} for name, s in summaries.items()}
    threshold, value = (counted[0][best]["threshold"], float(means[best])) if best is not None else (math.nan, 0.0)
    return {"threshold": threshold, "metric": "JI", "value": value, "classes": classes}


def write_thresholds(found: Mapping[str, Any], path: str) -> None:
    """Store what was found; where nothing was, an earlier evaluation's file goes."""
    if math.isfinite(found["threshold"]):
        write_json(dict(found), path)
    else:
        logger.warning("no detection is right, so that no threshold is stored for --threshold auto")
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def read_thresholds(folder: str) -> dict[str, dict[str, Any]]:
    """What evaluations stored below the output folder of a run, by dataset; broken files are left out."""
    found = {}
    inference = os.path.join(folder, "inference")
    for dataset in sorted(os.listdir(inference)) if os.path.isdir(inference) else ():
        for name in FILES:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                with open(os.path.join(inference, dataset, name), encoding="utf-8") as file:
                    content = json.load(file)
                found[dataset] = {key: content[key] for key in ("threshold", "metric", "value")}
                break
    return found
