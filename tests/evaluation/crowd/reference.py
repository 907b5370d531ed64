# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The CrowdHuman metrics as plain loops over dicts, slow and close to their definition; and scenes to try them on."""

import math

import numpy as np
from scipy.optimize import linear_sum_assignment

from ...boxes import area, intersection, iou

EPS = 1e-6

REFERENCES = (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.000)


def evaluate(annotations, dump, box="fbox", protocol="crowddet"):
    """``{"AP", "MR", "Recall", "JI", "JI_threshold", "k", "n", "m"}`` of odgt records and a dump in any order."""
    dump = {record["ID"]: record for record in dump}
    floor = 0.05 if protocol == "dh" else -math.inf
    images = []
    for annotation in annotations:
        record = dump.get(annotation["ID"], {"dtboxes": []})
        found = [d for d in record["dtboxes"] if d["score"] >= floor]
        own = (record.get("height"), record.get("width"))
        size = (annotation["height"], annotation["width"]) if "height" in annotation else own
        truth = [(corners(b[box]), tag(b, box)) for b in annotation["gtboxes"]]
        ji_truth, ji_size = truth, own if own[0] is not None else size
        if "gtboxes" in record and protocol == "crowddet":
            ji_truth = [(corners(b["box"]), b["tag"]) for b in record["gtboxes"]]
        images.append((truth, size, ji_truth, ji_size, [(corners(d["box"]), d["score"]) for d in found]))
    return {**average_precision(images, protocol), **jaccard(images, protocol)}


def corners(b):
    return b[0], b[1], b[0] + b[2], b[1] + b[3]


def tag(b, kind):
    ignored = b.get("extra", {}).get("ignore", 0) != 0
    if kind == "hbox":
        ignored = ignored or b.get("head_attr", {}).get("ignore", 0) != 0
    return 1 if b["tag"] == "person" and not ignored else -1


def clip(b, size):
    if size[0] is None:
        return b
    h, w = size
    return (
        min(max(b[0], 0), w - 1),
        min(max(b[1], 0), h - 1),
        max(min(b[2], w), 0),
        max(min(b[3], h), 0),
    )


def ioa(a, region):
    return intersection(a, region) / (area(a) + EPS)


def labels_of_image(truth, size, found, protocol):
    """(score, true) entries in score order; a detection in a region leaves none."""
    persons = [clip(b, size) for b, t in truth if t == 1]
    regions = [clip(b, size) for b, t in truth if t == -1]
    if protocol == "dh" and not persons:
        regions = []
    taken, entries = set(), []
    for box, score in sorted(found, key=lambda item: -item[1]):  # sorted() is stable
        box, best, chosen = clip(box, size), 0.5, None
        for index, person in enumerate(persons):
            if index not in taken and iou(box, person, EPS) > best:
                best, chosen = iou(box, person, EPS), index
        if chosen is not None:
            taken.add(chosen)
            entries.append((score, True))
        elif not any(ioa(box, region) > 0.5 for region in regions):
            entries.append((score, False))
    return entries


def average_precision(images, protocol):
    entries = [e for truth, size, _, _, found in images for e in labels_of_image(truth, size, found, protocol)]
    entries.sort(key=lambda e: -e[0])
    total = sum(t != -1 for truth, *_ in images for _, t in truth)
    if total == 0:
        return {"AP": math.nan, "MR": math.nan, "Recall": math.nan}
    recall, precision, fppi, tp, fp = [], [], [], 0, 0
    for _, true in entries:
        tp, fp = tp + true, fp + (not true)
        recall.append(tp / total)
        precision.append(tp / (tp + fp))
        fppi.append(fp / len(images))
    ap = 0.0
    for i in range(1, len(entries)):
        ap += (recall[i] - recall[i - 1]) * (precision[i] + precision[i - 1]) / 2
    if not entries:
        return {"AP": 0.0, "MR": math.nan, "Recall": 0.0}
    logs = []
    for reference in REFERENCES:
        miss = 1 - next((r for r, f in zip(recall, fppi, strict=True) if f >= reference), recall[-1])
        logs.append(math.log(miss) if miss > 0 else -math.inf)
    return {"AP": ap, "MR": math.exp(sum(logs) / len(logs)), "Recall": recall[-1]}


