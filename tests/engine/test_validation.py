# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses over the test data, and the picture of a training."""

import json

import pytest
import torch
from detectron2.utils.events import EventStorage

from paq_detr.engine import UserError
from paq_detr.engine.curves import draw_at_end, draw_curves, draw_run, read_metrics
from paq_detr.engine.validation import validation_losses
from tests.modeling.assemblies import ASSEMBLIES, make_image, make_model, wake_up

from ..figures import curves, figures  # noqa: F401  (a fixture)
from .test_trainer import assert_equal_states, train, weights

FLOAT32 = {"device_type": "cpu", "dtype": torch.bfloat16, "enabled": False}
IMAGES = [
    make_image(64, 96, [[4, 6, 40, 50], [30, 8, 90, 60]], [0, 2], seed=1),
    make_image(64, 96, [[10, 10, 80, 40]], [1], seed=2),
]


def test_they_are_the_losses_of_all_images_in_one_batch_without_dropout_and_change_nothing():
    model = wake_up(make_model(ASSEMBLIES["plusplus_paq"], **{"MODEL.DETR.DROPOUT": 0.5})).eval()
    matched = model.matched_slots.matched.clone()
    with EventStorage(20) as storage:
        found = validation_losses(model, [[image] for image in IMAGES], FLOAT32, 20)
    assert not storage.latest() and not model.training and torch.equal(model.matched_slots.matched, matched)
    still = wake_up(make_model(ASSEMBLIES["plusplus_paq"], **{"MODEL.DETR.DROPOUT": 0.0})).train()
    expected = {name: float(value) for name, value in still(IMAGES).items()}
    assert found.pop("total_loss") == pytest.approx(sum(expected.values()), rel=1e-4)
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_training_writes_them_and_goes_on_as_without(make_cfg, tmp_path):
    opts = ("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "[]", "TEST.EVAL_PERIOD", 1)
    without = train(make_cfg(*opts, "OUTPUT_DIR", tmp_path / "without"))
    trainer = train(make_cfg(*opts, "TEST.LOSS", True))
    assert_equal_states(weights(trainer), weights(without))
    lines = read_metrics(f"{trainer.cfg.OUTPUT_DIR}/metrics.json")
    names = {key for line in lines for key in line}
    assert {"validation/total_loss", "validation/loss_class/final", "bbox/AP"} <= names


LINES = [
    {"iteration": 19, "total_loss": 3.0, "loss_l1/final": 1.0, "loss_l1/layer0": 7.0},
    {"iteration": 39, "bbox/AP": 12.0, "bbox/AP50": 30.0, "validation/total_loss": 2.5},
    {"iteration": 39, "total_loss": 2.0, "loss_l1/final": 0.5, "loss_giou/final": None},
]


def write(folder, lines):
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    return str(folder)


def test_the_curves_come_from_metrics_json(tmp_path, figures):  # noqa: F811
    assert draw_run(write(tmp_path, LINES)) == str(tmp_path / "curves.png")
    left, right = figures["curves.png"].axes
    assert curves(left) == {
        "total_loss": ([19, 39], [3, 2]),
        "validation/total_loss": ([39], [2.5]),
        "loss_l1/final": ([19, 39], [1, 0.5]),
    }
    assert curves(right) == {"bbox/AP": ([39], [12]), "bbox/AP50": ([39], [30])}
    assert (left.get_yscale(), right.get_ylim(), right.get_xlim()) == ("log", (0, 100), left.get_xlim())


def test_of_several_datasets_each_has_its_curve(tmp_path, figures):  # noqa: F811
    lines = [*LINES, {"iteration": 39, "a/bbox/AP": 1.0, "b/bbox/AP": 2.0, "a/validation/total_loss": 4.0}]
    draw_run(write(tmp_path, lines))
    left, right = figures["curves.png"].axes
    assert {"a/bbox/AP", "b/bbox/AP"} <= curves(right).keys() and "a/validation/total_loss" in curves(left)


def test_what_is_no_metrics_file_is_said_and_one_point_is_not_drawn(tmp_path):
    assert draw_run(write(tmp_path, LINES[:2])) == ""
    with pytest.raises(UserError, match="metrics.json is no metrics.json of a training"):
        draw_run(write(tmp_path, [["x"]]))
    with pytest.raises(UserError, match="metrics.json cannot be read"):
        read_metrics(str(tmp_path / "none" / "metrics.json"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lines, shown", [(LINES[:1], (2, 0)), (LINES[1:2], (1, 2)), ([], (0, 0))])
def test_a_side_without_a_curve_has_no_legend(tmp_path, figures, lines, shown):  # noqa: F811
    draw_curves(str(tmp_path / "c.png"), lines)
    axes = figures["c.png"].axes
    assert tuple(len(curves(axis)) for axis in axes) == shown
    assert [axis.get_legend() is not None for axis in axes] == [count > 0 for count in shown]


def test_a_training_of_one_point_says_that_it_has_no_curves(tmp_path, caplog):
    with caplog.at_level("INFO", logger="paq_detr"):
        draw_at_end(write(tmp_path, LINES[:2]))
    assert "No curves are drawn" in caplog.text and not (tmp_path / "curves.png").exists()
