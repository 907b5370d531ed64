# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The CrowdHuman metrics as a Detectron2 evaluator, for any registered dataset with or without ignore regions."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Hashable
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from tqdm import tqdm

from ...checks import check_choice
from ...data.json_file import write_json
from ...data.json_values import as_flag
from ..records import Detections, RecordingEvaluator, check_detections, has_annotations
from ..thresholds import JI_FILE, ji_thresholds, write_thresholds
from .images import CrowdImage, Truth, evaluate_images, join
from .metrics import summarize
from .protocols import PROTOCOLS
from .report import describe

logger = logging.getLogger(__name__)

IMAGES_AT_ONCE = 256
METRICS = ("AP", "MR", "JI", "JI_threshold", "Recall")


class CrowdHumanEvaluator(RecordingEvaluator):
    """AP, MR-2, JI and recall by CrowdHuman's definitions (``metrics``), also split by crowdedness.

    Annotations with ``iscrowd`` are ignore regions. With several classes every metric is computed per class, on the
    detections and annotations of that class, and averaged over the classes that have objects; where one of them has no
    detections, the mean MR is NaN as its own is, with a warning. No cap on detections.

    Scores are rounded to 5 digits and boxes to 1/1000 pixel before everything, as in the dump that is written for
    datasets of one class: the command ``paq_detr.evaluation.crowdhuman`` gives the same numbers from it.

    Args:
        dataset_name: registered dataset whose dicts have ``height`` and ``width``.
        output_dir: folder for ``crowd_metrics.json`` (fractions, null for NaN), ``ji_threshold.json`` (the score of the
            best JI, which prediction reads) and, for one class, ``crowd_detections.json`` (CrowdHuman's json lines,
            ground truth included, which the public programs read); None writes nothing.
        protocol: "crowddet" or "dh".
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, protocol: str = "crowddet"):
        check_choice("protocol", protocol, PROTOCOLS)
        super().__init__(output_dir)
        self.dataset_name = dataset_name
        self.protocol = PROTOCOLS[protocol]
        self._dicts = DatasetCatalog.get(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        self._annotated = has_annotations(self._dicts, metadata)
        self._class_names = list(metadata.thing_classes)

    def results_of(self, records: dict[Hashable, Detections]) -> dict[str, dict[str, float]]:
        """``{"crowd": {"AP", "MR", "JI", "JI_threshold", "Recall", "AP-crowded0.3", ...}}``.

        In percent, JI_threshold excepted. ``-crowded0.3`` is for the images whose persons' mean crowdedness is 0.3 to
        0.4, and ``AP-person`` for one class of several. Without objects a value is NaN; ``{}`` for a dataset
        without annotations.
        """
        check_detections(records, {d["image_id"] for d in self._dicts}, self.dataset_name, logger)
        if self.output_dir and len(self._class_names) == 1:
            self._write_dump(records)
        if not self._annotated:
            logger.warning("%s has no annotations: there are no crowd metrics", self.dataset_name)
            return {}
        summaries = {name: self._summarize(index, records) for index, name in enumerate(self._class_names)}
        for name, summary in summaries.items():
            if not summary["persons"]:
                logger.warning("%s holds no object of the class %s: its AP, MR-2 and recall are NaN",
                               self.dataset_name, name)  # fmt: skip
            elif math.isnan(summary["MR"]):
                logger.warning("no detections of %s on %s: its MR-2 is NaN, and so is the mean over classes",
                               name, self.dataset_name)  # fmt: skip
            logger.info(
                "%s of %s, protocol %s:\n%s", name, self.dataset_name, self.protocol.name, describe(summary, name)
            )
        if self.output_dir:
            write_json({"protocol": self.protocol.name, "classes": summaries}, self._path("crowd_metrics.json"))
            write_thresholds(ji_thresholds(summaries), self._path(JI_FILE))
        return {"crowd": _average(summaries)}

    def _summarize(self, category: int, records: dict[Hashable, Detections]) -> dict[str, Any]:
        parts = [evaluate_images([], self.protocol)]
        starts = range(0, len(self._dicts), IMAGES_AT_ONCE)
        for start in tqdm(starts, desc=f"crowd metrics, {self._class_names[category]}", disable=len(starts) < 4):
            places = range(start, min(start + IMAGES_AT_ONCE, len(self._dicts)))
            parts.append(evaluate_images((self._image(p, category, records) for p in places), self.protocol))
        return summarize(join(parts), self.protocol)

    def _image(self, place: int, category: int, records: dict[Hashable, Detections]) -> CrowdImage:
        image = self._dicts[place]
        boxes_xywh, tags = _truth(image, category)
        found_xywh, scores = _found(records.get(image["image_id"]), category)
        truth = Truth(_to_xyxy(boxes_xywh), tags)
        return CrowdImage(place, truth, _to_xyxy(found_xywh), scores, (image["height"], image["width"]))

    def _write_dump(self, records: dict[Hashable, Detections]) -> None:
        path = self._path("crowd_detections.json")
        with open(path, "w") as file:
            for image in self._dicts:
                found = _found(records.get(image["image_id"]), 0)
                record = {
                    "ID": image["image_id"],
                    "height": image["height"],
                    "width": image["width"],
                    "dtboxes": [{"box": b, "score": s, "tag": 1} for b, s in zip(*(rows.tolist() for rows in found))],
                }
                if self._annotated:
                    truth = _truth(image, 0)
                    record["gtboxes"] = [{"box": b, "tag": t} for b, t in zip(*(rows.tolist() for rows in truth))]
                file.write(json.dumps(record, separators=(",", ":")) + "\n")
        logger.info("detections written to %s", path)


def _found(record: Detections | None, category: int) -> tuple[np.ndarray, np.ndarray]:
    """Rounded xywh boxes (D, 4) and scores (D,) of one class."""
    if record is None:
        return np.zeros((0, 4)), np.zeros(0)
    chosen = record.classes == category
    boxes = record.boxes_xyxy[chosen].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes.round(3), record.scores[chosen].astype(np.float64).round(5)


def _truth(image: dict, category: int) -> tuple[np.ndarray, np.ndarray]:
    """The xywh boxes (G, 4) of one class, and their tags (G,): 1, or -1 for an ignore region."""
    rows = [a for a in image.get("annotations", ()) if a["category_id"] == category]
    boxes = [[float(v) for v in BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS)] for a in rows]
    tags = [-1 if as_flag(a.get("iscrowd")) else 1 for a in rows]
    return np.array(boxes).reshape(-1, 4), np.array(tags, dtype=np.int8)


def _to_xyxy(boxes_xywh: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], 1)


def _average(summaries: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The metrics averaged over the classes that have objects, in percent; then those of each class of several.

    A mean is NaN where one of these classes has no value, as MR has none without detections: a mean over the others
    would reward a model for never naming a class.
    """
    rows = {name: _flatten(summary) for name, summary in summaries.items()}
    counted = [rows[name] for name, summary in summaries.items() if summary["persons"]] or list(rows.values())
    keys = dict.fromkeys(key for row in counted for key in row)
    average = {key: float(np.mean([row[key] for row in counted if key in row])) for key in keys}
    if len(rows) > 1:
        average.update({f"{metric}-{name}": row[metric] for name, row in rows.items() for metric in METRICS})
    return average


def _flatten(summary: dict[str, Any]) -> dict[str, float]:
    groups = {"": summary, **{f"-crowded{key}": group for key, group in summary["by_image_crowdedness"].items()}}
    return {
        metric + suffix: group[metric] * (1 if metric == "JI_threshold" else 100)
        for suffix, group in groups.items()
        for metric in METRICS
    }
