# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from demo_figures import DPI, PAIRS, PANEL, Labelled, draw_losses, draw_predictions  # noqa: E402


@pytest.mark.parametrize("count", [1, 3, 4])
def test_every_image_is_drawn_twice_and_enlarged(tmp_path, count):
    images = [np.full((40, 60, 3), 200, np.uint8)] * count
    truth = [Labelled(np.array([[5.0, 5, 20, 30]]), [0], ignored_xyxy=np.array([[30.0, 5, 50, 20]]))] * count
    found = [Labelled(np.zeros((0, 4)), [], [])] * count
    draw_predictions(str(tmp_path / "p.png"), images, truth, found, ["a thing", "another"])
    height, width, _ = plt.imread(tmp_path / "p.png").shape
    assert width == 2 * PAIRS * PANEL * DPI
    assert height > -(-count // PAIRS) * PANEL * DPI * 40 / 60


def test_the_curves_come_from_detectron2s_metrics_file(tmp_path):
    lines = [{"iteration": 19, "total_loss": 3.0, "loss_l1/final": 1.0}, {"iteration": 39, "bbox/AP": 12.0}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    draw_losses(str(tmp_path / "loss.png"), str(tmp_path / "metrics.json"))
    assert plt.imread(tmp_path / "loss.png").std() > 0
