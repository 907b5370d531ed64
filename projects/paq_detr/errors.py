# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What command lines report as one sentence, without a traceback."""


class UserError(ValueError):
    """A setting, file or name is wrong; the message is one sentence that says which and what to do."""


class NonFiniteLossError(FloatingPointError):
    """A loss or the gradient became infinite or NaN; the message names the iteration, the terms and the images."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP ended a training, whose state is saved; the message says where.

    Attributes:
        signal: its number.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal
