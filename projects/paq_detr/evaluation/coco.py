# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""COCO box and mask AP with the per-class table always printed and written, for any registered dataset.

The matching (coco_matching.py) and the 101-point precision are those of pycocotools; the summary is made here, because
``COCOeval.summarize`` gives -1 unless 100 is among ``maxDets``, and crowded data needs more detections.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
from collections.abc import Hashable

import numpy as np
from detectron2.structures import Instances
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from .analysis import scene_of_evaluation, write_report
from .coco_matching import CrowdedCOCOeval
from .coco_truth import GroundTruth
from .records import Detections, RecordingEvaluator, check_detections, finite_detections
from .thresholds import F1_FILE, f1_thresholds, write_thresholds

logger = logging.getLogger(__name__)

COCO_MAX_DETECTIONS = 100  # the cap behind published COCO numbers
ALL, SMALL, MEDIUM, LARGE = range(4)  # order of COCOeval's area ranges
IOU_50, IOU_75 = 0, 5  # places in COCOeval's IoU thresholds 0.50, 0.55, ..., 0.95
CLASS_COLUMNS = ("AP", "AP50", "AP75", "AR")
REPORT_FILE = "report.html"
TASKS = {"bbox": "Boxes", "segm": "Masks"}  # pycocotools' names and ours


