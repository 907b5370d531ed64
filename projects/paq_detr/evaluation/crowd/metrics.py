# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""AP, MR-2, recall and JI of crowded images, as the published CrowdHuman programs define them.

With every detection a true positive, a false positive or dropped (it found no free person and lies in an ignore region
by more than half of its own area), sorted by score over all images; r_i, p_i recall and precision of the first i:

* AP = sum over i >= 2 of (r_i - r_{i-1}) (p_i + p_{i-1}) / 2: trapezoids over the raw points, without an envelope and
  without the step to the first point, so that perfect results give 1 - 1 / persons.
* MR-2 = exp(mean of ln(1 - r_i)) over nine numbers of false positives per image, ``FPPI_POINTS``; i is the first row
  that reaches the number, or the last row. A single miss rate of 0 makes it 0.
* Recall = r at the last row. No cap on detections anywhere.
* JI = max over score thresholds of the mean over images of k / (m + n - k): k pairs of detections and persons, out of
  n detections and m persons, those without a partner not counted where they lie in an ignore region by more than half.

Two protocols: CrowdDet's program, and the one behind DH-DETR's numbers, which differs in what ``Protocol`` names.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .images import ImageResults
from .matching import EPS
from .protocols import Protocol

# FPPI of MR-2: these decimals, not the powers 10^(-2 + k/4) that they abbreviate.
FPPI_POINTS = (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.000)
CROWDED_BINS = np.arange(7) / 10  # where the bins of crowdedness start; the last one is open


def summarize(results: ImageResults, protocol: Protocol) -> dict[str, Any]:
    """AP, MR, Recall and JI with its threshold, as fractions; the JI lines; and the split by crowdedness.

    Returns:
        ``AP``, ``MR``, ``JI``, ``JI_threshold``, ``Recall``, ``images``, ``persons``;
        ``thresholds``: a list of ``threshold``, ``JI``, ``k``, ``n``, ``m``;
        ``images_without_size``: how many were not clipped;
        ``by_image_crowdedness``: the first line's keys for the images whose persons' mean crowdedness, floored to 0.1,
        is the key;
        ``by_person_crowdedness``: ``persons``, ``Recall`` and ``duplicates``, the false positives above
        ``JI_threshold`` that overlap a person by more than half, per person.
        The crowdedness of a person is its largest IoU with another person. NaN where nothing is defined: MR without
        detections, everything relative to persons without persons.
    """
    lines = _jaccard_lines(results, protocol)
    summary = {**_headline(results, lines), "thresholds": lines}
    summary["images_without_size"] = int((~results.clipped).sum())
    bins = _bin(results.crowdedness)
    summary["by_image_crowdedness"] = {}
    for index, name in _bins_in(bins):
        group = results.of_images(bins == index)
        summary["by_image_crowdedness"][name] = _headline(group, _jaccard_lines(group, protocol))
    bins, repeats = _bin(results.person_crowdedness), _bin(results.duplicate_crowdedness)
    repeats = repeats[results.duplicate_scores > summary["JI_threshold"]]
    summary["by_person_crowdedness"] = {
        name: {
            "persons": int((bins == index).sum()),
            "Recall": float(results.person_found[bins == index].mean()),
            "duplicates": float((repeats == index).sum() / (bins == index).sum()),
        }
        for index, name in _bins_in(bins)
    }
    return summary


def _bin(crowdedness: np.ndarray) -> np.ndarray:
    """Index into ``CROWDED_BINS``; -1 for NaN."""
    return np.digitize(np.nan_to_num(crowdedness, nan=-1.0), CROWDED_BINS) - 1


def _bins_in(bins: np.ndarray) -> list[tuple[int, str]]:
    """The bins that are in use, with their names: "0.0", "0.1", ..., "0.6+"."""
    last = len(CROWDED_BINS) - 1
    return [(i, f"{CROWDED_BINS[i]:.1f}" + ("+" if i == last else "")) for i in np.unique(bins).tolist() if i >= 0]


def _headline(results: ImageResults, lines: list[dict[str, float]]) -> dict[str, Any]:
    values = np.array([line["JI"] for line in lines])
    best = lines[0 if np.isnan(values).all() else int(np.nanargmax(values))]
    return {
        **_curve_metrics(results),
        "JI": best["JI"],
        "JI_threshold": best["threshold"],
        "images": len(results.places),
        "persons": int(results.num_counted.sum()),
    }


def _curve_metrics(results: ImageResults) -> dict[str, float]:
    """AP (trapezoids over the raw points, from the first on), MR-2 and the last recall."""
    persons, images = int(results.num_counted.sum()), len(results.places)
    if persons == 0:
        return dict.fromkeys(("AP", "MR", "Recall"), float("nan"))
    if len(results.scores) == 0:
        return {"AP": 0.0, "MR": float("nan"), "Recall": 0.0}
    order = np.argsort(-results.scores, kind="stable")  # equal scores stay in the order of the annotation file
    true = np.cumsum(results.is_true[order])
    false = np.arange(1, len(true) + 1) - true
    recall, precision = true / persons, true / (true + false)
    ap = np.sum((recall[1:] - recall[:-1]) * (precision[1:] + precision[:-1]) / 2)
    reached = np.searchsorted(false / images, FPPI_POINTS, side="left")  # the row of the very false positive
    miss = 1 - recall[np.minimum(reached, len(recall) - 1)]
    with np.errstate(divide="ignore"):  # one miss rate of 0 makes MR 0
        mr = np.exp(np.log(miss).mean())
    return {"AP": float(ap), "MR": float(mr), "Recall": float(recall[-1])}


def _jaccard_lines(results: ImageResults, protocol: Protocol) -> list[dict[str, float]]:
    k, n, m = results.matched, results.detections, results.persons
    jaccard = k / (m + n - k + EPS)
    divisor = k.shape[1] if protocol.mean_over_all else ((n != 0) | (m != 0)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = jaccard.sum(1) / np.broadcast_to(divisor, len(k))
    return [
        {"threshold": round(t, 1), "JI": float(ji), "k": int(a.sum()), "n": int(b.sum()), "m": int(c.sum())}
        for t, ji, a, b, c in zip(protocol.score_thresholds, means, k, n, m)
    ]
