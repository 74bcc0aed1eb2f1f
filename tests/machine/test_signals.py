from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from mudreamer_fast.machine.signals import Stopped, StopSignals


@pytest.mark.parametrize("number", StopSignals.SIGNALS)
def test_first_signal_is_a_request_and_the_second_is_the_systems(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        stop.raise_if_received()
        os.kill(os.getpid(), number)
        assert stop.received == number
        assert signal.getsignal(number) == signal.SIG_DFL
        with pytest.raises(Stopped):
            stop.raise_if_received()
    assert signal.getsignal(number) == before


def test_stop_signals_leave_other_threads_alone() -> None:
    import threading

    failures: list[BaseException] = []

    def work(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, args=(lambda: StopSignals().__enter__(),))
    thread.start()
    thread.join()
    assert failures == []
