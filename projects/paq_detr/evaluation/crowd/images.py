# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Images reduced to what the metrics count.

Image by image only the few pairs that overlap by half are kept; from there on many images are worked on together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from .matching import Pairs, box_iou, clip_boxes, find_pairs, join_pairs, match_by_weight, match_greedily
from .protocols import LONE_SLACK, Protocol

DUMP_ROUNDING = 0.1 + 1e-6  # pixels: CrowdDet's dumps hold x, y, w and h to one decimal, so x + w is at most 0.1 off


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
    linked = np.argsort(-pairs.iou, kind="stable")
    image_of_pair, one_person = image_of[pairs.detection], np.bincount(image_of_person, minlength=num_images) < 2
    counts = {"matched": [], "detections": [], "persons": []}
    for threshold in protocol.score_thresholds:
        kept = scores > threshold
        lone = one_person | (np.bincount(image_of[kept], minlength=num_images) < 2)
        close = _is_pair(pairs.iou, lone[image_of_pair], protocol) & kept[pairs.detection]
        now = linked[close[linked]]
        person, detection = pairs.person[now], pairs.detection[now]
        chosen = match_by_weight(person, detection, weight[now], image_of_pair[now])
        counted, counted_person = kept & ~pairs.detection_covered, ~pairs.person_covered
        counted[detection[chosen]] = counted_person[person[chosen]] = True
        counts["matched"].append(np.bincount(image_of[detection[chosen]], minlength=num_images))
        counts["detections"].append(np.bincount(image_of[counted], minlength=num_images))
        counts["persons"].append(np.bincount(image_of_person[counted_person], minlength=num_images))
    return {name: np.stack(rows) for name, rows in counts.items()}


def _is_pair(iou: np.ndarray, lone: np.ndarray, protocol: Protocol) -> np.ndarray:
    """(P,) bool: the overlap is enough for JI; ``lone``: the image has but one person or one detection."""
    if not protocol.pairs_at_half:
        return iou > 0.5
    return (iou >= 0.5) | (lone & (iou > 0.5 - LONE_SLACK))


def _concatenate(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *arrays])


def _image_of(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """The running image number of every entry of one array per image."""
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    return np.repeat(np.arange(len(lengths)), lengths)
