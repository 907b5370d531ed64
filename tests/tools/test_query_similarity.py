# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from plot_query_similarity import Pairs, draw, main, measure, pair_similarity
from torch.nn import functional as F

from ..boxes import iou
from ..figures import curves, texts
from ..modeling.assemblies import DEHOMO, PLUSPLUS, make_image, make_model, wake_up


def test_pairs_are_those_that_overlap():
    boxes = torch.tensor([[0.2, 0.5, 0.2, 0.2], [0.3, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2]])
    content = torch.randn(3, 4)
    overlap, cosine = pair_similarity(content, boxes)
    assert overlap == pytest.approx([iou((0.1, 0.4, 0.3, 0.6), (0.2, 0.4, 0.4, 0.6))])
    assert cosine == pytest.approx([F.cosine_similarity(*content[:2], dim=0).item()])


def test_bins_hold_mean_and_spread():
    pairs = Pairs([np.array([0.42, 0.48, 1.0])], [np.array([0.2, 0.6, 1.0])])
    low, high = pairs.by_iou()
    assert (low["iou"], low["pairs"], low["mean"], low["std"]) == pytest.approx((0.45, 2, 0.4, 0.2))
    assert (high["iou"], high["mean"]) == pytest.approx((0.95, 1.0))
    assert Pairs().by_iou() == []


@pytest.mark.parametrize("options", [PLUSPLUS, DEHOMO], ids=["self_attention", "generator"])
def test_content_is_seen_before_and_after_the_step_between_queries(options):
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
    assert not model.routes["main"].decoder._forward_hooks


def bin_of(iou, pairs, mean, std):
    return {"iou": iou, "pairs": pairs, "mean": mean, "std": std}


def test_a_panel_per_layer_shows_mean_and_spread_before_and_after(tmp_path, figures):
    before = [bin_of(0.05, 40, 0.25, 0.125), bin_of(0.95, 12, 0.9375, 0.25)]
    layers = [{"before": before, "after": before[:1]}, {"before": before[1:], "after": before}]
    draw(str(tmp_path / "q.png"), layers, "dh_seed1 on 5 images")
    figure = figures["q.png"]
    assert figure.get_suptitle() == "dh_seed1 on 5 images"
    assert [axis.get_title() for axis in figure.axes] == ["Decoder layer 1", "Decoder layer 2"]
    for axis, layer in zip(figure.axes, layers, strict=True):
        for place, band in zip(("before", "after"), axis.collections, strict=True):
            rows = layer[place]
            drawn = curves(axis)[f"{place} the query-to-query step"]
            assert drawn == ([row["iou"] for row in rows], [row["mean"] for row in rows])
            spread = {(row["iou"], min(row["mean"] + s * row["std"], 1)) for row in rows for s in (-1, 1)}
            assert spread == set(map(tuple, band.get_paths()[0].vertices.tolist()))


def test_bins_of_few_pairs_are_not_drawn_and_an_empty_panel_says_so(tmp_path, figures):
    rows = [bin_of(0.05, 10, 0.5, 0.1), bin_of(0.15, 9, 0.5, 0.1)]
    draw(str(tmp_path / "q.png"), [{"before": r, "after": r} for r in (rows, rows[1:], [])], "a run")
    axes = figures["q.png"].axes
    assert [[x for x, _ in curves(axis).values()] for axis in axes] == [[[0.05]] * 2, [[]] * 2, [[]] * 2]
    assert [texts(axis) for axis in axes] == [[], ["fewer than 10 pairs\nin every IoU bin"], ["no pairs"]]


def test_no_images_at_all_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["plot", "--config-file", "any.yaml", "--output", "out", "--images", "0"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2 and "--images is 0, must be at least 1" in capsys.readouterr().err
