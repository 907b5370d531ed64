# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Others stop at 300 objects an image, this does not: 2,000 of them are trained on, found and scored."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from .assemblies import ADAMIXER, ASSIGNMENT, DDQ, DEHOMO, DINO, MR, PATTERNS, PLUSPLUS, make_image, make_model

OBJECTS, QUERIES, SIZE = 2000, 2300, (320, 416)
TINY = {
    "MODEL.DETR.HIDDEN_DIM": 32,
    "MODEL.DETR.NUM_HEADS": 1,
    "MODEL.DETR.DECODER.NUM_LAYERS": 2,
    "MODEL.DETR.ENCODER.NUM_LAYERS": 0,
    "MODEL.DETR.QUERIES.NUM": QUERIES,
    "TEST.DETECTIONS_PER_IMAGE": QUERIES,
}
ASSEMBLIES = {
    "deformable_detr": {},
    "paq": {**PLUSPLUS, **PATTERNS, **ASSIGNMENT},
    "dh_detr": {
        **DEHOMO,
        "MODEL.DETR.DECODER.INTERACTION": ["none", "dehomo"],
        "MODEL.DETR.MATCHER.COST": ["focal_l1_giou", "center_inside"],
    },
    "dino": DINO,
    "ddq": {**DDQ, "MODEL.DETR.QUERIES.AUGMENT": "none", "MODEL.DETR.ROUTES": []},
    "mr": {**MR, "MODEL.DETR.ROUTES": ["mr_ffn"]},
    "adamixer": ADAMIXER,
}


def crowd():
    """(M, 4) boxes of 3 to 7 pixels, spread over the image, and their labels."""
    generator = torch.Generator().manual_seed(0)
    height, width = SIZE
    corner = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([width - 8.0, height - 8.0])
    sides = 3 + 4 * torch.rand(OBJECTS, 2, generator=generator)
    return torch.cat([corner, corner + sides], 1), torch.randint(0, 3, (OBJECTS,), generator=generator)


def scene():
    boxes, labels = crowd()
    image = make_image(*SIZE, boxes[:0].tolist())
    image["instances"] = Instances(SIZE, gt_boxes=Boxes(boxes), gt_classes=labels)
    return image


@pytest.mark.parametrize("options", ASSEMBLIES.values(), ids=ASSEMBLIES)
def test_others_stop_at_300_objects_this_does_not(options):
    model, images, pairs = make_model({**options, **TINY}), [scene()], []
    model.matched_slots.update = lambda output, assignment: pairs.append(assignment)
    losses = model(images)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    if "dehomo" not in str(options):  # whose last layer takes a query only if its box, here a fresh one, fits
        assert pairs[0].target.unique().tolist() == list(range(OBJECTS))
    with torch.no_grad():
        found = model.eval()(images)[0]["instances"]
    assert len(found) == QUERIES and found.pred_boxes.tensor.isfinite().all()
