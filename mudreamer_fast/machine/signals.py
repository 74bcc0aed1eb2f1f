"""Ctrl-C and SIGTERM as a request to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Stopped(Exception):
    """Raised inside a long call, such as an evaluation, when a stop was asked for."""


class StopSignals:
    """Turns the first Ctrl-C (or SIGTERM) into a request to stop; the second ends at once.

    After the first, the system's own handling is put back, so that the second needs no Python
    code to run and works in the middle of a long native call.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
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
        self.received = number
        for other in self.SIGNALS:
            signal.signal(other, signal.SIG_DFL)

    def raise_if_received(self) -> None:
        """Raises Stopped once a stop was asked for."""
        if self.received is not None:
            raise Stopped
