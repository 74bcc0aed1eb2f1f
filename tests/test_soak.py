from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bench import soak
from bench.soak import Look, Stretch, family, look, updates_per_second, verdict
from tests.patience import PATIENCE_SECONDS


def stretch(start: float, rate: float, memory: float, ended_by: str, **changed: int) -> Stretch:
    """Ten minutes from a second `start`, with a look every ten seconds, on a steady machine."""
    had: dict[str, Any] = {"files": 30, "threads": 9, "processes": 1} | changed
    looks = [
        Look(start + s, round(memory), env_steps=round((start + s) * rate), logged_at=s, **had)
        for s in range(0, 600, 10)
    ]
    yardsticks = [(start + s + 1, 8.0) for s in range(50, 600, 60)]
    return Stretch(looks, ended_by, yardsticks=yardsticks)


def test_a_soak_in_which_nothing_changes_holds() -> None:
    found = verdict([stretch(600 * i, 100.0, 2e9, "SIGKILL") for i in range(4)], 30_000)
    assert found["broken"] == []
    assert found["not_long_enough_for"] == []
    assert found["kills"] == 4
    assert found["last_rate_to_first"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("last", "broken"),
    [
        (stretch(1800, 100.0, 2.05e9, "SIGTERM"), "memory grows"),
        (stretch(1800, 94.0, 2e9, "SIGTERM"), "it slows down"),
        (stretch(1800, 100.0, 2e9, "SIGTERM", files=31), "files grow"),
        (stretch(1800, 100.0, 2e9, "SIGTERM", threads=10), "threads grow"),
        (stretch(1800, 100.0, 2e9, "SIGTERM", processes=2), "processes grow"),
        (stretch(1800, 100.0, 2e9, "itself, with code 1"), "it ended by itself"),
    ],
)
def test_whatever_changes_is_found(last: Stretch, broken: str) -> None:
    before = [stretch(600 * i, 100.0, 2e9, "SIGKILL") for i in range(3)]
    assert verdict([*before, last], 30_000)["broken"] == [broken]


def test_memory_counts_from_when_the_replay_is_full() -> None:
    filling = [stretch(600 * i, 100.0, 1e9 * (i + 1), "SIGKILL") for i in range(2)]
    full = [stretch(600 * i, 100.0, 3e9, "SIGKILL") for i in range(2, 4)]
    assert verdict([*filling, *full], 120_000)["memory_growth"] == 0.0
    assert verdict([*filling, full[0]], 120_000)["memory_growth"] is None


def test_memory_that_takes_one_step_in_each_stretch_does_not_grow() -> None:
    """As at a run's first checkpoint and evaluation, sooner or later; so may one look be higher."""
    stretches = [stretch(600 * i, 100.0, 2e9, "SIGKILL") for i in range(4)]
    for i, one in enumerate(stretches):
        for at in one.looks[: 4 + 9 * i]:
            at.memory_bytes -= 200_000_000
        one.looks[45].memory_bytes += 200_000_000
    found = verdict(stretches, 0)
    assert found["memory_growth"] == 0.0
    assert found["memory_growth_within_a_stretch"] == 0.0


def test_memory_that_grows_anew_in_each_stretch_is_found() -> None:
    stretches = [stretch(600 * i, 100.0, 2e9, "SIGKILL") for i in range(4)]
    for one in stretches:
        for i, at in enumerate(one.looks):
            at.memory_bytes += 4_000_000 * i
    found = verdict(stretches, 0)
    assert found["memory_growth"] == 0.0
    assert found["broken"] == ["memory grows"]


