from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from mudreamer_fast.machine.signals import Stopped, StopSignals


@pytest.mark.parametrize("number", StopSignals.SIGNALS)
def test_first_signal_is_a_request_and_ctrl_c_after_it_is_the_systems(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        stop.raise_if_received()
        os.kill(os.getpid(), number)
        assert stop.received == number
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        with pytest.raises(Stopped):
            stop.raise_if_received()
        # what a shell, a kernel and a scheduler send more than once changes nothing
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == number
    assert signal.getsignal(number) == before


def test_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


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
