# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The training loop: Detectron2's hooks and events around a step that knows mixed precision, gradient clipping of the
whole model, exact resume, and how to say which batch made a loss infinite."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import weakref
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import TrainerBase, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import Tensor, nn

from ..data.mapper import DetrDatasetMapper
from ..errors import Interrupted, UserError
from ..evaluation import build_evaluator
from .build import build_detector, distributed
from .checkpoint import DetrCheckpointer
from .cli import save_config
from .compile import compile_parts
from .curves import draw_at_end
from .ema import WeightAverage
from .hooks import (
    BestCheckpoint,
    EnoughTraining,
    FirstStep,
    MetricsWriter,
    Patience,
    PeriodicCheckpoint,
    ProgressWriter,
    StopOnSignal,
)
from .interrupt import StopRequest
from .learn import Learner
from .loader import NamedFaults, TrainLoader, build_train_loader
from .loggers import StartRuns, build_loggers
from .non_finite import first_non_finite, non_finite_error
from .output import AVERAGED
from .resume import check_resumable, load_optimizer, training_state
from .rng import preserved_rng, rng_state, set_rng_state
from .shown import ShownPictures
from .solver import build_clipper, build_optimizer, build_scheduler, resolve_schedule
from .validation import add_validation_losses

logger = logging.getLogger(__name__)

PROGRESS_PERIOD = 20  # iterations

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # by SOLVER.AMP.DTYPE


