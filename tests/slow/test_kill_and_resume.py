# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A training that is killed (SIGKILL) at random moments and resumed each time equals the straight one bit for bit.

PAQ_DETR_KILLS sets how often it is killed (default 20); half of the kills are aimed at the writing of a checkpoint.
"""

import functools
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("PAQ_DETR_KILLS", 20))
ITERATIONS = 20 + 15 * KILLS
CONFIG = """
VERSION: 2
MODEL:
  DEVICE: cpu
  BACKBONE: {FREEZE_AT: 0}
  RESNETS: {DEPTH: 50, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 4, NORM: FrozenBN}
  DETR:
    HIDDEN_DIM: 64
    NUM_HEADS: 4
    ENCODER: {NUM_LAYERS: 1, FFN_DIM: 32}
    DECODER: {NUM_LAYERS: 2, FFN_DIM: 32}
    QUERIES: {NUM: 20}
DATASETS:
  TRAIN: [synthetic_crowd_train]
  TEST: []
  SYNTHETIC_CROWD: {NUM_TRAIN: 12, NUM_VAL: 2, HEIGHT: 64, WIDTH: 80, DENSITY: 3.0}
INPUT: {MIN_SIZE_TRAIN: [64, 72, 80], MIN_SIZE_TEST: 64}
DATALOADER: {NUM_WORKERS: 1}
"""


def start(folder, *flags):
    solver = f"SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER {ITERATIONS} SOLVER.STEPS [] SOLVER.CHECKPOINT_PERIOD 5".split()
    command = [sys.executable, "-W", "ignore", ROOT / "train_net.py", "--config-file", folder / "c.yaml", *flags]
    return subprocess.Popen(
        [*map(str, command), *solver, "OUTPUT_DIR", str(folder / "out")],
        stdout=open(folder / "screen.txt", "w"),  # of the last run: the loader's processes of a killed one complain
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def until(condition, process):
    while process.poll() is None and not condition():
        time.sleep(0.001)


def last_checkpoint(out):
    note = out / "last_checkpoint"
    return note.read_text() if note.is_file() else ""


def has_changed(out, before):
    return last_checkpoint(out) != before


def prepared(folder):
    (folder / "out").mkdir(parents=True)
    (folder / "c.yaml").write_text(CONFIG)
    return folder


def weights(folder):
    return torch.load(folder / "out" / "model_final.pth", weights_only=True)["model"]


def test_a_run_that_is_killed_again_and_again_equals_the_straight_one(tmp_path):
    straight, killed = prepared(tmp_path / "straight"), prepared(tmp_path / "killed")
    assert start(straight).wait() == 0
    random.seed(0)
    count, out, found = 0, killed / "out", []
    while count < KILLS:
        before = last_checkpoint(out)
        found.append(before.removeprefix("model_").removesuffix(".pth").lstrip("0") or "none")
        process = start(killed, "--resume")
        if count % 2:  # while a checkpoint is written
            until(lambda: any(out.glob("*.part")), process)
            time.sleep(random.uniform(0, 0.01))
        else:  # some time after the first new checkpoint, or before it
            if random.random() < 0.8:
                until(functools.partial(has_changed, out, before), process)
            time.sleep(random.uniform(0, 2))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        count += 1
    assert start(killed, "--resume").wait() == 0
    print(f"killed {count} times in {ITERATIONS} iterations; checkpoints that were gone on from: {found}")
    assert count >= min(KILLS, 3)
    a, b = weights(straight), weights(killed)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert "Traceback" not in (killed / "screen.txt").read_text()
