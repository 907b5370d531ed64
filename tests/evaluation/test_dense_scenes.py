# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""2,000 objects in an image: all count, none is cut off at the usual 100 or 300."""

from paq_detr.evaluation import CocoBoxEvaluator, CrowdHumanEvaluator, QueryUseEvaluator

from .scenes import feed, instances

OBJECTS = [(6 * x, 5 * y, 6 * x + 5, 5 * y + 4) for x in range(50) for y in range(40)]
SCORES = [0.9 - 0.0001 * number for number in range(len(OBJECTS))]


def test_2000_objects_are_evaluated(register_dataset):
    name = register_dataset([(1, [(0, box, 0) for box in OBJECTS])])
    found = {1: instances(OBJECTS, SCORES, query_indices=range(len(OBJECTS)))}
    box = feed(CocoBoxEvaluator(name, len(OBJECTS)), found)["bbox"]
    assert box["AP"] == box["AR"] == 100 and box["AP@100"] < 10
    crowd = feed(CrowdHumanEvaluator(name), found)["crowd"]
    assert crowd["Recall"] == crowd["JI"] == 100
    use = feed(QueryUseEvaluator(len(OBJECTS)), found)["query_use"]
    assert any(value == len(OBJECTS) for value in use.values())
