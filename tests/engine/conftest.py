# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import logging
from argparse import Namespace

import pytest
import torch

from paq_detr.engine import setup_config

# A model and a dataset so small that a training step takes a fraction of a second.
TINY = """
VERSION: 2
MODEL:
  DEVICE: cpu
  BACKBONE: {FREEZE_AT: 0}
  RESNETS: {DEPTH: 50, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 4, NORM: FrozenBN}
  DETR:
    HIDDEN_DIM: 64
    NUM_HEADS: 4
    DROPOUT: 0.1
    ENCODER: {NUM_LAYERS: 1, FFN_DIM: 32}
    DECODER: {NUM_LAYERS: 2, FFN_DIM: 32}
    QUERIES: {NUM: 20}
DATASETS:
  TRAIN: [synthetic_crowd_train]
  TEST: [synthetic_crowd_val]
  SYNTHETIC_CROWD: {NUM_TRAIN: 12, NUM_VAL: 2, HEIGHT: 64, WIDTH: 80, DENSITY: 3.0}
INPUT: {MIN_SIZE_TRAIN: [64, 72, 80], MIN_SIZE_TEST: 64}
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 4, CHECKPOINT_PERIOD: 100, STEPS: [3]}
"""


@pytest.fixture(autouse=True)
def loggers():
    """What a run sets up writes to a screen and a file that are gone after the test."""
    found = [logging.getLogger(name) for name in ("fvcore", "detectron2", "paq_detr")]
    before = [(logger.handlers[:], logger.propagate) for logger in found]
    yield
    for logger, (handlers, propagate) in zip(found, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate


def tiny_configs(folder):
    """A function from KEY, VALUE, ... to the tiny config with those changes; output goes to ``folder``."""
    path = folder / "tiny.yaml"
    path.write_text(TINY)

    def make(*opts):
        opts = ["OUTPUT_DIR", str(folder / "output"), *map(str, opts)]
        return setup_config(Namespace(config_file=str(path), opts=opts, num_gpus=1))

    make.file = str(path)
    return make


@pytest.fixture
def make_cfg(tmp_path):
    return tiny_configs(tmp_path)


@pytest.fixture
def config_file(make_cfg):
    return make_cfg.file


@pytest.fixture
def forked(monkeypatch):
    """Processes that torch starts are forks of this one: they need not import everything again, which takes seconds."""

    def spawn(function, args=(), nprocs=1, join=True, daemon=False, start_method="spawn"):
        return torch.multiprocessing.start_processes(function, args, nprocs, join, daemon, start_method="fork")

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
