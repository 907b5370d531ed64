# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The two errors that command lines report as one sentence, without a traceback."""


class UserError(ValueError):
    """A setting, file or name is wrong; the message is one sentence that says which and what to do."""


class NonFiniteLossError(FloatingPointError):
    """A loss or the gradient became infinite or NaN; the message names the iteration, the terms and the images."""
