# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run: kept from other runs, and freed of an earlier one's files."""

from __future__ import annotations

import errno
import fnmatch
import itertools
import logging
import os
import re
import shutil
from typing import IO

from ..errors import UserError
from ..whole_file import PART

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_BARRED = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EMFILE)

LAST_CHECKPOINT = "last_checkpoint"
LOGGER_RUNS = "logger_runs.json"  # ids of the runs of W&B and MLflow, by the logger's name
BEST, AVERAGED, FINAL = "model_best.pth", "model_ema.pth", "model_final.pth"  # the first two are weights alone

_LOCK = ".lock"
_claims: dict[tuple[int, int, int], IO] = {}  # open locks by process and file: to close one would give it up

# What a training writes there; whatever else lies in the folder is somebody's own and stays.
RUN_FILES = (
    "config.yaml",
    "curves.png",
    "environment.txt",
    "events.out.tfevents.*",
    "inference",
    LAST_CHECKPOINT,
    "log.txt*",
    LOGGER_RUNS,
    "metrics.json",
    "model.*",  # exported
    "model_*.pth",
    "model_best.json",
    "wandb",
)


def claim(folder: str) -> None:
    """Keep other trainings out of ``folder`` until this process ends, in whatever way.

    Where the file system or the platform has no locks, nothing is kept out.

    Raises:
        UserError: another training writes to it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    path = os.path.join(folder, _LOCK)
    if os.path.exists(path) and _identity(path) in _claims:
        return
    file = open(path, "a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"OUTPUT_DIR {folder} is of a training that is still running: name another folder, or end it first."
            ) from error
        return
    _claims[_identity(path)] = file


def _identity(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return os.getpid(), status.st_dev, status.st_ino


def holds_checkpoint(folder: str) -> bool:
    """Whether ``--resume`` finds something to go on from."""
    return os.path.isfile(os.path.join(folder, LAST_CHECKPOINT))


def run_files(folder: str) -> list[str]:
    """Names of what a training has written to ``folder``."""
    return [name for name in sorted(os.listdir(folder)) if any(fnmatch.fnmatch(name, p) for p in RUN_FILES)]


def set_aside(folder: str, keep: str = "") -> str:
    """Move an earlier run's files into the first free folder ``earlier_1``, ``earlier_2``, ...; returns its path.

    Empty where there are none. The file ``keep`` (the new run's ``MODEL.WEIGHTS``) goes there too, and stays as well.
    """
    found = run_files(folder)
    if not found:
        return ""
    aside = next(path for n in itertools.count(1) if not os.path.exists(path := os.path.join(folder, f"earlier_{n}")))
    os.makedirs(aside)
    for name in found:
        path = os.path.join(folder, name)
        if keep and os.path.isfile(keep) and os.path.isfile(path) and os.path.samefile(path, keep):
            shutil.copy2(path, aside)
        else:
            os.rename(path, os.path.join(aside, name))
    return aside


def fault_of_machine(error: BaseException) -> str:
    """The sentence for a disk that takes no more, a path that nothing can be written to, or memory that does not
    suffice; empty for an error of another kind."""
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        asked = re.search(r"tried to allocate (\S+ \w+)", text, re.IGNORECASE)
        wanted = f" for {asked[1].removesuffix('.')} more" if asked else ""
        return (
            f"The memory does not suffice{wanted}: lower SOLVER.IMS_PER_BATCH, the sizes of the images (INPUT) or of "
            "the model, or set SOLVER.AMP.ENABLED."
        )
    if not isinstance(error, OSError) or error.errno not in _FULL and not (error.filename and error.errno in _BARRED):
        return ""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; what was saved before stays as it is."


def remove_parts(folder: str) -> None:
    """Delete what a killed run was about to write."""
    for name in os.listdir(folder):
        if name.endswith(PART):
            os.remove(os.path.join(folder, name))