@pytest.mark.parametrize("name", ["files", "threads", "processes"])
def test_what_grows_anew_in_each_stretch_is_found_and_what_is_there_for_a_moment_is_not(
    name: str,
) -> None:
    stretches = [stretch(600 * i, 100.0, 2e9, "SIGKILL") for i in range(3)]
    for one in stretches:
        setattr(one.looks[30], name, 40)
    assert verdict(stretches, 0)["broken"] == []
    for one in stretches:
        for i, at in enumerate(one.looks):
            setattr(at, name, 9 + i // 5)
    assert verdict(stretches, 0)["broken"] == [f"{name} grow"]


def test_an_evaluation_is_no_slowness_and_a_short_stretch_gives_no_rate() -> None:
    stretches = [stretch(600 * i, 100.0, 2e9, "SIGKILL") for i in range(3)]
    for at in stretches[2].looks[30:]:  # half a minute without a step
        at.env_steps -= 3_000
    assert verdict(stretches, 0)["last_rate_to_first"] == pytest.approx(1.0)
    short = stretch(1800, 100.0, 2e9, "SIGTERM")
    short.looks, short.yardsticks = short.looks[:7], short.yardsticks[:1]
    assert short.steps_per_second() is None
    assert verdict([*stretches, short], 0)["last_rate_to_first"] == pytest.approx(1.0)


def test_a_soak_that_takes_no_step_at_first_has_no_rate_to_compare_with() -> None:
    found = verdict([stretch(0, rate, 2e9, "SIGKILL") for rate in (0.0, 100.0)], 10**9)
    assert found["last_rate_to_first"] is None
    assert "last_rate_to_first" in found["not_long_enough_for"]


def at_pace(one: Stretch, paces: list[float]) -> Stretch:
    """The same looks on a machine that makes other updates a second from minute to minute."""
    one.yardsticks = [(at, pace) for (at, _), pace in zip(one.yardsticks, paces, strict=True)]
    return one


def test_a_slower_machine_is_no_slower_run_and_a_faster_one_hides_none() -> None:
    first = stretch(0, 100.0, 2e9, "SIGKILL")
    slower = at_pace(stretch(600, 80.0, 2e9, "SIGTERM"), [6.4] * 10)
    found = verdict([first, slower], 10**9)
    assert found["last_rate_to_first"] == pytest.approx(1.0)
    assert found["without_yardstick"] == pytest.approx(0.8)
    same = at_pace(stretch(600, 100.0, 2e9, "SIGTERM"), [9.0] * 10)
    assert verdict([first, same], 10**9)["broken"] == ["it slows down"]


def test_each_minute_counts_by_the_yardsticks_around_it() -> None:
    one = at_pace(stretch(0, 100.0, 2e9, "SIGKILL"), [8.0, 8, 8, 8, 4, 4, 8, 8, 8, 8])
    # The first minute is not settled.
    assert [relative for _, relative in one.minutes()[1:]] == pytest.approx(
        [100 / 8] * 2 + [100 / 6, 100 / 4, 100 / 6] + [100 / 8] * 3
    )


def test_a_run_stands_still_while_the_machine_is_timed() -> None:
    counts = "import time\nwhile True: print(1, flush=True); time.sleep(0.001)"
    with subprocess.Popen([sys.executable, "-c", counts], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with mock.patch.object(soak, "updates_per_second", partial(becomes, process.pid, True)):
            soak.stopped(process.pid)
        becomes(process.pid, stopped=False)
        process.kill()


def becomes(pid: int, stopped: bool) -> None:
    """Waits until a process is stopped, or goes on."""
    until = time.monotonic() + PATIENCE_SECONDS
    status = Path(f"/proc/{pid}/stat")
    while (status.read_text().rpartition(")")[2].split()[0] == "T") != stopped:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_yardstick_is_a_rate_of_updates() -> None:
    begun = time.perf_counter()
    rate = updates_per_second(seconds=0.0)
    assert 1 / (time.perf_counter() - begun) < rate < 1000


def test_a_process_is_looked_at() -> None:
    assert os.getpid() in family(os.getpid())
    found = look(os.getpid(), 1.0, (2, 0.5))
    assert found is not None
    assert found.memory_bytes > 1e6
    assert found.files > 2
    assert found.threads >= 1
    assert found.processes >= 1
