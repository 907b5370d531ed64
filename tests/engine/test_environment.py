# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Processes that torchrun or srun started."""

import os
import socket
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from paq_detr.engine import UserError, main
from paq_detr.engine.environment import Place, first_host, place_in

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a",
            "MASTER_PORT": "29500"}  # fmt: skip
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_ID": "20000"}  # fmt: skip


def test_both_name_the_place_of_a_process():
    assert place_in(TORCHRUN) == Place(1, 4, 1, 2, "tcp://a:29500", "torchrun")
    assert place_in(SRUN) == Place(3, 4, 1, 2, "tcp://gpu07:18616", "srun")
    assert place_in({**SRUN, "MASTER_ADDR": "b", "MASTER_PORT": "5"}).address == "tcp://b:5"
    assert place_in({**SRUN, **TORCHRUN}).starter == "torchrun"  # which srun may have started


@pytest.mark.parametrize("environment", [{}, {"MASTER_ADDR": "a"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
                                         {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}])  # fmt: skip
def test_alone_a_process_has_none(environment):
    assert place_in(environment) is None


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RANK": "0"}, "sets RANK but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: start all processes by"),
        ({**TORCHRUN, "WORLD_SIZE": "x"}, "WORLD_SIZE is 'x', must be a whole number"),
        ({**TORCHRUN, "RANK": "4"}, "process 4 of 4, .* there is no such process"),
        ({**TORCHRUN, "WORLD_SIZE": "3"}, "started 3 processes, 2 of them on this machine: start equally many"),
        ({**SRUN, "SLURM_LOCALID": ""}, "sets SLURM_PROCID but not SLURM_LOCALID"),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "5"}, "started 5 tasks on 2 machines"),
    ],
)
def test_a_wrong_or_half_set_environment_is_said(environment, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        place_in(environment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "first"), [("a", "a"), ("a,b[1-2]", "a"), ("n[003-5,9]", "n003"), ("r[1,3]-x,q", "r1-x")]
)
def test_the_first_host_of_slurms_list(nodes, first):
    assert first_host(nodes) == first


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def environment_of(starter, rank, port):
    if starter == "torchrun":
        return {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "localhost", "MASTER_PORT": port}  # fmt: skip
    return {"SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": rank, "SLURM_STEP_NUM_NODES": "1",
            "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port}  # fmt: skip


def one_of_two(rank, starter, port, file, opts):
    os.environ.update(environment_of(starter, str(rank), port))
    args = Namespace(config_file=file, opts=opts, num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto",
                     resume=False, eval_only=False)  # fmt: skip
    cfg = main.run(args)
    Path(cfg.OUTPUT_DIR, f"done{rank}").touch()
    assert comm.get_world_size() == 1  # again


@pytest.mark.parametrize("starter", ["torchrun", "srun"])
def test_two_processes_train_together(forked, config_file, tmp_path, starter):
    opts = ["OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "[]", "DATASETS.TEST", "[]"]
    torch.multiprocessing.spawn(one_of_two, (starter, free_port(), config_file, opts), nprocs=2)
    assert {"done0", "done1", "model_final.pth"} <= set(os.listdir(tmp_path / "out"))
    state = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["trainer"]
    assert state["data"]["world_size"] == 2 and len(state["rng"]) == 2


def test_processes_are_not_started_twice(config_file, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    args = Namespace(config_file=config_file, opts=[], num_gpus=2, num_machines=1)
    with pytest.raises(UserError, match="torchrun has started 4 processes already: leave out --num-gpus"):
        main.run(args)
    args.num_gpus = 1
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH 2 cannot be divided among 4 processes"):
        main.run(args)
