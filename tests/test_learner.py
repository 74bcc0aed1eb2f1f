"""Updates here or in another thread: the same, in order, and told when they fail."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mudreamer_fast.learner import Learner
from mudreamer_fast.machine import late
from mudreamer_fast.machine.late import LateValues


class Parts:
    """Stands in for what acts: a number that is taken over."""

    def __init__(self, weight: int = 0) -> None:
        self.weight = weight

    def apart(self) -> Parts:
        return Parts(self.weight)

    def follow(self, other: Parts) -> None:
        self.weight = other.weight


class CountingAgent:
    def __init__(self) -> None:
        self.acting = Parts()
        self.device = torch.device("cpu")
        self.threads: list[str] = []

    def update(self, batch: Any) -> LateValues:
        if batch == "bad":
            raise ValueError("a bad batch")
        self.acting.weight += 1
        self.threads.append(threading.current_thread().name)
        return LateValues(["loss"], torch.tensor([float(self.acting.weight)]))


class Stock:
    """Stands in for the batches; says whether a view is held."""

    def __init__(self) -> None:
        self.held = False
        self.batch = "good"

    def next(self) -> str:
        return self.batch

    def hold_view(self) -> None:
        assert not self.held
        self.held = True

    def release_view(self) -> None:
        self.held = False


@pytest.fixture(params=[False, True], ids=["here", "background"])
def parts(request):
    agent, stock = CountingAgent(), Stock()
    learner = Learner(agent, stock, request.param)  # type: ignore[arg-type]
    yield learner, agent, stock
    learner.close()


def test_metrics_come_in_order_once(parts):
    learner, agent, stock = parts
    assert learner.finish() == []
    learner.start(agent.update, 3)
    assert [metrics["loss"] for metrics in learner.finish()] == [1, 2, 3]
    assert learner.finish() == []
    assert not stock.held


def test_metrics_of_the_last_update_come_with_the_next_job_unless_they_are_wanted(parts):
    learner, agent, _ = parts
    found = []
    for updates in (1, 2, 0, 1):
        learner.start(agent.update, updates)
        found.append([metrics["loss"] for metrics in learner.finish(last=False)])
    assert found == [[], [1, 2], [], [3]]
    assert [metrics["loss"] for metrics in learner.finish()] == [4]
    assert learner.finish() == []


def test_what_acts_has_the_weights_from_before_the_job(parts):
    learner, agent, _ = parts
    learner.start(agent.update, 2)
    if learner.in_background:
        wait([learner._job])
        assert learner.acting.weight == 0
    learner.finish()
    assert agent.acting.weight == 2
    learner.start(agent.update, 2)
    assert learner.acting.weight == (2 if learner.in_background else 4)
    learner.finish()
    assert len({*agent.threads}) == 1
    assert agent.threads[0].startswith("learner") == learner.in_background


def test_a_second_job_is_refused_before_the_first_is_finished(parts):
    learner, agent, _ = parts
    learner.start(agent.update, 1)
    with pytest.raises(RuntimeError, match="has not been finished"):
        learner.start(agent.update, 1)


def test_a_failure_is_the_callers_and_ends_the_view(parts):
    learner, agent, stock = parts
    stock.batch = "bad"
    with pytest.raises(ValueError, match="a bad batch"):
        learner.start(agent.update, 1) or learner.finish()
    assert not stock.held


def test_idle_time_is_counted_but_for_pauses(parts, monkeypatch):
    learner, agent, _ = parts
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(late, "time", SimpleNamespace(monotonic=lambda: clock.now))
    update = agent.update

    def slow(batch):
        clock.now += 100.0
        return update(batch)

    agent.update = slow
    learner.start(agent.update, 1)
    learner.finish()
    assert learner.idle_seconds == 0
    clock.now += 5.0
    learner.start(agent.update, 1)
    assert learner.idle_seconds == 5
    learner.finish()
    clock.now += 30.0
    learner.pause()
    learner.start(agent.update, 1)
    learner.finish()
    assert learner.idle_seconds == 5


def test_a_stop_ends_a_job_early():
    agent, stock = CountingAgent(), Stock()
    learner = Learner(agent, stock, False, lambda: agent.acting.weight == 2)  # type: ignore[arg-type]
    learner.start(agent.update, 5)
    assert len(learner.finish()) == 2


def test_the_background_keeps_the_threads_and_acting_takes_one():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    learner = Learner(CountingAgent(), Stock(), True)  # type: ignore[arg-type]
    assert torch.get_num_threads() == 1
    assert learner._thread.submit(torch.get_num_threads).result() == 2
    learner.close()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
