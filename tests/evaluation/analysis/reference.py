# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The analysis once more, object by object: what the arrays are held against."""

import numpy as np

from paq_detr.evaluation.analysis.scene import Found, Objects, Scene

SIZE = (200, 300)


def random_scene(seed, images=12, classes=3, regions=True, per_image=8):
    """Crowds with detections of every kind: shifted, of another class, repeated, on background; scores differ."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    objects, found = [], []
    for image in range(images):
        for _ in range(rng.integers(0, per_image)):
            x, y, w, h = rng.uniform(-5, width - 60), rng.uniform(-5, height - 60), *rng.uniform(10, 120, 2)
            box = np.clip([x, y, x + w, y + h], 0, [width, height, width, height])
            kind = int(rng.integers(classes))
            objects.append((image, kind, box, regions and rng.random() < 0.15))
            for _ in range(rng.integers(0, 4)):
                shift = rng.normal(0, rng.choice([0.03, 0.15, 0.4]), 4) * [w, h, w, h]
                moved = box + shift
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                found.append((image, kind if rng.random() < 0.75 else int(rng.integers(classes)), moved))
        for _ in range(rng.integers(0, 4)):
            x, y = rng.uniform(0, width - 60), rng.uniform(0, height - 60)
            found.append((image, int(rng.integers(classes)), np.array([x, y, x + 50, y + 40])))
    scores = rng.permutation(np.linspace(0.01, 0.99, len(found)))
    return make_scene(objects, [(*f, s) for f, s in zip(found, scores)], classes, images)


def make_scene(objects, found, classes=2, images=1, size=SIZE):
    """Of [(image, class, xyxy, ignored), ...] and [(image, class, xyxy, score), ...]."""
    boxes = np.array([o[2] for o in objects], dtype=np.float64).reshape(-1, 4)
    image, kind = (np.array([o[i] for o in objects], dtype=np.int64) for i in (0, 1))
    ignored = np.array([len(o) > 3 and o[3] for o in objects], dtype=bool)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    detections = Found(
        np.array([f[2] for f in found], dtype=np.float64).reshape(-1, 4),
        np.array([f[3] for f in found], dtype=np.float64),
        *(np.array([f[i] for f in found], dtype=np.int64) for i in (1, 0)),
    )
    names = [f"class {k}" for k in range(classes)]
    return Scene(
        Objects(boxes, kind, image, areas, ignored),
        detections,
        names,
        [f"{i}.jpg" for i in range(images)],
        sizes=[size] * images,
    )


def iou(a, b, of_first=False):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    first, second = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / (first if of_first else first + second - shared)


def match(scene):
    """Partner of each detection, detection of each object, detections in regions."""
    o, f = scene.objects, scene.found
    partner, found_by, in_region = [-1] * len(f), [-1] * len(o), [False] * len(f)
    for d in sorted(range(len(f)), key=lambda d: -f.scores[d]):
        best, target = 0.5, -1
        for g in range(len(o)):
            if o.image[g] == f.image[d] and o.classes[g] == f.classes[d] and found_by[g] < 0 and not o.ignored[g]:
                overlap = iou(f.boxes_xyxy[d], o.boxes_xyxy[g])
                if overlap >= best:
                    best, target = overlap, g
        if target >= 0:
            partner[d], found_by[target] = target, d
            continue
        for g in range(len(o)):
            if o.image[g] == f.image[d] and o.classes[g] == f.classes[d] and o.ignored[g]:
                in_region[d] |= iou(f.boxes_xyxy[d], o.boxes_xyxy[g], of_first=True) >= 0.5
    return partner, found_by, in_region


def kinds(scene):
    """Kind of each detection by name ("right", "region" or an error), and which objects are missed."""
    o, f = scene.objects, scene.found
    partner, found_by, in_region = match(scene)
    result, claimed = [], set()
    for d in range(len(f)):
        near = [
            (iou(f.boxes_xyxy[d], o.boxes_xyxy[g]), g)
            for g in range(len(o))
            if o.image[g] == f.image[d] and not o.ignored[g]
        ]
        same = max([n for n in near if o.classes[n[1]] == f.classes[d]], default=(0, -1))
        other = max([n for n in near if o.classes[n[1]] != f.classes[d]], default=(0, -1))
        mended = -1
        if partner[d] >= 0:
            kind = "right"
        elif in_region[d]:
            kind = "region"
        elif 0.1 <= same[0] <= 0.5:
            kind, mended = "localisation", same[1]
        elif other[0] >= 0.5:
            kind, mended = "classification", other[1]
        elif same[0] > 0.5:
            kind = "duplicate"
        elif max(same[0], other[0]) <= 0.1:
            kind = "background"
        else:
            kind = "both"
        if mended >= 0 and found_by[mended] < 0:
            claimed.add(mended)
        result.append(kind)
    missed = [not o.ignored[g] and found_by[g] < 0 and g not in claimed for g in range(len(o))]
    return result, missed
