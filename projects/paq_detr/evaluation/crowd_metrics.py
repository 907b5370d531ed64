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

Images are reduced one by one to the few pairs that overlap by half; from there on many images are worked on together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .crowd_matching import EPS, Pairs, box_iou, clip_boxes, find_pairs, join_pairs, match_by_weight, match_greedily

# FPPI of MR-2: these decimals, not the powers 10^(-2 + k/4) that they abbreviate.
FPPI_POINTS = (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.000)
DUMP_ROUNDING = 0.1 + 1e-6  # pixels: CrowdDet's dumps hold x, y, w and h to one decimal, so x + w is at most 0.1 off
CROWDED_BINS = np.arange(7) / 10  # where the bins of crowdedness start; the last one is open


@dataclass(frozen=True)
class Protocol:
    """Where the two published ways to evaluate differ."""

    name: str
    min_score: float  # detections below are dropped before everything
    score_thresholds: tuple[float, ...]  # at which JI is computed
    regions_without_persons: bool  # whether AP and MR look at ignore regions in an image without a person
    count_first: bool  # JI matches as many pairs as possible, or (False) the heaviest set of pairs
    pairs_at_half: bool  # JI takes an IoU of just 0.5 as a pair
    mean_over_all: bool  # JI is the mean over all images, or (False) those with anything to count
    own_truth: bool  # JI takes the ground truth and size that the detection file carries, where it does


CROWDDET = Protocol(
    name="crowddet",
    min_score=-np.inf,
    score_thresholds=tuple(0.1 * i for i in range(10)),
    regions_without_persons=True,
    count_first=False,
    pairs_at_half=False,
    mean_over_all=False,
    own_truth=True,
)
DH = Protocol(
    name="dh",
    min_score=0.05,
    score_thresholds=tuple(0.1 * i for i in range(1, 10)),
    regions_without_persons=False,
    count_first=True,
    pairs_at_half=True,
    mean_over_all=True,
    own_truth=False,
)
PROTOCOLS = {protocol.name: protocol for protocol in (CROWDDET, DH)}


@dataclass
class Truth:
    """The ground truth of one image."""

    boxes_xyxy: np.ndarray  # (G, 4) float64 pixels; as the files have it, not clipped
    tags: np.ndarray  # (G,) 1 person, -1 ignore region; 0 a region to AP and MR that yet counts as a person elsewhere

    @property
    def num_counted(self) -> int:
        """What recall is relative to."""
        return int((self.tags != -1).sum())

    def clipped(self, size: tuple[float, float] | None) -> Truth:
        return Truth(clip_boxes(self.boxes_xyxy, size), self.tags)


@dataclass
class CrowdImage:
    """One image with its detections."""

    place: int  # in the annotation file; decides between equal scores of different images
    truth: Truth
    boxes_xyxy: np.ndarray  # (D, 4) float64 pixels, not clipped
    scores: np.ndarray  # (D,) float64
    size: tuple[float, float] | None  # (height, width); None: nothing is clipped
    ji_truth: Truth | None = None  # the detection file's own ground truth
    ji_size: tuple[float, float] | None = None  # and its own image size


@dataclass
class ImageResults:
    """What is left of I images with E entries of the score list and Q persons; S score thresholds."""

    places: np.ndarray  # (I,)
    clipped: np.ndarray  # (I,) bool: the image size is known
    ji_truth_differs: np.ndarray  # (I,) bool: JI sees other ground truth than AP, as the detection file has its own
    num_counted: np.ndarray  # (I,) persons that recall is relative to
    crowdedness: np.ndarray  # (I,) mean over the image's persons; NaN without any
    num_entries: np.ndarray  # (I,)
    scores: np.ndarray  # (E,) image by image, descending
    is_true: np.ndarray  # (E,) bool
    matched: np.ndarray  # (S, I) pairs: k
    detections: np.ndarray  # (S, I) detections that count: n
    persons: np.ndarray  # (S, I) persons that count: m
    person_crowdedness: np.ndarray  # (Q,) largest IoU with another person
    person_found: np.ndarray  # (Q,) bool
    duplicate_crowdedness: np.ndarray  # (X,) of the person that a false positive overlaps by more than half
    duplicate_scores: np.ndarray  # (X,)

    def of_images(self, chosen: np.ndarray) -> ImageResults:
        """The same for the images where ``chosen`` (I,) is true; the lists over persons stay whole."""
        entries = np.repeat(chosen, self.num_entries)
        cut = {name: getattr(self, name)[..., chosen] for name in PER_IMAGE}
        cut.update({name: getattr(self, name)[entries] for name in PER_ENTRY})
        return ImageResults(**{**vars(self), **cut})


