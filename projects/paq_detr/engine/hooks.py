# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Hooks that Detectron2 0.6 has not, or has in a form that an exact resume cannot use, and two writers: metrics.json
and a short progress line."""

from __future__ import annotations

import datetime
import json
import logging
import math
import os
import time
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

from ..evaluation.thresholds import read_thresholds
from ..whole_file import whole_file
from .loggers import new_scalars

logger = logging.getLogger(__name__)


class PeriodicCheckpoint(HookBase):
    """Saves model_<iteration> every ``period`` iterations and model_final at the end.

    Runs on every process, since the random number generators of all of them belong into the checkpoint. Only the last
    ``keep`` periodic checkpoints of this run stay (0: all).
    """

    def __init__(self, period: int, keep: int = 0):
        self.period, self.keep = period, keep
        self._saved: list[str] = []

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.trainer.save("model_final")
        elif done % self.period == 0:
            name = f"model_{self.trainer.iter:07d}"
            self.trainer.save(name)
            self._saved.append(name)
            while self.keep and len(self._saved) > self.keep and comm.is_main_process():
                os.remove(os.path.join(self.trainer.cfg.OUTPUT_DIR, f"{self._saved.pop(0)}.pth"))


class StopOnSignal(HookBase):
    """Ends training after the step in which a signal to end came, its state saved. Goes after what saves anyway."""

    def after_step(self) -> None:
        if self.trainer.must_stop():
            raise self.trainer.interrupted()


class BestCheckpoint(HookBase):
    """Saves the weights as model_best whenever an evaluation gives a better ``metric`` than all before.

    Goes after the hook that evaluates. ``metric`` is its name in the event storage, such as "bbox/AP"; a leading minus
    means that lower is better. The best value is kept in model_best.json, so that a resumed run still knows it; with it
    stand the score thresholds that this evaluation found, as later ones write over them, and the iterations of the
    evaluations since, which had no better one.
    """

    def __init__(self, metric: str):
        self.sign, self.metric = (-1.0, metric[1:]) if metric.startswith("-") else (1.0, metric)
        self._best, self._seen, self._warned = -math.inf, -1, False
        self.kept: dict[str, Any] = {}  # model_best.json

    @property
    def without_gain(self) -> list[int]:
        """Iterations of the evaluations since the best one."""
        return self.kept.get("without_gain", [])

    def before_train(self) -> None:
        if self.trainer.start_iter and os.path.isfile(self._record):
            with open(self._record, "rb") as file:
                record = _object_of(file.read())
            value, iteration = record.get("value"), record.get("iteration")
            if not isinstance(value, float) or not isinstance(iteration, int):
                logger.warning("%s cannot be read: the next evaluation counts as the best so far", self._record)
            elif record.get("metric") == self.metric and iteration <= self.trainer.start_iter:
                self._best, self.kept = self.sign * value, record
                since = record.get("without_gain")
                since = since if isinstance(since, list) else []
                record["without_gain"] = [i for i in since if i < self.trainer.start_iter]

    def after_step(self) -> None:
        self._check()

    def after_train(self) -> None:
        self._check()  # the last evaluation runs in after_train

    @property
    def _record(self) -> str:
        return os.path.join(self.trainer.cfg.OUTPUT_DIR, "model_best.json")

    def _check(self) -> None:
        latest = self.trainer.storage.latest()
        if self.metric not in latest and "bbox/AP" in latest and not self._warned:
            self._warned = True
            known = ", ".join(name for name in latest if name.startswith(("bbox/", "crowd/", "query_use/")))
            logger.warning("TEST.BEST_METRIC %s is no result of the evaluation: none is kept as the best; there is %s",
                           self.metric, known)  # fmt: skip
        value, iteration = latest.get(self.metric, (math.nan, self._seen))
        if iteration == self._seen:
            return
        self._seen = iteration
        if math.isfinite(value) and self.sign * value > self._best:
            self._best = self.sign * value
            logger.info("%s is %.5g, the best so far: saved as model_best.pth", self.metric, value)
            self.kept = {"metric": self.metric, "value": value, "iteration": iteration, "without_gain": []}
            self.trainer.save_evaluated("model_best", iteration=iteration, metric=self.metric, value=value)
            self.kept["score_thresholds"] = read_thresholds(self.trainer.cfg.OUTPUT_DIR)
        elif self.kept:
            self.without_gain.append(iteration)
        if self.kept:
            with whole_file(self._record) as part, open(part, "w") as file:
                json.dump(self.kept, file)


class EnoughTraining(Exception):
    """Ends a training that gains nothing any more; says so in one sentence."""


class Patience(HookBase):
    """Ends training, its state saved as model_final, once ``patience`` evaluations gave no better metric.

    Goes after the hook that evaluates and, on the main process, after ``best``; on every process.
    """

    def __init__(self, patience: int, best: BestCheckpoint | None):
        self.patience, self.best = patience, best

    def after_step(self) -> None:
        trainer = self.trainer
        if trainer.evaluated != trainer.iter:
            return
        since = comm.all_gather(len(self.best.without_gain) if self.best else 0)[0]
        if since < self.patience or trainer.iter + 1 >= trainer.max_iter:
            return
        trainer.save("model_final")
        best = self.best.kept if self.best else {"metric": "", "value": 0, "iteration": 0}
        raise EnoughTraining(
            f"{best['metric']} has not been better than {best['value']:.5g} (iteration {best['iteration'] + 1}) in the "
            f"last {since} evaluations (TEST.PATIENCE): training ends after iteration {trainer.iter + 1} of "
            f"{trainer.max_iter}, saved as {os.path.join(trainer.cfg.OUTPUT_DIR, 'model_final.pth')}"
        )


class FirstStep(HookBase):
    """Says how long the first iteration took; on a CPU the first line of progress can be minutes away."""

    def __init__(self, period: int):
        self.period = period

    def before_train(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        if self.trainer.iter == self.trainer.start_iter:
            seconds = time.perf_counter() - self._start
            logger.info("The first iteration took %.1f s; progress is told every %d", seconds, self.period)


class MetricsWriter(EventWriter):
    """metrics.json: a line of JSON per logged iteration, null for a value that is not finite (JSON has no NaN)."""

    def __init__(self, path: str):
        self._path, self._file, self._written = path, open(path, "a"), -1

    def go_on_from(self, iteration: int) -> None:
        """Cut off what a killed run wrote of ``iteration`` and later ones, which come once more, and half lines."""
        with open(self._path, "rb") as file:
            lines = file.readlines()
        kept = [line for line in lines if line.endswith(b"\n") and _iteration_of(line) < iteration]
        if kept != lines:
            self._file.close()
            with whole_file(self._path) as part, open(part, "wb") as file:
                file.writelines(kept)
            self._file = open(self._path, "a")

    def write(self) -> None:
        lines = new_scalars(self._written)
        for iteration, values in lines.items():
            scalars = {name: value if math.isfinite(value) else None for name, value in values.items()}
            self._file.write(json.dumps({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
        self._file.flush()
        self._written = max(lines, default=self._written)

    def close(self) -> None:
        self._file.close()


def _iteration_of(line: bytes) -> float:
    iteration = _object_of(line).get("iteration")
    return iteration if isinstance(iteration, int) else math.inf


def _object_of(text: bytes) -> dict[str, Any]:
    """The json object; an empty one where the text is none."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}


