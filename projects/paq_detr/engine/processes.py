# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run: on GPUs as Detectron2 starts them, on the CPU with gloo, and with the one sentence and
the exit code of a single process, whichever fails first."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ..errors import Interrupted, NonFiniteLossError, UserError
from .environment import Place
from .interrupt import SIGNALS, signals
from .output import fault_of_machine

_KINDS = {"UserError": UserError, "NonFiniteLossError": NonFiniteLossError}


def launch(
    main: Callable,
    num_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
) -> None:
    """``detectron2.engine.launch``, which also starts several processes on the CPU, where ``args`` hold a config whose
    ``MODEL.DEVICE`` is "cpu"."""
    world = num_per_machine * num_machines
    on_cpu = any(isinstance(item, CfgNode) and item.MODEL.DEVICE == "cpu" for item in args)
    if world == 1 or not on_cpu:
        launch_on_gpus(main, num_per_machine, num_machines, machine_rank, dist_url, args)
        return
    with tempfile.TemporaryDirectory() as folder:
        if dist_url in (None, "auto"):
            if num_machines > 1:
                raise UserError("--dist-url must name an address of the first machine where there are several.")
            dist_url = f"file://{folder}/rendezvous"
        arguments = (main, world, num_per_machine, machine_rank, dist_url, args)
        torch.multiprocessing.spawn(_on_cpu, arguments, nprocs=num_per_machine, daemon=False)


def join(place: Place, main: Callable, args: tuple) -> None:
    """Call ``main`` as one of the processes that torchrun or srun started."""
    cfg = next(item for item in args if isinstance(item, CfgNode))
    if cfg.MODEL.DEVICE == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // place.per_machine))
    else:
        torch.cuda.set_device(place.local_rank)
    _meet("gloo" if cfg.MODEL.DEVICE == "cpu" else "nccl", place.address, place.world, place.rank, place.per_machine)
    try:
        main(*args)
    finally:
        if sys.exc_info()[0] is None:  # else the others may wait, and closing would wait for them
            distributed.destroy_process_group()


def _on_cpu(
    local_rank: int, main: Callable, world: int, num_per_machine: int, machine_rank: int, dist_url: str, args: tuple
) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // num_per_machine))
    _meet("gloo", dist_url, world, machine_rank * num_per_machine + local_rank, num_per_machine)
    main(*args)


def _meet(backend: str, dist_url: str, world: int, rank: int, num_per_machine: int) -> None:
    """Join the other processes, and those of this machine."""
    distributed.init_process_group(backend, init_method=dist_url, world_size=world, rank=rank)
    if hasattr(comm, "create_local_process_group"):  # newer than Detectron2 0.6
        comm.create_local_process_group(num_per_machine)
    else:
        for first in range(0, world, num_per_machine):
            group = distributed.new_group(list(range(first, first + num_per_machine)))
            if first <= rank < first + num_per_machine:
                comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()


@contextmanager
def one_sentence() -> Iterator[Callable]:
    """Gives the function to launch, whose first argument is the worker to call with the others.

    Whichever process fails first with an expected error, it is raised here, as if there were but one process. Signals
    that reach this process alone are passed on to the others, which save and end by themselves.
    """
    with tempfile.TemporaryDirectory() as folder:
        before = {number: signal.getsignal(number) for number in SIGNALS}
        note = os.path.join(folder, "fault.json")
        try:
            yield _Guard(note)
        except (ProcessExitedException, ProcessRaisedException):
            if not os.path.isfile(note):
                raise
            with open(note) as file:
                fault = json.load(file)
            if fault["signal"]:
                raise Interrupted(fault["text"], fault["signal"]) from None
            raise _KINDS[fault["kind"]](fault["text"]) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Guard:
    """Calls the worker; in one of several processes an expected error goes into the note, and ends the process."""

    def __init__(self, note: str):
        self.note = note

    def __call__(self, worker: Callable, *args: Any) -> None:
        if comm.get_world_size() == 1:
            worker(*args)
            return
        try:
            worker(*args)
        except (UserError, NonFiniteLossError, Interrupted) as error:
            self._end(error)
        except (OSError, MemoryError, RuntimeError) as error:
            if not fault_of_machine(error):
                raise
            self._end(UserError(fault_of_machine(error)))

    def _end(self, error: BaseException) -> None:
        fault = {"kind": type(error).__name__, "text": str(error), "signal": getattr(error, "signal", 0)}
        part = f"{self.note}.{os.getpid()}"
        with open(part, "w") as file:
            json.dump(fault, file)
        try:
            os.link(part, self.note)  # the first one stays
        except FileExistsError:
            pass
        sys.exit(2)


def pass_signals_on() -> None:
    """From now on a signal to this process goes to the processes that it started."""

    def pass_on(number: int, frame: Any) -> None:
        for child in multiprocessing.active_children():
            if child.pid:
                os.kill(child.pid, number)

    for number in signals():
        signal.signal(number, pass_on)