class CocoBoxEvaluator(RecordingEvaluator):
    """AP, AP50, AP75, AP by object size, AR and the same per class; of boxes, and with ``masks`` of masks beside them.

    Ground truth: see ``coco_truth.GroundTruth``. Annotations with ``iscrowd`` 1 follow COCO's rule: detections inside
    them count neither as right nor as wrong.

    Args:
        dataset_name: registered dataset; its metadata gives ``thing_classes`` and, where category ids have gaps,
            ``thing_dataset_id_to_contiguous_id``.
        max_detections: detections of a class in an image that count, COCO's maxDets (here
            ``cfg.TEST.DETECTIONS_PER_IMAGE``). Where it is not 100, AP at COCO's 100 is reported beside it as
            ``AP@100dets``, because published numbers use that.
        output_dir: folder for ``per_class_ap.csv``, ``coco_instances_results.json`` and ``f1_threshold.json`` (the
            score of the best F1, which prediction reads); None writes nothing.
        report: write ``report.html`` there too, on the boxes.
        masks: every object must have a segmentation, and the model's ``Instances`` the field ``pred_masks``.
    """

    def __init__(
        self,
        dataset_name: str,
        max_detections: int,
        output_dir: str | None = None,
        masks: bool = False,
        report: bool = False,
    ):
        if max_detections < 1:
            raise ValueError(f"max_detections must be at least 1, got {max_detections}")
        super().__init__(output_dir)
        self.max_detections, self.report = max_detections, report
        self._truth = GroundTruth(dataset_name, masks)

    def record_of(self, image_id: Hashable, instances: Instances) -> Detections:
        return finite_detections(instances, self._truth.masks)

    def results_of(self, records: dict[Hashable, Detections]) -> dict[str, dict[str, float]]:
        """``{"bbox": {"AP": ..., "AP-person": ...}, "segm": {...}}`` in percent, "segm" with masks alone.

        A value without any ground truth is NaN. Without detections every AP is 0. ``{}`` for a dataset without
        annotations, such as COCO's test sets, whose results are only written.
        """
        self._check(records)
        results = self._truth.results(records)
        if self.output_dir:
            self._write_results(results)
        if not self._truth.annotated:
            return {}
        summaries, tables = {}, {}
        for task in TASKS if self._truth.masks else ("bbox",):
            evaluation = _run_pycocotools(self._truth, task, results, self.max_detections)
            tables[task] = _class_table(evaluation, self._truth, self.max_detections)
            classes = {f"AP-{name}": tables[task][name][0] for name in self._truth.class_names}
            summaries[task] = _summarize(evaluation, self.max_detections)
            self._report_task(task, summaries[task])
            summaries[task] = {**summaries[task], **classes}
            if self.output_dir and task == "bbox":
                names = dict(zip(self._truth.category_ids, self._truth.class_names))
                write_thresholds(f1_thresholds(evaluation, self.max_detections, names), self._path(F1_FILE))
        self._report_classes(tables)
        if self.output_dir and self.report:
            scene = scene_of_evaluation(self._truth, records)
            shown = {name: value for name, value in summaries["bbox"].items() if not name.startswith("AP-")}
            write_report(scene, self._path(REPORT_FILE), f"Evaluation on {self._truth.dataset_name}", shown)
        return summaries

    def _check(self, records: dict[Hashable, Detections]) -> None:
        name = self._truth.dataset_name
        check_detections(records, self._truth.image_index, name, logger)
        if not self._truth.annotated:
            logger.warning("%s has no annotations: detections are written where a folder is given, and there are no "
                           "metrics", name)  # fmt: skip
        elif not self._truth.boxes_per_class.any():
            logger.warning("%s has no ground truth boxes: every metric is NaN", name)
        elif not any(len(record) for record in records.values()):
            logger.warning("no detections on %s: every AP is 0", name)

    def _write_results(self, results: list[dict]) -> None:
        """COCO results in original ids: boxes to 1/1000 pixel, scores to 6 digits, masks as compressed run lengths."""
        rows = [
            {
                "image_id": self._truth.image_ids[r["image_id"]],
                "category_id": r["category_id"],
                "bbox": [round(v, 3) for v in r["bbox"]],
                "score": round(r["score"], 6),
            }
            for r in results
        ]
        for row, r in zip(rows, results):
            if self._truth.masks:
                mask = r["segmentation"]
                row["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode()}
        path = self._path("coco_instances_results.json")
        with open(path, "w") as file:
            json.dump(rows, file, separators=(",", ":"))
        logger.info("%d detections written to %s", len(rows), path)

    def _report_task(self, task: str, summary: dict[str, float]) -> None:
        headline = tabulate([list(summary.values())], headers=list(summary), floatfmt=".3f", tablefmt="pipe")
        logger.info("%s of %s, at most %d detections per image, in percent:\n%s",
                    TASKS[task], self._truth.dataset_name, self.max_detections, headline)  # fmt: skip

    def _report_classes(self, tables: dict[str, dict[str, list[float]]]) -> None:
        """One table: a class's values of all tasks and its number of objects."""
        counts = [*self._truth.boxes_per_class.tolist(), int(self._truth.boxes_per_class.sum())]
        names = [*self._truth.class_names, "mean"]
        rows = [
            [name, *(value for table in tables.values() for value in table[name]), n] for name, n in zip(names, counts)
        ]
        columns = [column if task == "bbox" else f"mask {column}" for task in tables for column in CLASS_COLUMNS]
        header = ("class", *columns, "boxes")
        formats = ("", *[".2f"] * len(columns), ".0f")
        logger.info("By class:\n%s", tabulate(rows, headers=header, floatfmt=formats, tablefmt="pipe"))
        if not self.output_dir:
            return
        path = self._path("per_class_ap.csv")
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for name, *values in rows:
                writer.writerow([name, *(f"{v:.4f}" for v in values[:-1]), values[-1]])
        logger.info("Per-class table written to %s", path)


def _run_pycocotools(truth: GroundTruth, task: str, results: list[dict], max_detections: int) -> COCOeval:
    """``task``: "bbox" or "segm", for which a detection is as large as its mask."""
    if task == "segm":
        results = [{**row, "area": float(rle.area(row["segmentation"]))} for row in results]
    evaluation = CrowdedCOCOeval(truth.coco, truth.in_memory(results), task)
    evaluation.params.maxDets = sorted({COCO_MAX_DETECTIONS, max_detections})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _at_cap(evaluation: COCOeval, max_detections: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision (IoU thresholds, recall points, classes, areas) and recall without the recall points, at one cap."""
    cap = evaluation.params.maxDets.index(max_detections)
    return evaluation.eval["precision"][..., cap], evaluation.eval["recall"][..., cap]


def _percent(values: np.ndarray) -> float:
    """Mean of the entries that exist (pycocotools marks absent ones with -1) in percent; NaN where none does."""
    present = values[values > -1]
    return float(present.mean() * 100) if present.size else float("nan")


def _summarize(evaluation: COCOeval, max_detections: int) -> dict[str, float]:
    precision, recall = _at_cap(evaluation, max_detections)
    summary = {
        "AP": _percent(precision[..., ALL]),
        "AP50": _percent(precision[IOU_50, ..., ALL]),
        "AP75": _percent(precision[IOU_75, ..., ALL]),
        "APs": _percent(precision[..., SMALL]),
        "APm": _percent(precision[..., MEDIUM]),
        "APl": _percent(precision[..., LARGE]),
        "AR": _percent(recall[..., ALL]),
    }
    if max_detections != COCO_MAX_DETECTIONS:
        published, _ = _at_cap(evaluation, COCO_MAX_DETECTIONS)
        summary[f"AP@{COCO_MAX_DETECTIONS}dets"] = _percent(published[..., ALL])
    return summary


def _class_table(evaluation: COCOeval, truth: GroundTruth, max_detections: int) -> dict[str, list[float]]:
    """Rows of ``CLASS_COLUMNS`` by class name, then their mean over the classes that have ground truth."""
    precision, recall = _at_cap(evaluation, max_detections)
    place = {category: k for k, category in enumerate(evaluation.params.catIds)}  # sorted by original id
    table = {}
    for name, category in zip(truth.class_names, truth.category_ids):
        p, r = precision[:, :, place[category], ALL], recall[:, place[category], ALL]
        table[name] = [_percent(p), _percent(p[IOU_50]), _percent(p[IOU_75]), _percent(r)]
    values = np.array(list(table.values()))
    present = values[~np.isnan(values).any(1)]
    table["mean"] = present.mean(0).tolist() if len(present) else [float("nan")] * len(CLASS_COLUMNS)
    return table
