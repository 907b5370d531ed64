# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""2,000 objects in an image: all count, none is cut off at the usual 100 or 300."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from paq_detr.evaluation import CocoBoxEvaluator, CrowdHumanEvaluator, QueryUseEvaluator
from paq_detr.evaluation.coco_matching import CrowdedCOCOeval

from .scenes import feed, instances

OBJECTS = [(6 * x, 5 * y, 6 * x + 5, 5 * y + 4) for x in range(50) for y in range(40)]
SCORES = [0.9 - 0.0001 * number for number in range(len(OBJECTS))]


def test_2000_objects_are_evaluated(register_dataset):
    name = register_dataset([(1, [(0, box, 0) for box in OBJECTS])])
    found = {1: instances(OBJECTS, SCORES, query_indices=range(len(OBJECTS)))}
    box = feed(CocoBoxEvaluator(name, len(OBJECTS)), found)["bbox"]
    assert box["AP"] == box["AR"] == 100 and box["AP@100dets"] < 10
    crowd = feed(CrowdHumanEvaluator(name), found)["crowd"]
    assert crowd["Recall"] == 100 and crowd["JI"] == pytest.approx(100)
    use = feed(QueryUseEvaluator(len(OBJECTS)), found)["query_use"]
    assert any(value == len(OBJECTS) for value in use.values())


@pytest.mark.parametrize("seed", range(3))
def test_matches_are_those_of_pycocotools_entry_by_entry(seed):
    """Crowds, equal scores and boxes, sizes out of range, and images without objects or detections."""
    random = np.random.default_rng(seed)

    def boxes(count):
        return np.concatenate([random.integers(0, 6, (count, 2)) * 20, random.integers(1, 6, (count, 2)) * 25], 1)

    images = [{"id": i, "width": 300, "height": 300} for i in range(1, 8)]
    objects = [(i, box) for i in range(1, 7) for box in boxes(12)]
    annotations = [
        {"id": n, "image_id": i, "category_id": 1 + n % 2, "bbox": box.tolist(), "area": float(box[2] * box[3]),
         "iscrowd": int(n % 7 == 0)}
        for n, (i, box) in enumerate(objects, 1)
    ]  # fmt: skip
    truth = COCO()
    truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}, {"id": 2}]}
    results = [
        {"image_id": i, "category_id": 1 + n % 2, "bbox": box.tolist(), "score": round(float(random.random()), 1)}
        for i in range(2, 8)
        for n, box in enumerate(boxes(25))
    ]
    outcomes = []
    for kind in (COCOeval, CrowdedCOCOeval):
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
            evaluation = kind(truth, truth.loadRes(results), "bbox")
            evaluation.params.maxDets = [1, 5, 10]
            evaluation.evaluate()
        outcomes.append(evaluation.evalImgs)
    assert len(outcomes[0]) == len(outcomes[1])
    for theirs, ours in zip(*outcomes):
        assert (theirs is None) == (ours is None)
        for key in theirs or ():
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