PER_ENTRY = ("scores", "is_true")
PER_IMAGE = (
    "places", "clipped", "ji_truth_differs", "num_counted", "crowdedness", "num_entries",
    "matched", "detections", "persons",
)  # fmt: skip


def join(parts: Sequence[ImageResults]) -> ImageResults:
    """The results of several sets of images as one, in the order of the annotation file."""
    joined = {f.name: np.concatenate([getattr(part, f.name) for part in parts], axis=-1) for f in fields(ImageResults)}
    order = np.argsort(joined["places"], kind="stable")
    entries = np.argsort(np.repeat(joined["places"], joined["num_entries"]), kind="stable")
    for name in PER_IMAGE:
        joined[name] = joined[name][..., order]
    for name in PER_ENTRY:
        joined[name] = joined[name][entries]
    return ImageResults(**joined)


@dataclass
class _Reduced:
    """One image, reduced to what overlaps."""

    image: CrowdImage
    scores: np.ndarray  # (D,) descending
    ap_pairs: Pairs
    ji_pairs: Pairs
    ji_truth_differs: bool
    crowdedness: np.ndarray  # (Q,) of each person


def _reduce(image: CrowdImage, protocol: Protocol) -> _Reduced:
    order = np.argsort(-image.scores, kind="stable")
    order = order[image.scores[order] >= protocol.min_score]
    boxes = image.boxes_xyxy[order]
    truth, size, is_person = image.truth, image.size, image.truth.tags == 1
    ap_pairs = _pairs(truth, is_person, boxes, size)
    crowdedness = _crowdedness(clip_boxes(truth.boxes_xyxy[is_person], size))

    ji_truth, ji_size = truth, size
    if protocol.own_truth:
        ji_truth, ji_size = image.ji_truth or truth, image.ji_size or size
    ji_person = ji_truth.tags != -1
    same = ji_size == size and np.array_equal(ji_person, is_person)
    same = same and np.array_equal(ji_truth.boxes_xyxy, truth.boxes_xyxy)
    ji_pairs = ap_pairs if same else _pairs(ji_truth, ji_person, boxes, ji_size)
    differs = not same and not _agree(truth.clipped(size), ji_truth.clipped(ji_size))
    return _Reduced(image, image.scores[order], ap_pairs, ji_pairs, differs, crowdedness)


def _agree(one: Truth, other: Truth) -> bool:
    """Whether two ground truths hold the same persons and regions, to the rounding of dumps and in any order."""
    near = (np.abs(one.boxes_xyxy[:, None] - other.boxes_xyxy) < DUMP_ROUNDING).all(2)
    near &= (one.tags == -1)[:, None] == (other.tags == -1)
    return len(one.tags) == len(other.tags) and near.any(0).all() and near.any(1).all()


def _pairs(truth: Truth, is_person: np.ndarray, boxes: np.ndarray, size: tuple[float, float] | None) -> Pairs:
    everything = clip_boxes(truth.boxes_xyxy, size)
    return find_pairs(everything[is_person], everything[~is_person], clip_boxes(boxes, size))


def _crowdedness(persons: np.ndarray) -> np.ndarray:
    """(Q,) largest IoU of each person with another one; 0 for a person alone."""
    iou = box_iou(persons, persons)
    np.fill_diagonal(iou, 0)
    return iou.max(1, initial=0)


