# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""One of several processes that torchrun or SLURM's srun started: which, and where they meet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UserError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_NODES")


@dataclass(frozen=True)
class Place:
    """This process among those of a run."""

    rank: int
    world: int
    local_rank: int  # among those of this machine
    per_machine: int
    address: str  # tcp://HOST:PORT of the first one
    starter: str  # "torchrun" or "srun"


def place_in(environment: Mapping[str, str]) -> Place | None:
    """The place that ``environment`` gives this process; None where nothing started several.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. srun sets SLURM_PROCID
    and others for each of the tasks of a step; they meet at the first host of the step, at a port that follows from the
    job's number, unless MASTER_ADDR and MASTER_PORT say else.

    Raises:
        UserError: half of the variables are missing, or a value is impossible.
    """
    if "RANK" in environment or "LOCAL_RANK" in environment:
        return _of_torchrun(environment)
    # In a batch script alone, and in a shell of one task, there is one process whatever the job asked for.
    if "SLURM_PROCID" in environment and environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return _of_srun(environment)
    return None


def _of_torchrun(environment: Mapping[str, str]) -> Place:
    _complete(environment, _TORCHRUN, "torchrun")
    rank, world, local = (_number(environment, key) for key in _TORCHRUN[:3])
    per_machine = _number(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else world
    address = f"tcp://{environment['MASTER_ADDR']}:{_number(environment, 'MASTER_PORT')}"
    return _checked(Place(rank, world, local, per_machine, address, "torchrun"))


def _of_srun(environment: Mapping[str, str]) -> Place:
    _complete(environment, _SRUN, "srun")
    rank, world, local = (_number(environment, key) for key in _SRUN[:3])
    machines = max(1, _number(environment, "SLURM_STEP_NUM_NODES"))
    if world % machines:
        raise UserError(
            f"srun started {world} tasks on {machines} machines: start equally many on each (--ntasks-per-node)."
        )
    host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
    job = re.sub(r"\D", "", environment.get("SLURM_JOB_ID", "")) or "0"
    port = _number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else 15000 + int(job) % 16384
    return _checked(Place(rank, world, local, world // machines, f"tcp://{host}:{port}", "srun"))


def first_host(nodes: str) -> str:
    """The first name of SLURM's list of hosts, such as "a[03-05,9],b"."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^\[,]*)", nodes)
    if not found:
        raise UserError(f"SLURM_STEP_NODELIST is {nodes!r}, must be a list of hosts.")
    return "".join(part or "" for part in found.groups())


def _complete(environment: Mapping[str, str], names: tuple[str, ...], starter: str) -> None:
    missing = [name for name in names if not environment.get(name)]
    if missing:
        there = next(name for name in (*names, "RANK") if environment.get(name))
        raise UserError(
            f"The environment sets {there} but not {', '.join(missing)}: start all processes by {starter}, which sets "
            f"them, or unset {there} for a training of its own."
        )


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise UserError(f"The environment variable {name} is {text!r}, must be a whole number.")
    return int(text)


def _checked(place: Place) -> Place:
    if not (place.rank < place.world and place.local_rank < place.per_machine <= place.world):
        raise UserError(
            f"The environment of {place.starter} names process {place.rank} of {place.world}, on its machine "
            f"{place.local_rank} of {place.per_machine} (they count from 0): there is no such process."
        )
    if place.world % place.per_machine:
        raise UserError(
            f"{place.starter} started {place.world} processes, {place.per_machine} of them on this machine: start "
            "equally many on each."
        )
    return place
