# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import os

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluators

from .coco import CocoBoxEvaluator
from .crowd.evaluator import CrowdHumanEvaluator
from .query_use import QueryUseEvaluator


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None, report: bool = False
) -> DatasetEvaluators:
    """The evaluators that ``cfg.TEST`` asks for; results go to ``output_folder`` (default ``OUTPUT_DIR/inference``).

    ``report``: with the page that explains them, where ``cfg.TEST.REPORT`` asks for it.
    """
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    masks, report = cfg.MODEL.DETR.MASK.ENABLED, report and cfg.TEST.REPORT
    evaluators = [CocoBoxEvaluator(dataset_name, cfg.TEST.DETECTIONS_PER_IMAGE, folder, masks, report)]
    if cfg.TEST.QUERY_USE.ENABLED:
        num_queries = cfg.MODEL.DETR.QUERIES.NUM_TEST or cfg.MODEL.DETR.QUERIES.NUM
        evaluators.append(QueryUseEvaluator(num_queries, cfg.TEST.QUERY_USE.THRESHOLD, folder))
    if cfg.TEST.CROWD.ENABLED:
        evaluators.append(CrowdHumanEvaluator(dataset_name, folder, cfg.TEST.CROWD.PROTOCOL))
    return DatasetEvaluators(evaluators)
