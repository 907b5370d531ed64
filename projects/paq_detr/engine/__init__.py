# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Training, checkpoints and the command line's setup."""

from .checkpoint import DetrCheckpointer
from .errors import NonFiniteLossError, UserError
from .setup import run_cli, setup_config, start_run
from .trainer import Trainer

__all__ = ["DetrCheckpointer", "NonFiniteLossError", "Trainer", "UserError", "run_cli", "setup_config", "start_run"]