def evaluate_images(images: Iterable[CrowdImage], protocol: Protocol) -> ImageResults:
    """Match the detections of ``images`` for AP and MR (greedily, by score) and for JI (as a bipartite graph).

    Some hundred images at a time are fast; ``join`` puts the parts together.
    """
    reduced = [_reduce(image, protocol) for image in images]
    counted = [r.image.truth.num_counted for r in reduced]
    return ImageResults(
        places=np.array([r.image.place for r in reduced], dtype=np.int64),
        clipped=np.array([(r.image.size or r.image.ji_size) is not None for r in reduced], dtype=bool),
        ji_truth_differs=np.array([r.ji_truth_differs for r in reduced], dtype=bool),
        num_counted=np.array(counted, dtype=np.int64),
        crowdedness=np.array([r.crowdedness.mean() if len(r.crowdedness) else np.nan for r in reduced]),
        **_score_list(reduced, protocol),
        **_jaccard_counts(reduced, protocol),
    )


def _score_list(reduced: Sequence[_Reduced], protocol: Protocol) -> dict[str, np.ndarray]:
    """The entries of the score list, which persons were found, and the false positives that repeat a person."""
    pairs = join_pairs([r.ap_pairs for r in reduced])
    scores, crowdedness = _concatenate(r.scores for r in reduced), _concatenate(r.crowdedness for r in reduced)
    image_of = _image_of(r.scores for r in reduced)
    has_person = np.array([len(r.crowdedness) > 0 for r in reduced], dtype=bool)

    partner = match_greedily(pairs)
    is_true = partner >= 0
    absorbed = ~is_true & pairs.detection_covered
    if not protocol.regions_without_persons:
        absorbed &= has_person[image_of]
    found = np.zeros(len(crowdedness), dtype=bool)
    found[partner[is_true]] = True

    repeats = np.flatnonzero((pairs.iou > 0.5) & ~(is_true | absorbed)[pairs.detection])
    repeats = repeats[np.lexsort((-pairs.iou[repeats], pairs.detection[repeats]))]
    repeats = repeats[np.diff(pairs.detection[repeats], prepend=-1) != 0]  # the largest overlap of each detection
    return {
        "num_entries": np.bincount(image_of[~absorbed], minlength=len(reduced)),
        "scores": scores[~absorbed],
        "is_true": is_true[~absorbed],
        "person_crowdedness": crowdedness,
        "person_found": found,
        "duplicate_crowdedness": crowdedness[pairs.person[repeats]],
        "duplicate_scores": scores[pairs.detection[repeats]],
    }


def _jaccard_counts(reduced: Sequence[_Reduced], protocol: Protocol) -> dict[str, np.ndarray]:
    """k, n and m of every image (S, I): pairs, counted detections, counted persons.

    A detection or person without a partner does not count where it lies in an ignore region.
    """
    pairs, num_images = join_pairs([r.ji_pairs for r in reduced]), len(reduced)
    scores, image_of = _concatenate(r.scores for r in reduced), _image_of(r.scores for r in reduced)
    image_of_person = _image_of(r.ji_pairs.person_covered for r in reduced)
    weight = pairs.iou + 9 if protocol.count_first else pairs.iou  # a missing pair costs 10 there, a pair 1 - IoU
    linked = np.flatnonzero(pairs.iou >= 0.5 if protocol.pairs_at_half else pairs.iou > 0.5)
    linked = linked[np.argsort(-pairs.iou[linked], kind="stable")]
    counts = {"matched": [], "detections": [], "persons": []}
    for threshold in protocol.score_thresholds:
        kept = scores > threshold
        now = linked[kept[pairs.detection[linked]]]
        person, detection = pairs.person[now], pairs.detection[now]
        chosen = match_by_weight(person, detection, weight[now], image_of[detection])
        counted, counted_person = kept & ~pairs.detection_covered, ~pairs.person_covered
        counted[detection[chosen]] = counted_person[person[chosen]] = True
        counts["matched"].append(np.bincount(image_of[detection[chosen]], minlength=num_images))
        counts["detections"].append(np.bincount(image_of[counted], minlength=num_images))
        counts["persons"].append(np.bincount(image_of_person[counted_person], minlength=num_images))
    return {name: np.stack(rows) for name, rows in counts.items()}


def _concatenate(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *arrays])


def _image_of(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """The running image number of every entry of one array per image."""
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    return np.repeat(np.arange(len(lengths)), lengths)


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