def jaccard(images, protocol):
    lines = []
    for i in range(1 if protocol == "dh" else 0, 10):
        values, totals = [], np.zeros(3, dtype=int)
        for _, _, truth, size, found in images:
            k, n, m = pairs_of_image(truth, size, found, 0.1 * i, protocol)
            totals += (k, n, m)
            if protocol == "dh" or n or m:
                values.append(k / (m + n - k + 1e-6))
        lines.append((sum(values) / len(values) if values else math.nan, round(0.1 * i, 1), *totals.tolist()))
    best = max((line for line in lines if not math.isnan(line[0])), key=lambda line: line[0], default=lines[0])
    k, n, m = ([line[c] for line in lines] for c in (2, 3, 4))
    return {"JI": best[0], "JI_threshold": best[1], "k": k, "n": n, "m": m}


def pairs_of_image(truth, size, found, threshold, protocol):
    persons = [clip(b, size) for b, t in truth if t != -1]
    regions = [clip(b, size) for b, t in truth if t == -1]
    boxes = [clip(b, size) for b, score in found if score > threshold]
    weights = np.zeros((len(boxes), len(persons)))
    for d, box in enumerate(boxes):
        for p, person in enumerate(persons):
            overlap = iou(box, person, EPS)
            if protocol == "crowddet" and overlap > 0.5:
                weights[d, p] = overlap
            slack = overlap > 0.5 - 1e-7 and min(len(boxes), len(persons)) == 1
            if protocol == "dh" and (overlap >= 0.5 or slack):
                weights[d, p] = 1000 + overlap
    matched = [(d, p) for d, p in zip(*linear_sum_assignment(weights, maximize=True), strict=True) if weights[d, p]]
    with_d, with_p = {d for d, _ in matched}, {p for _, p in matched}
    n = sum(d in with_d or not any(ioa(b, r) > 0.5 for r in regions) for d, b in enumerate(boxes))
    m = sum(p in with_p or not any(ioa(b, r) > 0.5 for r in regions) for p, b in enumerate(persons))
    return len(matched), n, m


def random_scene(seed, num_images=40, size=(120, 200)):
    """Crowded odgt records and a dump with ties, doubles, ignored persons, masks and boxes outside the image."""
    rng = np.random.default_rng(seed)
    height, width = size
    annotations, dump = [], []
    for index in range(num_images):
        count = int(rng.integers(0, 9))
        corner = rng.integers(-25, (width - 5, height - 5), (count, 2))
        if count > 2:
            corner[count // 2 :] = corner[: count - count // 2] + rng.integers(-12, 13, (count - count // 2, 2))
        truth = np.concatenate([corner, rng.integers(15, 60, (count, 2))], 1).tolist()
        gtboxes = [_random_person(rng, b) for b in truth]
        near = [truth[i] for i in rng.integers(0, count, 14)] if count else []
        found = [[v + int(rng.integers(-6, 7)) * (rng.random() < 0.7) for v in b] for b in near]
        found += np.concatenate([rng.integers(-30, (width, height), (4, 2)), rng.integers(5, 70, (4, 2))], 1).tolist()
        scores = rng.integers(0, 21, len(found)) / 20  # many ties, and scores right on the thresholds
        keep = rng.random(len(found)) < (0 if rng.random() < 0.1 else 0.9)
        annotations.append({"ID": f"{index},{seed:04x}", "gtboxes": gtboxes})
        dtboxes = [{"box": b, "score": float(s), "tag": 1} for b, s, k in zip(found, scores, keep, strict=True) if k]
        own = [{"box": b["fbox"], "tag": tag(b, "fbox")} for b in gtboxes]
        dump.append({"ID": f"{index},{seed:04x}", "height": height, "width": width, "dtboxes": dtboxes, "gtboxes": own})
    rng.shuffle(dump)
    return annotations, dump


def _random_person(rng, box):
    head = [box[0] + box[2] // 4, box[1], max(box[2] // 2, 1), max(box[3] // 4, 1)]
    visible = [box[0], box[1], max(box[2] - 4, 1), max(box[3] - 9, 1)]
    person = {"tag": "person", "fbox": box, "vbox": visible, "hbox": head, "head_attr": {}, "extra": {"box_id": 0}}
    kind = rng.random()
    if kind < 0.15:
        person["tag"] = "mask"
    if 0.1 < kind < 0.25:
        person["extra"]["ignore"] = 1
    if kind > 0.8:
        person["head_attr"]["ignore"] = int(rng.integers(0, 2))
    if 0.5 < kind < 0.6:
        del person["extra"]
    return person
