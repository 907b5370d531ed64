# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from argparse import Namespace

import pytest

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


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture
def make_cfg(config_file, tmp_path):
    """A function from KEY, VALUE, ... to the tiny config with those changes; output goes to ``tmp_path``."""

    def make(*opts):
        opts = ["OUTPUT_DIR", str(tmp_path / "output"), *map(str, opts)]
        return setup_config(Namespace(config_file=config_file, opts=opts, num_gpus=1))

    return make
