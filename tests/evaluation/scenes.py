# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Small datasets and predictions for the evaluators' tests."""

import torch
from detectron2.structures import Boxes, BoxMode, Instances


def dataset_dicts(images, height=200, width=300):
    """Of ``[(image_id, [(class, xyxy, iscrowd), ...]), ...]``; None for the objects leaves the key out."""
    return [
        {
            "image_id": image_id,
            "file_name": f"{image_id}.jpg",
            "height": height,
            "width": width,
            **({} if objects is None else {"annotations": [_annotation(*item) for item in objects]}),
        }
        for image_id, objects in images
    ]


def _annotation(category, box, iscrowd):
    return {"category_id": category, "bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": int(iscrowd)}


def instances(boxes, scores, classes=None, query_indices=None, size=(200, 300)):
    result = Instances(size)
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.tensor(scores, dtype=torch.float32)
    result.pred_classes = torch.tensor([0] * len(scores) if classes is None else classes, dtype=torch.int64)
    if query_indices is not None:
        result.query_indices = torch.tensor(query_indices, dtype=torch.int64)
    return result


def feed(evaluator, predictions):
    """Process ``{image_id: Instances}`` one image at a time and evaluate."""
    evaluator.reset()
    for image_id, prediction in predictions.items():
        evaluator.process([{"image_id": image_id, "height": 200, "width": 300}], [{"instances": prediction}])
    return evaluator.evaluate()
