# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Where a training's numbers and pictures go besides metrics.json: TensorBoard, Weights & Biases, MLflow.

The last two are told their server, project and the like by their own environment variables, and keep the id of their
run in the output folder, so that a resumed training goes on in it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, TensorboardXWriter, get_event_storage

from ..checks import check_choice
from ..errors import UserError
from ..whole_file import whole_file
from .checks import flat
from .output import LOGGER_RUNS

logger = logging.getLogger(__name__)

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # by name in LOGGERS
_PROJECT = "paq_detr"


def check_loggers(cfg: CfgNode) -> None:
    """See that ``LOGGERS`` names what there is.

    Raises:
        UserError: a name is unknown or comes twice, or its package is not installed.
    """
    for name in cfg.LOGGERS:
        check_choice("LOGGERS", name, PACKAGES)
        if list(cfg.LOGGERS).count(name) > 1:
            raise UserError(f"LOGGERS is {list(cfg.LOGGERS)}, which names {name} twice")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"LOGGERS names {name}, which is not installed: pip install 'paq_detr[{name}]'")


def build_loggers(cfg: CfgNode) -> list[EventWriter]:
    """The writers of ``LOGGERS``."""
    writers: list[EventWriter] = [{"wandb": WandbRun, "mlflow": MlflowRun}[name](cfg)
                                  for name in cfg.LOGGERS if name != "tensorboard"]  # fmt: skip
    if "tensorboard" in cfg.LOGGERS:  # it takes the pictures away, hence the last
        writers.append(TensorboardXWriter(cfg.OUTPUT_DIR))
    return [*writers, _Forgetting()]


def new_scalars(after: int) -> dict[int, dict[str, float]]:
    """What the event storage holds of iterations later than ``after``: values by name, by iteration."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(20).items():
        if iteration > after:
            found[iteration][name] = value
    return found


class StartRuns(HookBase):
    """Begins the runs of writers that have one. Goes before the hook that writes."""

    def __init__(self, writers: Sequence[EventWriter]):
        self.writers = [writer for writer in writers if isinstance(writer, ServiceRun)]

    def before_train(self) -> None:
        for writer in self.writers:
            writer.start(resumed=self.trainer.start_iter > 0)


class ServiceRun(EventWriter):
    """A training as a run of a service; a service that fails later on is told of once and does not end the training."""

    name = ""

    def __init__(self, cfg: CfgNode):
        self.cfg, self._written, self._pictured, self._failed, self._done = cfg, -1, -1, False, False
        self.title = os.path.basename(os.path.abspath(cfg.OUTPUT_DIR))

    def start(self, resumed: bool) -> None:
        """
        Raises:
            UserError: the service cannot be reached, or does not let this user in.
        """
        known = self._ids()
        try:
            known[self.name] = self._begin(known.get(self.name) if resumed else None)
        except Exception as error:  # of whatever kind the service's package has
            text = " ".join(str(error).split()).split(". ")[0].rstrip(".")
            raise UserError(f"LOGGERS: a run of {self.name} cannot begin: {text} ({self.offline}).") from error
        with whole_file(self._file) as part, open(part, "w") as file:
            json.dump(known, file)

    @property
    def _file(self) -> str:
        return os.path.join(self.cfg.OUTPUT_DIR, LOGGER_RUNS)

    def _ids(self) -> dict[str, str]:
        try:
            with open(self._file, encoding="utf-8") as file:
                content = json.load(file)
        except (OSError, ValueError):
            content = None
        return content if isinstance(content, dict) else {}

    def write(self) -> None:
        storage = get_event_storage()
        self._done = storage.iter + 1 >= self.cfg.SOLVER.MAX_ITER
        scalars = new_scalars(self._written)
        pictures = [(name, image, at) for name, image, at in storage._vis_data if at > self._pictured]
        self._written = max(scalars, default=self._written)
        self._pictured = max((at for _, _, at in pictures), default=self._pictured)
        try:
            for iteration in sorted(scalars):
                self._send({k: v for k, v in scalars[iteration].items() if math.isfinite(v)}, iteration)
            for name, image, iteration in pictures:
                self._send_picture(name, np.asarray(image).transpose(1, 2, 0), iteration)
        except Exception as error:  # as in start
            self._tell(error)

    def close(self) -> None:
        try:
            self._end(self._done)
        except Exception as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        if not self._failed:
            logger.warning("%s takes no more of this training: %s", self.name, " ".join(str(error).split()))
        self._failed = True

    offline = ""  # what to do without the service

    def _begin(self, run_id: str | None) -> str:
        """Begin a run, or go on with the one of an id; returns its id."""
        raise NotImplementedError

    def _send(self, scalars: dict[str, float], iteration: int) -> None:
        raise NotImplementedError

    def _send_picture(self, name: str, image: np.ndarray, iteration: int) -> None:
        """``image``: (H, W, 3) uint8 RGB."""
        raise NotImplementedError

    def _end(self, done: bool) -> None:
        raise NotImplementedError


class WandbRun(ServiceRun):
    """Weights & Biases. Its own files go into the output folder; the axis is the iteration, so that what a resumed run
    writes once more replaces nothing and is not refused."""

    name = "wandb"
    offline = "with WANDB_MODE=offline it only writes files, which wandb sync sends later"
    _run: Any = None

    def _begin(self, run_id: str | None) -> str:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=os.environ.get("WANDB_NAME", self.title),
            id=run_id,
            resume="allow" if run_id else None,
            dir=self.cfg.OUTPUT_DIR,
            config=dict(flat(self.cfg)),
        )
        self._run.define_metric("iteration", hidden=True)
        self._run.define_metric("*", step_metric="iteration")
        return self._run.id

    def _send(self, scalars: dict[str, float], iteration: int) -> None:
        self._run.log({**scalars, "iteration": iteration})

    def _send_picture(self, name: str, image: np.ndarray, iteration: int) -> None:
        self._run.log({name: self._wandb.Image(image), "iteration": iteration})

    def _end(self, done: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if done else 1)


class MlflowRun(ServiceRun):
    """MLflow, by its client alone: the run is nobody else's active one."""

    name = "mlflow"
    offline = "MLFLOW_TRACKING_URI says where it writes, such as http://host:5000 or sqlite:////folder/mlflow.db"
    _client: Any = None
    _id = ""

    def _begin(self, run_id: str | None) -> str:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client = MlflowClient()
        if run_id:
            client.update_run(run_id, status="RUNNING")
        else:
            project = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            found = client.get_experiment_by_name(project)
            experiment = found.experiment_id if found else client.create_experiment(project)
            run_id = client.create_run(experiment, run_name=self.title).info.run_id
            params = [Param(key, str(value)[:500]) for key, value in flat(self.cfg)]  # its limits: 500, and 100 at once
            for start in range(0, len(params), 100):
                client.log_batch(run_id, params=params[start : start + 100])
        self._client, self._id = client, run_id
        return run_id

    def _send(self, scalars: dict[str, float], iteration: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_allowed(name), value, now, iteration) for name, value in scalars.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._id, metrics=metrics[start : start + 1000])

    def _send_picture(self, name: str, image: np.ndarray, iteration: int) -> None:
        self._client.log_image(self._id, image, f"{_allowed(name)}/{iteration:07d}.png")

    def _end(self, done: bool) -> None:
        if self._client is not None:
            self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")


def _allowed(name: str) -> str:
    """A name of a metric as MLflow takes it."""
    return re.sub(r"[^\w.\- :/]", "_", name)


class _Forgetting(EventWriter):
    """Comes last: pictures that every writer has seen are kept no longer."""

    def write(self) -> None:
        get_event_storage().clear_images()
