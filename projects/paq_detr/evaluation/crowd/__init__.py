# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""CrowdHuman's metrics: AP, MR-2, JI and recall of crowded images.

``protocols`` names the two published ways to evaluate, ``matching`` finds which boxes overlap, ``images`` reduces
images to what the metrics count, ``metrics`` sums that up, and ``report`` puts it into words. ``evaluator`` feeds them
from a model and ``cli`` from ``files``. All but ``evaluator`` do without torch, so that the command starts at once.
"""