class Trainer(TrainerBase):
    """Trains ``cfg`` (see ``setup_config``), evaluates, and saves checkpoints into ``cfg.OUTPUT_DIR``.

        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()

    A resumed run continues exactly: the checkpoint holds the model, the optimiser, the schedule, the random number
    generators of every process, and the position in the data.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.data_loader, num_images = self.build_train_loader(cfg)
        self._given, self._num_images = cfg, num_images
        self.cfg = cfg = resolve_schedule(cfg, num_images)
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        model = build_detector(cfg)
        self.device = next(model.parameters()).device
        compile_parts(model, cfg.MODEL.COMPILE, self.device)
        self.optimizer = build_optimizer(cfg, model)
        self.scheduler = build_scheduler(cfg, self.optimizer)
        self.checkpointer = DetrCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.checkpointer.run_config = cfg.dump()
        self.model = distributed(model, self.device)
        self.max_iter = cfg.SOLVER.MAX_ITER

        amp = cfg.SOLVER.AMP
        self.autocast = {"device_type": self.device.type, "dtype": _DTYPES[amp.DTYPE], "enabled": amp.ENABLED}
        # float16 gradients underflow without a scale; a disabled scaler passes everything through.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp.ENABLED and amp.DTYPE == "float16")
        this = weakref.proxy(self)  # no circle, which would keep the model
        self.learn = Learner(
            self.model, lambda loss: this.scaler.scale(loss).backward(), self.autocast, cfg.SOLVER.ACCUMULATE
        )
        self.clip = build_clipper(cfg)
        self._batches = iter(NamedFaults(self.data_loader))
        self._rng_states: list[dict] | None = None  # of every process: gathered for a save, or loaded
        self.results: dict[str, Any] = {}  # of the last evaluation
        self.evaluated = -1  # its iteration
        self.shown = ShownPictures(cfg)
        self.stop = StopRequest()
        self.average: WeightAverage | None = None
        self._a_process_stops = False  # a signal came to one of them in the last step
        self._saved = -1, ""  # iteration and name of the last checkpoint
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> tuple[TrainLoader, int]:
        """The loader of ``cfg.DATASETS.TRAIN`` and the number of its images."""
        return build_train_loader(cfg)

    def build_hooks(self) -> list[hooks.HookBase]:
        cfg = self.cfg
        ema = cfg.SOLVER.EMA
        if ema.ENABLED:
            self.average = WeightAverage(self.checkpointer.model, ema.DECAY, ema.WARMUP_ITERS)
        built = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            *filter(None, [self.average]),
            PeriodicCheckpoint(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_KEEP),
            StopOnSignal(),
        ]
        if cfg.DATASETS.TEST:
            built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        best = BestCheckpoint(cfg.TEST.BEST_METRIC) if cfg.DATASETS.TEST and cfg.TEST.BEST_METRIC else None
        if not comm.is_main_process():
            best = None
        if best is not None:
            built.append(best)
        if cfg.TEST.PATIENCE:
            built.append(Patience(cfg.TEST.PATIENCE, best))
        if comm.is_main_process():
            self._metrics = MetricsWriter(os.path.join(cfg.OUTPUT_DIR, "metrics.json"))
            self._progress = ProgressWriter(self.max_iter)
            writers = [self._progress, self._metrics, *build_loggers(cfg)]
            built += [
                FirstStep(PROGRESS_PERIOD),
                StartRuns(writers),
                hooks.PeriodicWriter(writers, period=PROGRESS_PERIOD),
            ]
        return built

    def train(self) -> dict[str, Any]:
        """Train to the end; returns the results of the last evaluation (main process)."""
        save_config(self.cfg)  # not before: a resume may be refused, and its config is not that of the folder's run
        with self.stop:
            try:
                super().train(self.start_iter, self.max_iter)
            except EnoughTraining as end:
                logger.info("%s", end)
        if comm.is_main_process():
            draw_at_end(self.cfg.OUTPUT_DIR)
        return self.results

    # Where a signal ends a training: interrupt.py tells it in one piece.

    def must_stop(self) -> bool:
        """Whether a signal asked for an end; the same on every process. Behind a step, of the hook StopOnSignal."""
        return self._a_process_stops if comm.get_world_size() > 1 else bool(self.stop.signal)

    def interrupted(self) -> Interrupted:
        """Saves what is not saved yet; returns the error that ends training. On every process."""
        done = self.iter + 1
        if done == self.start_iter:
            return self.stop.error("before the first iteration; nothing new is to be saved.")
        if self._saved[0] != self.iter:
            self.save(f"model_{self.iter:07d}")
            comm.synchronize()  # the first process to end ends the others, which must not be in the midst of writing
        file = os.path.join(self.cfg.OUTPUT_DIR, f"{self._saved[1]}.pth")
        return self.stop.error(f"after iteration {done} of {self.max_iter}; saved as {file}.")

    def _next_batch(self) -> list[dict]:
        try:
            with self.stop.waiting_for_data():
                return next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            if comm.get_world_size() > 1 or not self.stop.ended_loader(error):
                raise
            self.iter -= 1  # what is saved are the steps before this one
            raise self.interrupted() from error

    def _evaluate(self) -> dict[str, Any]:
        if self.must_stop():  # after the last iteration
            return {}
        try:
            with self.stop.raising(at_once=comm.get_world_size() == 1), self.stop.waiting_for_data():
                self._run_evaluation()
        except (Interrupted, RuntimeError, OSError, EOFError) as error:
            if not isinstance(error, Interrupted) and not self.stop.ended_loader(error):
                raise
            if self.iter < self.max_iter:
                raise self.interrupted() from None
            raise self.stop.error("in the last evaluation; the training is done and saved.") from None
        self.evaluated = self.iter
        return self.results

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = self._next_batch()
        data_time = time.perf_counter() - start
        busy, start = time.thread_time(), time.perf_counter()

        self.optimizer.zero_grad(set_to_none=True)
        losses = self.learn(batch)
        self.scaler.unscale_(self.optimizer)
        norm = self.clip([p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None])
        self._record(batch, losses, norm, data_time)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.device.type == "cpu":
            share = (time.thread_time() - busy) / (time.perf_counter() - start)
            self.storage.put_scalar("core_share", share, smoothing_hint=False)

    def _record(self, batch: list[dict], losses: dict[str, Tensor], norm: Tensor | None, data_time: float) -> None:
        """Put the losses, averaged over the processes, into the event storage; refuse infinite ones."""
        terms = {name: loss.detach().float() for name, loss in losses.items()}
        if norm is not None:
            terms["grad_norm"] = norm.float()
        own = torch.stack(list(terms.values()))
        mean = torch.cat([own, own.new_tensor([float(self.stop.signal > 0)])])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(mean)
            mean /= comm.get_world_size()
        *means, stopping = mean.tolist()  # the only copy to the host
        self._a_process_stops = stopping > 0
        values = dict(zip(terms, means, strict=True))
        # An overflowed gradient is the scaler's to handle: it skips the step and lowers the scale.
        tolerated = {"grad_norm"} if self.scaler.is_enabled() else set()
        if not all(math.isfinite(value) or name in tolerated for name, value in values.items()):
            own_values = dict(zip(terms, own.tolist(), strict=True))
            where = first_non_finite(self.checkpointer.model, batch, self.autocast)
            raise non_finite_error(self.iter, own_values, batch, where)
        self.storage.put_scalars(data_time=data_time, total_loss=sum(values[name] for name in losses), **values)

    def _run_evaluation(self) -> None:
        # Training goes on as if nothing had been evaluated.
        with preserved_rng(self.device), self._evaluated_weights():
            last = self.iter >= self.max_iter  # Detectron2's hook runs it when the loop is left
            self.results = self.test(self.cfg, self.checkpointer.model, report=last)
            if self.cfg.TEST.LOSS:
                now = min(self.iter, self.max_iter - 1)
                add_validation_losses(self.results, self.cfg, self.checkpointer.model, self.autocast, now)
            if comm.is_main_process():
                self.shown.log(self.checkpointer.model)

    @property
    def _evaluated_average(self) -> WeightAverage | None:
        """What is evaluated in place of the weights; None: the weights themselves."""
        return self.average if self.cfg.SOLVER.EMA.EVAL else None

    def _evaluated_weights(self) -> contextlib.AbstractContextManager:
        average = self._evaluated_average
        return contextlib.nullcontext() if average is None else average.in_place()

    def save_evaluated(self, name: str, **extra: Any) -> None:
        """Write the weights that are evaluated, as they are now."""
        average = self._evaluated_average
        self.checkpointer.save_weights(name, None if average is None else average.weights, **extra)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, report: bool = False) -> dict[str, Any]:
        """Evaluate ``model`` on ``cfg.DATASETS.TEST``; with several datasets the results are keyed by their names.

        ``report``: write the page that explains them, too, where ``cfg.TEST.REPORT`` asks for it.
        """
        results = OrderedDict()
        for name in cfg.DATASETS.TEST:
            loader = build_detection_test_loader(cfg, name, mapper=DetrDatasetMapper(cfg, False))
            evaluator = build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference", name), report)
            results[name] = inference_on_dataset(model, NamedFaults(loader), evaluator) or {}
            if comm.is_main_process():
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    def resume_or_load(self, resume: bool = False) -> None:
        """Continue from the last checkpoint of ``OUTPUT_DIR``, or take the weights of ``MODEL.WEIGHTS``.

        Raises:
            UserError: the checkpoint cannot be continued with this config (``resume.check_resumable``).
        """
        found = self.checkpointer.has_checkpoint()
        if resume and found:

            def check(content: dict[str, Any]) -> None:
                self._go_on_in_epochs(training_state(content))
                check_resumable(content, self.cfg, self.checkpointer.model, self.optimizer)

            path = self.checkpointer.last_checkpoint()
            try:
                self.checkpointer.load(path, check=check)
            except UserError as error:
                raise UserError(f"{error}{self.checkpointer.others_than(path, error)}") from error
            self.start_iter = self.iter + 1
            logger.info("Resumed after iteration %d", self.iter)
            if self.start_iter == self.max_iter:
                logger.warning("The training is done: SOLVER.MAX_ITER %d leaves nothing to do but to evaluate",
                               self.max_iter)  # fmt: skip
            return
        if resume:
            logger.warning("%s holds no checkpoint to resume from: training starts anew", self.cfg.OUTPUT_DIR)
        elif found:
            logger.warning("%s holds a checkpoint of an earlier run; --resume would continue it", self.cfg.OUTPUT_DIR)
        self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])

    def _go_on_in_epochs(self, state: dict[str, Any] | None) -> None:
        """The schedule of a training whose batch had another size: the epochs that are left, in this size."""
        size = self.cfg.SOLVER.IMS_PER_BATCH
        if state is None or not self.cfg.SOLVER.EPOCHS:
            return
        done, seen = state["iteration"] + 1, TrainLoader.images_seen(state["data"])
        if done * size == seen:
            return
        self.cfg = cfg = resolve_schedule(self._given, self._num_images, done - seen / size)
        self.checkpointer.run_config, self.max_iter = cfg.dump(), cfg.SOLVER.MAX_ITER
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        self.scheduler = build_scheduler(cfg, self.optimizer)
        if comm.is_main_process():
            self._progress.max_iter = self.max_iter
        logger.info(
            "%.3g of %g epochs were done with batches of another size: those that are left take %d iterations of %d "
            "images, and training ends at iteration %d",
            *(seen / self._num_images, cfg.SOLVER.EPOCHS, self.max_iter - done, size, self.max_iter),
        )

    def save(self, name: str) -> None:
        """Write a checkpoint to go on from. To be called on every process."""
        self._rng_states = comm.gather(rng_state(self.device))
        self.checkpointer.save(name)
        if self.average is not None:
            self.checkpointer.save_weights(AVERAGED.removesuffix(".pth"), self.average.weights, iteration=self.iter)
        self._saved = self.iter, name

    def before_train(self) -> None:
        super().before_train()
        if self.start_iter and comm.is_main_process():
            self._metrics.go_on_from(self.start_iter)
        if self.start_iter and self._rng_states is not None:  # as late as possible: nothing must draw in between
            if len(self._rng_states) == comm.get_world_size():
                set_rng_state(self._rng_states[comm.get_rank()], self.device)
            else:
                logger.warning("The checkpoint has %d processes' random states: not restored.", len(self._rng_states))

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "data": self.data_loader.state_dict(),
            "rng": self._rng_states,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        load_optimizer(self.optimizer, state["optimizer"])
        self._apply_learning_rates()
        if state["scaler"]:  # empty where the checkpoint's training had none: this one begins anew
            self.scaler.load_state_dict(state["scaler"])
        self.data_loader.load_state_dict(state["data"])
        self._rng_states = state["rng"]

    def _apply_learning_rates(self) -> None:
        """Those of this run's config at the iteration that was loaded."""
        self.scheduler.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate
