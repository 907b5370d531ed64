# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM as a request to save and end, in place of an end in the midst of a step."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

from ..errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT = 2.0  # seconds within which a signal counts as the same one: a terminal's and that of the parent process


class StopRequest:
    """Within its ``with`` block the first SIGINT or SIGTERM is noted in ``signal``; a later one acts as ever.

    While ``at_once`` is True, it raises :class:`Interrupted` besides.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.at_once = False
        self._time = 0.0

    def __enter__(self) -> StopRequest:
        self._process = os.getpid()
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's process, which ends with this one
            return
        if not self.signal:
            self.signal, self._time = number, time.monotonic()
            if hasattr(signal, "SIGCHLD"):  # a loader's process that ends too would raise in the midst of saving
                self._before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))
            name = signal.Signals(number).name
            os.write(2, f"{name}: saving after this iteration; once more ends without\n".encode())  # safe in a handler
            if self.at_once:
                raise Interrupted(f"Stopped by {name}.", number)
        elif time.monotonic() - self._time > REPEAT:
            self.__exit__(None, None, None)
            signal.raise_signal(number)
