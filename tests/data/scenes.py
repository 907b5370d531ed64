# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures whose objects are rectangles of a colour each, so that a picture itself says where its objects are."""

import itertools

import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as rle

HEIGHT, WIDTH, PER_SCENE, SCENES = 48, 64, 4, 5
COLORS = np.array(list(itertools.product((40, 145, 250), repeat=3))[1 : 1 + PER_SCENE * SCENES])
NUM_CLASSES = len(COLORS)
KINDS = ("boxes", "visible", "polygons", "run lengths", "ignore", "empty")


def record(number, kind="boxes"):
    """The dataset dict of scene ``number``, without a picture's file, and the picture; object i has class and colour
    ``PER_SCENE * number + i``."""
    random = np.random.RandomState(number)
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    annotations = []
    for i in range(PER_SCENE if kind != "empty" else 0):
        label = PER_SCENE * number + i
        x, y = (i % 2) * WIDTH // 2 + random.randint(1, 8), (i // 2) * HEIGHT // 2 + random.randint(1, 6)
        width, height = random.randint(12, 23), random.randint(10, 17)
        image[y : y + height, x : x + width] = COLORS[label]
        annotation = {"bbox": [x, y, width, height], "bbox_mode": BoxMode.XYWH_ABS, "category_id": label, "iscrowd": 0}
        if kind == "visible":  # the upper three quarters of a person behind something black
            image[y + 3 * height // 4 : y + height, x : x + width] = 0
            annotation["visible_bbox"] = [x, y, width, 3 * height // 4]
        mask = (image == COLORS[label]).all(-1)
        if kind == "polygons":
            annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        if kind == "run lengths":
            annotation["segmentation"] = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
        if kind == "ignore" and i % 2:
            annotation["iscrowd"] = 1
        annotations.append(annotation)
    found = {"file_name": f"{number}.png", "image_id": number, "height": HEIGHT, "width": WIDTH}
    if kind == "visible":
        found["amodal"] = True
    return {**found, "annotations": annotations}, image


def shown(image, label):
    """(H, W) bool: the pixels of an object's colour."""
    return (image == COLORS[label]).all(-1)


def tight(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
