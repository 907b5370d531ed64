# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Loggers, with the packages themselves: W&B offline, MLflow with its store of files."""

import importlib.util
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from paq_detr.engine import UserError
from paq_detr.engine.loggers import ServiceRun, StartRuns, build_loggers
from paq_detr.engine.shown import ShownPictures

from .test_trainer import train


def run(cfg, iterations, resumed=False, value=1.0):
    """What a training does with its loggers, without a model."""
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    writers = build_loggers(cfg)
    hook = StartRuns(writers)
    hook.trainer = SimpleNamespace(start_iter=iterations[0] if resumed else 0)
    with EventStorage(iterations[0]) as storage:
        hook.before_train()
        for storage.iter in iterations:
            storage.put_scalars(total_loss=value + storage.iter, odd=float("nan"), smoothing_hint=False)
            storage.put_image("pictures/a/0", torch.full((3, 4, 6), storage.iter, dtype=torch.uint8))
            for writer in writers:
                writer.write()
            assert storage._vis_data == []
        for writer in writers:
            writer.close()
    path = os.path.join(cfg.OUTPUT_DIR, "logger_runs.json")
    return json.load(open(path)) if os.path.exists(path) else {}


@pytest.fixture
def mlflow(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    package = pytest.importorskip("mlflow", reason="needs the extra 'mlflow'")
    return package.MlflowClient()


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return pytest.importorskip("wandb", reason="needs the extra 'wandb'")


def test_a_resumed_mlflow_run_goes_on(make_cfg, mlflow):
    cfg = make_cfg("LOGGERS", "mlflow")
    first = run(cfg, [0, 1])
    assert mlflow.get_run(first["mlflow"]).info.status == "KILLED"  # before the last iteration
    second = run(cfg, [1, 2, 3], resumed=True)
    assert first == second
    found = mlflow.get_run(second["mlflow"])
    assert found.info.status == "FINISHED" and found.info.run_name == "output"
    assert found.data.params["SOLVER.IMS_PER_BATCH"] == "2" and "odd" not in found.data.metrics
    steps = [(m.step, m.value) for m in mlflow.get_metric_history(second["mlflow"], "total_loss")]
    assert sorted(steps) == [(0, 1.0), (1, 2.0), (1, 2.0), (2, 3.0), (3, 4.0)]
    pictures = {file.path for file in mlflow.list_artifacts(second["mlflow"], "pictures/a/0")}
    assert pictures == {f"pictures/a/0/{i:07d}.png" for i in range(4)}
    assert run(cfg, [0])["mlflow"] != first["mlflow"]  # a training that begins anew has a run of its own


def test_a_resumed_wandb_run_goes_on(make_cfg, wandb):
    cfg = make_cfg("LOGGERS", "wandb")
    first = run(cfg, [0, 1])
    second = run(cfg, [1, 2, 3], resumed=True)
    assert first == second
    folder = os.path.join(cfg.OUTPUT_DIR, "wandb")
    runs = [name for name in os.listdir(folder) if name.startswith("offline-run-")]
    assert runs and {name.rsplit("-", 1)[1] for name in runs} == {first["wandb"]}
    pictures = [name for _, _, names in os.walk(folder) for name in names if name.endswith(".png")]
    assert len(pictures) == 5
    assert run(cfg, [0])["wandb"] != first["wandb"]


def test_without_loggers_nothing_is_kept(make_cfg):
    cfg = make_cfg("LOGGERS", "[]")
    assert run(cfg, [0]) == {} and not any("tfevents" in name for name in os.listdir(cfg.OUTPUT_DIR))


class Broken(ServiceRun):
    name, offline = "mlflow", "do this"

    def _begin(self, run_id):
        if self.cfg is None:
            raise RuntimeError("no key.  Log\nin. And more")
        return "id"

    def _send(self, scalars, iteration):
        raise ConnectionError("the network is gone")


def test_a_service_that_cannot_be_reached_is_one_sentence_and_one_that_fails_later_a_warning(make_cfg, caplog):
    cfg = make_cfg()
    os.makedirs(cfg.OUTPUT_DIR)
    writer = Broken(cfg)
    writer.start(resumed=False)
    with EventStorage() as storage:
        for storage.iter in range(3):
            storage.put_scalar("a", 1.0)
            writer.write()
    writer.close()
    assert caplog.text.count("takes no more of this training: the network is gone") <= 1
    writer.cfg, ids = None, writer._ids
    writer._ids = dict
    with pytest.raises(UserError, match=r"^LOGGERS: a run of mlflow cannot begin: no key \(do this\)\.$"):
        writer.start(resumed=False)
    assert ids


@pytest.mark.parametrize(
    "names, message",
    [
        ("[tensorbord]", 'LOGGERS is "tensorbord", must be one of tensorboard, wandb, mlflow'),
        ("[wandb, wandb]", "LOGGERS is .*, which names wandb twice"),
        ("[wandb]", r"LOGGERS names wandb, which is not installed: pip install 'paq_detr\[wandb\]'"),
    ],
)
def test_wrong_names_and_missing_packages_are_one_sentence(make_cfg, monkeypatch, names, message):
    find = importlib.util.find_spec
    missing = names == "[wandb]"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" and missing else object()
                        if name == "wandb" else find(name, *a))  # fmt: skip
    with pytest.raises(UserError, match=message):
        make_cfg("LOGGERS", names)


# ---- pictures ----


class Finds(nn.Module):
    """Finds one object in the upper left quarter, and one that it does not believe in."""

    def forward(self, batch):
        height, width = batch[0]["height"], batch[0]["width"]
        found = Instances((height, width))
        found.pred_boxes = Boxes(torch.tensor([[0.0, 0, width / 2, height / 2], [0.0, 0, width, height]]))
        found.scores, found.pred_classes = torch.tensor([0.9, 0.1]), torch.tensor([0, 1])
        return [{"instances": found}]


def test_pictures_hold_truth_and_predictions_beside_each_other(make_cfg):
    cfg = make_cfg("TEST.PICTURES", 3)
    with EventStorage() as storage:
        shown = ShownPictures(cfg)
        shown.log(Finds())
        shown.log(Finds())
        names = [name for name, _, _ in storage._vis_data]
        pictures = [image.numpy() for _, image, _ in storage._vis_data]
    assert names == [f"pictures/synthetic_crowd_val/{i}" for i in range(2)] * 2  # the dataset has two
    assert all(np.array_equal(a, b) for a, b in zip(pictures[:2], pictures[2:]))
    assert pictures[0].shape == (3, 64, 2 * 80 + 4) and pictures[0].dtype == np.uint8
    assert (pictures[0][:, :, 80:84] == 255).all()
    left, right = pictures[0][:, :, :80], pictures[0][:, :, 84:]
    differ = (left != right).any(0)
    assert differ[:34, :42].any() and differ[30, 5:36].mean() > 0.5  # the lower side of the box that was found


def test_pictures_cost_no_random_number_and_can_be_left_out(make_cfg):
    with EventStorage() as storage:
        for opts in (("TEST.PICTURES", 0), ("LOGGERS", "[]")):
            ShownPictures(make_cfg(*opts)).log(Finds())
        assert storage._vis_data == []


def test_a_training_writes_pictures_for_tensorboard(make_cfg):
    cfg = make_cfg("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "[]")
    train(cfg)
    events = EventAccumulator(cfg.OUTPUT_DIR, size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == [f"pictures/synthetic_crowd_val/{i}" for i in range(2)]
    assert re.fullmatch(r"\d+", str(events.Images("pictures/synthetic_crowd_val/0")[0].step))
