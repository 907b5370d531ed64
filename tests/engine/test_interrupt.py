# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM at any moment of a training: saved once, told in one sentence, resumed as if nothing had been."""

import errno
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from paq_detr.engine import Trainer
from paq_detr.engine.cli import resume_command
from paq_detr.engine.interrupt import StopRequest
from paq_detr.errors import Interrupted

from .conftest import tiny_configs

ROOT = Path(__file__).parents[2]
OPTS = ("SOLVER.STEPS", "[]", "SOLVER.MAX_ITER", 6)
NO_TEST = ("DATASETS.TEST", "[]")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def ctrl_c():
    """A shell starts programs in the background without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def build(cfg, resume=False):
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    return trainer


def send(number, arrived=lambda: False):
    """Sends this process a signal and waits for it: another thread may be the one that is told."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"signal {number} is ignored here, as under nohup")
    os.kill(os.getpid(), number)
    end = time.monotonic() + 60  # a busy machine may take its time; two of a kind that wait are but one
    while not arrived() and time.monotonic() < end:
        time.sleep(0.01)
    assert arrived(), f"signal {number} did not arrive"


def signal_at(trainer, monkeypatch, number, iteration, where="run_step"):
    """Sends this process the signal when ``trainer`` enters ``where`` in that iteration."""
    original = getattr(trainer, where)

    def wrapped(*args):
        if trainer.iter == iteration:
            send(number, lambda: trainer.stop.signal)
        return original(*args)

    monkeypatch.setattr(trainer, where, wrapped)


