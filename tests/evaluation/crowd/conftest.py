# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from paq_detr.evaluation.crowd.cli import evaluate_files


@pytest.fixture
def evaluate(tmp_path):
    """Write odgt records and detections to files and evaluate them in one process."""

    def run(annotations, detections, **options):
        gt, dt = tmp_path / "gt.odgt", tmp_path / "dt.json"
        gt.write_text("".join(json.dumps(record) + "\n" for record in annotations))
        lines = isinstance(detections, list) and (not detections or "ID" in detections[0])
        dt.write_text("".join(json.dumps(r) + "\n" for r in detections) if lines else json.dumps(detections))
        return evaluate_files(str(gt), str(dt), **{"workers": 1, **options})

    return run
