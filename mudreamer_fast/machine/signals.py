"""Signals as a request to stop: Ctrl-C, SIGTERM, a closed terminal, a scheduler's warning."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Stopped(Exception):
    """Raised inside a long call, such as an evaluation, when a stop was asked for."""


class StopSignals:
    """Turns the first of `SIGNALS` into a request to stop; Ctrl-C after that ends at once.

    After the first, the system's own handling of Ctrl-C is put back, so that it needs no Python
    code to run and works in the middle of a long native call. The other signals are then without
    effect: a shell and the kernel both send SIGHUP when a terminal closes. A SIGHUP that is
    ignored from the start, as under nohup, stays so.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    """SIGUSR1 is what Slurm's --signal is usually told to send before a job's time is up."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def raise_if_received(self) -> None:
        """Raises Stopped once a stop was asked for."""
        if self.received is not None:
            raise Stopped