def checkpoints(trainer):
    return sorted(name for name in os.listdir(trainer.cfg.OUTPUT_DIR) if name.endswith(".pth"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Weights of a run that nobody interrupted."""
    trainer = build(tiny_configs(tmp_path_factory.mktemp("straight"))(*OPTS, *NO_TEST))
    trainer.train()
    return trainer.checkpointer.model.state_dict()


# With a periodic checkpoint due at that moment (3) and without.
@pytest.mark.parametrize(
    "number, workers, period",
    [
        (signal.SIGINT, 0, 3),
        (signal.SIGINT, 1, 100),
        (signal.SIGTERM, 0, 100),
        (signal.SIGTERM, 1, 3),
        (signal.SIGHUP, 0, 100),
    ],
)
def test_a_signal_saves_once_and_the_resumed_run_equals_the_straight_one(
    make_cfg, monkeypatch, straight, number, workers, period
):
    opts = (*OPTS, *NO_TEST, "DATALOADER.NUM_WORKERS", workers, "SOLVER.CHECKPOINT_PERIOD", period)
    stopped = build(make_cfg(*opts))
    signal_at(stopped, monkeypatch, number, 2)
    handlers = [signal.getsignal(n) for n in SIGNALS]
    text = f"Stopped by {number.name} after iteration 3 of 6; saved as .*model_0000002.pth"
    with pytest.raises(Interrupted, match=text) as caught:
        stopped.train()
    assert caught.value.signal == number and checkpoints(stopped) == ["model_0000002.pth"]
    assert [signal.getsignal(n) for n in SIGNALS] == handlers
    resumed = build(make_cfg(*opts), resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    weights = resumed.checkpointer.model.state_dict()
    assert all(torch.equal(weights[name], straight[name]) for name in straight)


def test_in_an_evaluation_it_does_not_wait_for_its_end(make_cfg, monkeypatch):
    trainer = build(make_cfg(*OPTS, "TEST.EVAL_PERIOD", 2))
    evaluated = []

    def test(cls, cfg, model, **options):
        send(signal.SIGTERM)
        evaluated.append("to the end")

    monkeypatch.setattr(Trainer, "test", classmethod(test))
    with pytest.raises(Interrupted, match="after iteration 2 of 6; saved as .*model_0000001.pth"):
        trainer.train()
    assert not evaluated and checkpoints(trainer) == ["model_0000001.pth"]


def test_in_the_last_evaluation_the_training_is_done(make_cfg, monkeypatch):
    trainer = build(make_cfg(*OPTS))
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_, **__: send(signal.SIGINT)))
    with pytest.raises(Interrupted, match="Stopped by SIGINT in the last evaluation; the training is done and saved"):
        trainer.train()
    assert checkpoints(trainer) == ["model_final.pth"]


def test_in_the_last_iteration_it_is_saved_and_not_evaluated(make_cfg, monkeypatch):
    trainer = build(make_cfg(*OPTS))
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_, **__: pytest.fail("evaluated")))
    signal_at(trainer, monkeypatch, signal.SIGINT, 5)
    with pytest.raises(Interrupted, match="after iteration 6 of 6; saved as .*model_final.pth"):
        trainer.train()


ENDS = {
    "ended": RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated."),
    "hands over": ConnectionResetError("Connection reset by peer"),
    "is gone": FileNotFoundError("/tmp/pymp-x/listener"),
    "in the midst of a batch": EOFError(),
}


@pytest.mark.parametrize("error", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("first", ["signal", "loader"])
def test_a_loader_that_ends_by_the_signal_costs_no_step(make_cfg, monkeypatch, error, first):
    trainer = build(make_cfg(*OPTS, "DATASETS.TEST", "[]"))
    if first == "signal":
        signal_at(trainer, monkeypatch, signal.SIGTERM, 3, "_next_batch")
    following = iter(trainer._batches)

    class Killed:
        def __next__(self):
            if trainer.stop.signal:
                raise error
            if first == "loader" and trainer.iter == 3:
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
                raise error
            return next(following)

    trainer._batches = Killed()
    with pytest.raises(Interrupted, match="after iteration 3 of 6; saved as .*model_0000002.pth"):
        trainer.train()


def test_a_loader_that_ends_by_itself_is_a_fault(make_cfg, monkeypatch):
    trainer = build(make_cfg(*OPTS, "DATASETS.TEST", "[]"))
    monkeypatch.setattr(trainer.stop, "arrives", lambda: False)

    def killed():
        raise ENDS["ended"]
        yield

    trainer._batches = killed()
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        trainer.train()
    assert checkpoints(trainer) == []


def test_the_loaders_end_is_not_told_in_the_midst_of_a_step():
    """torch's handler acts only while a batch is waited for, and then also on what has happened before."""
    told, before = [], signal.signal(signal.SIGCHLD, lambda *_: told.append("told"))
    try:
        with StopRequest() as stop:
            with stop.waiting_for_data():
                send(signal.SIGCHLD, lambda: told)
            os.kill(os.getpid(), signal.SIGCHLD)
            assert told == ["told"]
            with stop.waiting_for_data():
                assert told == ["told"] * 2
        send(signal.SIGCHLD, lambda: len(told) == 3)
        assert len(told) == 3
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_second_signal_ends_at_once(make_cfg, monkeypatch):
    monkeypatch.setattr("paq_detr.engine.interrupt.REPEAT", -1.0)
    trainer = build(make_cfg(*OPTS, "DATASETS.TEST", "[]"))
    original = trainer.run_step

    def impatient():
        send(signal.SIGINT, lambda: trainer.stop.signal)
        send(signal.SIGINT)
        original()

    monkeypatch.setattr(trainer, "run_step", impatient)
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.train()
    assert not isinstance(caught.value, Interrupted) and checkpoints(trainer) == []


def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and not stop.signal
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_does_not_keep_a_run_from_saving(monkeypatch):
    def gone(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("paq_detr.engine.interrupt.os.write", gone)
    with StopRequest() as stop:
        send(signal.SIGHUP, lambda: stop.signal)
    assert stop.signal == signal.SIGHUP


def test_the_resume_command_is_this_command_with_resume(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", "a b.yaml", "SOLVER.STEPS", "(1, 2)"])
    assert resume_command() == "python train_net.py --resume --config-file 'a b.yaml' SOLVER.STEPS '(1, 2)'"
    monkeypatch.setattr(sys, "argv", shlex.split(resume_command())[1:])
    assert resume_command().count("--resume") == 1


@pytest.mark.parametrize(
    "script, start", [("/env/bin/paq-detr", "paq-detr"), ("/x/paq_detr/__main__.py", "python -m paq_detr")]
)
def test_the_resume_command_of_paq_detr_is_its_own(monkeypatch, script, start):
    monkeypatch.setattr(sys, "argv", [script, "train", "c.yaml", "SOLVER.MAX_ITER", "5"])
    assert resume_command() == f"{start} train --resume c.yaml SOLVER.MAX_ITER 5"
    monkeypatch.setattr(sys, "argv", [script, "demo", "OUTPUT_DIR", "there"])
    assert resume_command() == f"{start} demo --resume OUTPUT_DIR there"


@pytest.mark.parametrize("whole_group", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_program_ends_with_the_sentence_and_the_signals_code(config_file, tmp_path, whole_group):
    options = f"SOLVER.MAX_ITER 5000 SOLVER.STEPS [] DATASETS.TEST [] OUTPUT_DIR {tmp_path}/out".split()
    options += ["DATALOADER.NUM_WORKERS", "2"]
    command = [sys.executable, "-W", "ignore", ROOT / "train_net.py", "--config-file", config_file, *options]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    for line in run.stdout:
        if "The first iteration took" in line:
            break
    # Schedulers send it to the program alone, or to the loader's processes as well.
    os.killpg(run.pid, signal.SIGTERM) if whole_group else run.send_signal(signal.SIGTERM)
    text = run.stdout.read()
    assert run.wait() == 128 + signal.SIGTERM, text
    assert "Traceback" not in text and "train_net: Stopped by SIGTERM after iteration" in text.splitlines()[-1]
    assert f"Go on with: python {ROOT}/train_net.py --resume --config-file" in text.splitlines()[-1]
