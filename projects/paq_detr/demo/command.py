# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Train a small detector, evaluate it on held-out images, and draw what it finds: ``paq-detr demo``.

Writes predictions.png, loss.png and summary.json into output/demo (or OUTPUT_DIR), beside what training writes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from ..config_files import configs
from ..data import DetrDatasetMapper, read_image
from ..engine import Trainer, UserError, setup_config, start_run
from ..engine.curves import draw_curves, read_metrics
from .figures import Labelled, draw_predictions


def held_out(cfg: CfgNode, count: int) -> list[dict]:
    """The first ``count`` images of the test set that hold an object."""
    dicts = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    return [d for d in dicts if any(not a.get("iscrowd", 0) for a in d["annotations"])][:count]


def ground_truth(record: dict) -> Labelled:
    def boxes(ignored: bool) -> np.ndarray:
        chosen = [a for a in record["annotations"] if bool(a.get("iscrowd", 0)) == ignored]
        converted = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in chosen]
        return np.array(converted).reshape(-1, 4)

    classes = [a["category_id"] for a in record["annotations"] if not a.get("iscrowd", 0)]
    return Labelled(boxes(False), classes, ignored_xyxy=boxes(True))


@torch.no_grad()
def predictions(cfg: CfgNode, model: torch.nn.Module, records: list[dict], threshold: float) -> list[Labelled]:
    mapper = DetrDatasetMapper(cfg, False)
    model.eval()
    found = []
    for record in records:
        instances = model([mapper(record)])[0]["instances"].to("cpu")
        instances = instances[instances.scores >= threshold]
        boxes, classes = instances.pred_boxes.tensor.numpy(), instances.pred_classes.tolist()
        masks = instances.pred_masks if instances.has("pred_masks") else ()
        found.append(Labelled(boxes, classes, instances.scores.tolist(), masks=masks))
    return found


def report(cfg: CfgNode, trainer: Trainer, seconds: float, args: argparse.Namespace) -> str:
    """Write the pictures and the summary; returns the text for the terminal."""
    folder, names = cfg.OUTPUT_DIR, list(cfg.MODEL.DETR.CLASS_NAMES)
    records = held_out(cfg, args.images)
    found = predictions(cfg, trainer.checkpointer.model, records, args.threshold)
    images = [read_image(record["file_name"], "RGB") for record in records]
    pictures = [os.path.join(folder, name) for name in ("predictions.png", "loss.png")]
    draw_predictions(pictures[0], images, [ground_truth(record) for record in records], found, names)
    draw_curves(pictures[1], read_metrics(os.path.join(folder, "metrics.json")))
    summary = {
        "config": args.config_file,
        "device": str(trainer.device),
        "iterations": trainer.max_iter,
        "training_seconds": round(seconds, 1),
        # A class without objects has no AP: null, since json knows no NaN.
        "results": {
            task: {name: value if math.isfinite(value) else None for name, value in values.items()}
            for task, values in trainer.results.items()
        },
    }
    with open(os.path.join(folder, "summary.json"), "w") as file:
        json.dump(summary, file, indent=2)
    weights = os.path.join(folder, "model_final.pth")
    box = trainer.results["bbox"]
    return f"""
{trainer.max_iter} iterations in {seconds:.0f} s on {trainer.device}. On held-out images: AP {box["AP"]:.1f}, \
AP50 {box["AP50"]:.1f}.

  {pictures[0]}   ground truth beside predictions
  {pictures[1]}          the curves
  {os.path.join(folder, "summary.json")}      the numbers
  {weights}   the weights

To go on:
  find objects      paq-detr predict {folder} IMAGE_OR_FOLDER
  evaluate again    paq-detr eval {folder}
  train your own    paq-detr train my_dataset_small \\
                        DATASETS.COCO_JSON "[[my_train, train.json, images], [my_val, val.json, images]]"
  see the curves    tensorboard --logdir {folder}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", default=configs("demo"), help="another one, by its file or name")
    parser.add_argument("--resume", action="store_true", help="go on from where a demo was stopped")
    parser.add_argument("--images", type=int, default=6, help="how many held-out images to draw")
    parser.add_argument("--threshold", type=float, default=0.4, help="lowest score that is drawn")


def demo(args: argparse.Namespace) -> None:
    """Train and draw.

    Args:
        args: of ``add_arguments``, and ``opts``, the KEY VALUE pairs.

    Raises:
        UserError: of a training, or there is no test set to draw.
    """
    args.opts = ["OUTPUT_DIR", os.path.join("output", "demo"), *args.opts]
    cfg = setup_config(args)
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: the demo draws pictures of a test set.")
    start_run(cfg, args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    start = time.perf_counter()
    trainer.train()
    sys.stdout.write(report(cfg, trainer, time.perf_counter() - start, args))
