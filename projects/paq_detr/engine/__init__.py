# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Training, checkpoints and the command line's setup."""

from ..errors import NonFiniteLossError, UserError
from .build import build_detector
from .checkpoint import DetrCheckpointer
from .cli import run_cli, setup_config, start_run
from .evaluate import load_trained
from .trainer import Trainer

__all__ = [
    "DetrCheckpointer",
    "NonFiniteLossError",
    "Trainer",
    "UserError",
    "build_detector",
    "load_trained",
    "run_cli",
    "setup_config",
    "start_run",
]
