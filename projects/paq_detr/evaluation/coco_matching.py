# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""COCO's matching for images with thousands of objects.

pycocotools compares every detection with every object, at ten thresholds and four sizes, in Python: minutes for an
image of 2,000. A detection can only be matched to what it overlaps by the threshold, so that looking at those objects
alone, in the same order, gives the same matches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval


class CrowdedCOCOeval(COCOeval):
    """``COCOeval`` that looks at the overlapping pairs alone; the results are its, entry by entry."""

    def evaluateImg(self, imgId: Any, catId: Any, aRng: list[float], maxDet: int) -> dict[str, Any] | None:  # noqa: N802, N803
        objects, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not objects and not found:
            return None
        low, high = aRng
        ignored = np.array([bool(g["ignore"]) or not low <= g["area"] <= high for g in objects], dtype=np.int64)
        order = np.argsort(ignored, kind="stable")  # those that do not count come last
        objects, ignored = [objects[i] for i in order], ignored[order]
        ranks = np.argsort([-d["score"] for d in found], kind="stable")[:maxDet]
        found = [found[i] for i in ranks]
        ious = self.ious[imgId, catId]  # of detections by falling score
        ious = ious[: len(found), order] if len(ious) else np.zeros((len(found), len(objects)))
        object_of = np.stack([self._match(ious, objects, ignored, t) for t in self.params.iouThrs])  # (T, D), -1: none
        matched = object_of >= 0
        object_ids, found_ids = (np.array([x["id"] for x in items], dtype=np.float64) for items in (objects, found))
        detection_matches, object_matches = np.zeros(matched.shape), np.zeros((len(matched), len(objects)))
        threshold, detection = matched.nonzero()
        taken = object_of[matched]
        detection_matches[matched] = object_ids[taken]
        object_matches[threshold, taken] = found_ids[detection]  # of a crowd the last one
        aside = np.zeros(matched.shape, dtype=bool)
        aside[matched] = ignored[taken] > 0
        outside = np.array([not low <= d["area"] <= high for d in found], dtype=bool)
        return {
            "image_id": imgId,
            "category_id": catId,
            "aRng": aRng,
            "maxDet": maxDet,
            "dtIds": [d["id"] for d in found],
            "gtIds": [g["id"] for g in objects],
            "dtMatches": detection_matches,
            "gtMatches": object_matches,
            "dtScores": [d["score"] for d in found],
            "gtIgnore": ignored,
            "dtIgnore": aside | (detection_matches == 0) & outside,
        }

    @staticmethod
    def _match(ious: np.ndarray, objects: list[dict], ignored: np.ndarray, threshold: float) -> np.ndarray:
        """(D,) object of each detection, -1 for none: the one of largest IoU that is free, the last of equals; one that
        does not count only where no other is."""
        least = min(threshold, 1 - 1e-10)
        matches, taken = np.full(len(ious), -1), set()
        detections, candidates = np.nonzero(ious >= least)
        starts = np.searchsorted(detections, np.arange(len(ious) + 1))
        for detection in np.unique(detections).tolist():
            best, best_iou = -1, least
            for place in candidates[starts[detection] : starts[detection + 1]].tolist():
                if place in taken and not objects[place]["iscrowd"]:
                    continue
                if best >= 0 and not ignored[best] and ignored[place]:
                    break
                if ious[detection, place] >= best_iou:
                    best, best_iou = place, ious[detection, place]
            if best >= 0:
                matches[detection] = best
                taken.add(best)
        return matches
