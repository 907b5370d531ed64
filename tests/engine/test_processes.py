# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Two processes end as one does: with one sentence and its exit code, whichever fails first, and without a hang."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from paq_detr.engine import NonFiniteLossError, UserError, run_cli
from paq_detr.engine.processes import launch, one_sentence, pass_signals_on
from paq_detr.errors import Interrupted
from train_net import worker

ROOT = Path(__file__).parents[2]
CPU = CfgNode({"MODEL": {"DEVICE": "cpu"}})
ERRORS = {
    "user": (UserError, ("This is wrong.",), "This is wrong.", 2),
    "loss": (NonFiniteLossError, ("It is infinite.",), "It is infinite.", 1),
    "signal": (Interrupted, ("Stopped by SIGINT.", signal.SIGINT), "Stopped by SIGINT. Go on with: ", 130),
    "memory": (
        RuntimeError,
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0",),
        "The memory does not suffice",
        2,
    ),
    "disk": (OSError, (errno.ENOSPC, "No space left on device", "x.pth"), "x.pth: No space left on device; what", 2),
}


def fail_on(cfg, rank, name):
    """One process fails, the other waits for it in a collective call."""
    assert comm.get_world_size() == 2 and comm.get_local_rank() == comm.get_rank()
    if rank in (comm.get_rank(), "both"):
        kind, arguments, _, _ = ERRORS[name]
        raise kind(*arguments)
    torch.distributed.barrier()


def run(worker, *args):
    def main():
        with one_sentence() as guarded:
            launch(guarded, 2, dist_url="auto", args=(worker, CPU, *args))

    return run_cli(main, "program")


@pytest.mark.parametrize(
    "name, rank",
    [("user", 0), ("user", 1), ("user", "both"), ("loss", "both"), ("signal", 1), ("disk", 0), ("memory", 1)],
)
def test_an_expected_error_is_one_sentence_whichever_process_fails(forked, capfd, name, rank):
    _, _, sentence, code = ERRORS[name]
    start = time.monotonic()
    assert run(fail_on, rank, name) == code
    assert time.monotonic() - start < 60
    said = capfd.readouterr().err
    assert said.count(f"program: {sentence}") == 1 and "Traceback" not in said


def succeed(cfg, folder):
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    Path(folder, f"{comm.get_rank()}").write_text(str(total.item()))


def test_two_fresh_processes_on_the_cpu_work_together(tmp_path):
    assert run(succeed, str(tmp_path)) == 0
    assert [(tmp_path / name).read_text() for name in "01"] == ["2.0", "2.0"]


def break_down(cfg):
    raise TypeError("a fault of the program")


def test_an_unexpected_error_keeps_its_traceback(forked):
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="a fault of the program"):
        run(break_down)


def two_processes(cfg, resume=False):
    """Exit code of a training on two processes."""

    def main():
        with one_sentence() as guarded:
            pass_signals_on()
            launch(guarded, 2, dist_url="auto", args=(worker, cfg, Namespace(resume=resume, eval_only=False)))

    return run_cli(main, "program")


def when_written(path, text, do):
    """Calls ``do`` from another thread as soon as the file holds the text."""

    def watch():
        while not (path.is_file() and text in path.read_text()):
            time.sleep(0.01)
        do()

    threading.Thread(target=watch, daemon=True).start()


def test_two_processes_train_on_the_cpu_stop_together_and_go_on(forked, make_cfg, tmp_path, capfd):
    options = ("SOLVER.STEPS", "[]", "DATASETS.TEST", "[]", "SOLVER.MAX_ITER")
    # To the first process alone, as schedulers do.
    when_written(
        tmp_path / "output" / "log.txt", "The first iteration took", lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert two_processes(make_cfg(*options, 5000)) == 143
    said = capfd.readouterr().err
    assert "Traceback" not in said and "program: Stopped by SIGTERM after iteration" in said
    assert f"saved as {tmp_path}/output/model_" in said
    last = int((tmp_path / "output" / "last_checkpoint").read_text()[len("model_") : -len(".pth")])
    assert two_processes(make_cfg(*options, last + 3), resume=True) == 0
    assert f"Resumed after iteration {last}" in (tmp_path / "output" / "log.txt").read_text()


@pytest.mark.slow
def test_the_program_does_so_too(config_file, tmp_path):
    options = "SOLVER.MAX_ITER 5000 SOLVER.STEPS [] DATASETS.TEST [] OUTPUT_DIR".split() + [str(tmp_path / "out")]
    command = [sys.executable, "-W", "ignore", str(ROOT / "train_net.py"), "--config-file", config_file]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [*command, "--num-gpus", "2", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    for line in started.stdout:
        if "iteration 20/" in line:
            break
    started.send_signal(signal.SIGTERM)
    text = started.stdout.read()
    assert started.wait() == 143 and "Traceback" not in text
    assert "train_net: Stopped by SIGTERM after iteration" in text and f"saved as {tmp_path}/out/model_" in text
