# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The two published ways to evaluate: CrowdDet's program, and the one behind DH-DETR's numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

# What an IoU may fall short of 0.5 under ``pairs_at_half`` where an image has a single person, or a single detection
# above the score threshold: there the release compares with a tolerance. It decides, since the epsilon in the overlaps'
# own denominator puts an exact half just below 0.5.
LONE_SLACK = 1e-7


@dataclass(frozen=True)
class Protocol:
    """Where the two published ways to evaluate differ."""

    name: str
    min_score: float  # detections below are dropped before everything
    score_thresholds: tuple[float, ...]  # at which JI is computed
    regions_without_persons: bool  # whether AP and MR look at ignore regions in an image without a person
    count_first: bool  # JI matches as many pairs as possible, or (False) the heaviest set of pairs
    pairs_at_half: bool  # JI takes an IoU of just 0.5 as a pair, with ``LONE_SLACK`` in images of one box
    mean_over_all: bool  # JI is the mean over all images, or (False) those with anything to count
    own_truth: bool  # JI takes the ground truth and size that the detection file carries, where it does


CROWDDET = Protocol(
    name="crowddet",
    min_score=-math.inf,
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
