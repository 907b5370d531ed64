# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, SIGTERM and a terminal that hangs up (SIGHUP) as a request to save and end, in place of an end in the midst
of a step.

A signal that comes

* in a step is noted. The step's losses carry it to all processes, and behind the step all of them save and end.
* while a training waits for data is noted as well. The loader's processes may end by the same signal, however, so that
  no data will come; then the training saves what the steps before gave, and ends.
* in an evaluation ends it at once. Where there are several processes, the others would wait for this one for ever, and
  it counts for the step behind the evaluation.

A second signal ends the process as if nothing were caught.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from ..errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
if hasattr(signal, "SIGHUP"):
    SIGNALS = (*SIGNALS, signal.SIGHUP)
REPEAT = 2.0  # seconds within which a signal counts as the same one: a terminal's and that of the parent process


def signals() -> list[int]:
    """Those that end a run; not SIGHUP where nohup has it ignored."""
    return [number for number in SIGNALS if number in SIGNALS[:2] or signal.getsignal(number) != signal.SIG_IGN]


class StopRequest:
    """Within its ``with`` block the first of ``signals`` is noted in ``signal``; a later one acts as ever."""

    def __init__(self) -> None:
        self.signal = 0
        self._at_once = False
        self._time = 0.0
        self._before: dict[int, Any] = {}
        self._of_loader: Callable | None = None  # torch's handler of SIGCHLD, while it is off

    def __enter__(self) -> StopRequest:
        self._process = os.getpid()
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in signals()}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._of_loader:
            signal.signal(signal.SIGCHLD, self._of_loader)

    def error(self, text: str) -> Interrupted:
        """What ends a training by this signal: "Stopped by SIGINT", and ``text``."""
        number = self.signal or signal.SIGINT  # which came to another process
        return Interrupted(f"Stopped by {signal.Signals(number).name} {text}", number)

    @contextmanager
    def raising(self, at_once: bool = True) -> Iterator[None]:
        """In here a signal raises :class:`Interrupted`, where it is noted; with ``at_once`` False it is noted alone."""
        self._at_once = at_once
        try:
            yield
        finally:
            self._at_once = False

    def ended_loader(self, error: BaseException) -> bool:
        """Whether ``error``, raised by a loader, is that a process of it ended by the signal that ends this one."""
        # What it was about to hand over breaks off as well.
        ended = isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) or "DataLoader worker" in str(error)
        return bool(self.signal) or (ended and self.arrives())

    def arrives(self, seconds: float = 1.0) -> bool:
        """Whether a signal is noted, or will be in a moment: a loader's process may have had it earlier."""
        end = time.monotonic() + seconds
        while not self.signal and time.monotonic() < end:
            time.sleep(0.01)
        return bool(self.signal)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Only in here may torch raise that a process of a loader has ended, and not in the midst of a step."""
        if not self._before or not hasattr(signal, "SIGCHLD"):
            yield
            return
        handler, self._of_loader = self._of_loader, None
        if handler and not self.signal:
            signal.signal(signal.SIGCHLD, handler)
            handler(signal.SIGCHLD, None)  # for those that have ended since
        try:
            yield
        finally:
            handler = signal.getsignal(signal.SIGCHLD)
            if callable(handler) and not self.signal:
                self._of_loader = handler
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's process, which ends with this one
            return
        if not self.signal:
            self.signal, self._time = number, time.monotonic()
            if hasattr(signal, "SIGCHLD"):  # a loader's process that ends too would raise in the midst of saving
                self._before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))
            name = signal.Signals(number).name
            with suppress(OSError):  # of a terminal that is gone
                os.write(2, f"{name}: saving after this iteration; once more ends without\n".encode())  # safe here
            if self._at_once:
                raise self.error("at once.")
        elif time.monotonic() - self._time > REPEAT:
            self.__exit__(None, None, None)
            signal.raise_signal(number)