SHARED = 0.7  # of the time of a step a thread that computes has a core to itself, where no other program wants it


def shared_cores(share: float) -> str:
    """What to say where processor time and wall time disagree."""
    threads = torch.get_num_threads()
    advice = "; OMP_NUM_THREADS=1 may be faster, as threads wait for each other" if threads > 1 else ""
    return f"the cores are shared: of a step's time, this program computed {share:.0%}{advice}"


class ProgressWriter(EventWriter):
    """One line of progress: the total loss, the terms of the last decoder layer, speed and time left.

    Every other scalar is in metrics.json and TensorBoard; with denoising and several routes there are dozens.
    """

    def __init__(self, max_iter: int):
        self.max_iter, self._written = max_iter, 0

    def write(self) -> None:
        storage = get_event_storage()
        scalars = storage.histories()
        done = min(storage.iter + 1, self.max_iter)
        if done == self._written:  # the writers are called once more when training ends
            return
        self._written = done
        parts = [f"iteration {done}/{self.max_iter}"]
        if "total_loss" in scalars:
            terms = [name for name in scalars if name.startswith("loss_") and name.endswith("/final")]
            shown = [f"{name[len('loss_') : -len('/final')]} {scalars[name].median(20):.3f}" for name in terms]
            parts.append(f"loss {scalars['total_loss'].median(20):.3f} (last layer: {', '.join(shown)})")
        alive = scalars["alive_share/final"].latest() if "alive_share/final" in scalars else 1.0
        if alive < 1:  # DEHOMO.FLOOR_SCORE drops some
            parts.append(f"{alive:.1%} of the queries alive in the last layer")
        if "time" in scalars:
            seconds = scalars["time"].median(100)
            left = datetime.timedelta(seconds=int(seconds * (self.max_iter - done)))
            waiting = scalars["data_time"].median(100) if "data_time" in scalars else 0.0
            parts.append(f"{seconds:.3f} s per iteration, {waiting:.3f} of it waiting for data, {left} left")
        if "core_share" in scalars and (share := scalars["core_share"].median(20)) < SHARED:
            parts.append(shared_cores(share))
        if "lr" in scalars:
            parts.append(f"lr {scalars['lr'].latest():.3g}")
        if torch.cuda.is_available():
            parts.append(f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
        logger.info("; ".join(parts))
