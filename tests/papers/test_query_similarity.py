# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ..modeling.assemblies import DEHOMO, PLUSPLUS, make_image, make_model, wake_up

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from plot_query_similarity import Pairs, draw, main, measure, pair_similarity  # noqa: E402


def test_pairs_are_those_that_overlap():
    boxes = torch.tensor([[0.2, 0.5, 0.2, 0.2], [0.3, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2]])
    content = torch.randn(3, 4)
    iou, cosine = pair_similarity(content, boxes)
    assert iou == pytest.approx([1 / 3]) and cosine == pytest.approx([F.cosine_similarity(*content[:2], dim=0).item()])


def test_bins_hold_mean_and_spread():
    pairs = Pairs([np.array([0.42, 0.48, 1.0])], [np.array([0.2, 0.6, 1.0])])
    low, high = pairs.by_iou()
    assert (low["iou"], low["pairs"], low["mean"], low["std"]) == pytest.approx((0.45, 2, 0.4, 0.2))
    assert (high["iou"], high["mean"]) == pytest.approx((0.95, 1.0))
    assert Pairs().by_iou() == []


@pytest.mark.parametrize("options", [PLUSPLUS, DEHOMO], ids=["self_attention", "generator"])
def test_content_is_seen_before_and_after_the_step_between_queries(options, tmp_path):
    model = wake_up(make_model(options))
    with torch.no_grad():
        for head in model.routes["main"].decoder.class_heads:
            head.bias.add_(4)
    layers = measure(model, [[make_image(64, 96)], [make_image(50, 120)]], score=0.1)
    assert len(layers) == 3
    for number, layer in enumerate(layers):
        before, after = (np.concatenate(layer[place].cosine) for place in ("before", "after"))
        assert len(before) == len(after) > 0
        assert np.array_equal(before, after) == (options is DEHOMO and number == 0)  # no step in front of layer 1
    draw(str(tmp_path / "q.png"), [{place: p.by_iou() for place, p in layer.items()} for layer in layers], "a run")
    assert plt.imread(tmp_path / "q.png").std() > 0
    assert not model.routes["main"].decoder._forward_hooks


def test_bins_of_few_pairs_are_not_drawn_and_an_empty_panel_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    rows = [{"iou": iou, "pairs": pairs, "mean": 0.5, "std": 0.1} for iou, pairs in ((0.05, 10), (0.15, 9))]
    draw(str(tmp_path / "q.png"), [{"before": r, "after": r} for r in (rows, rows[1:], [])], "dh_seed1 on 5 images")
    figure = plt.gcf()
    assert figure.get_suptitle() == "dh_seed1 on 5 images"
    assert [[list(line.get_xdata()) for line in axis.lines] for axis in figure.axes] == [
        [[0.05]] * 2,
        [[]] * 2,
        [[]] * 2,
    ]
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert texts == [[], ["fewer than 10 pairs\nin every IoU bin"], ["no pairs"]]


def test_no_images_at_all_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["plot", "--config-file", "any.yaml", "--output", "out", "--images", "0"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2 and "--images is 0, must be at least 1" in capsys.readouterr().err
