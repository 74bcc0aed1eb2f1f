"""Numbers that are looked at late are those of the moment at which they were asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mudreamer_fast.machine import late
from mudreamer_fast.machine.late import LateValues, Moment

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_late_values_outlive_the_memory_that_they_came_from(device: str) -> None:
    values = torch.ones(2, device=device)
    if device == "cuda":
        torch.cuda._sleep(10**8)  # the host is to be ahead
    values.add_(torch.tensor([0.5, torch.inf], device=device))
    found = LateValues(("loss", "norm"), values)
    values.zero_()
    assert list(found) == ["loss", "norm"]
    assert found == {"loss": 1.5, "norm": torch.inf}
    assert found["loss"] == 1.5
    assert len(found) == 2


def test_late_values_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = LateValues(("loss",), torch.ones(1))
    waits = []
    monkeypatch.setattr(Moment, "wait", lambda moment: waits.append(moment))
    assert waits == []
    assert found.read() is found.read()
    assert len(waits) == 1


def test_moments_on_the_cpu_are_told_by_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=3.0)
    monkeypatch.setattr(late, "time", SimpleNamespace(monotonic=lambda: clock.now))
    first = Moment(torch.device("cpu"))
    clock.now = 5.0
    second = Moment(torch.device("cpu"))
    assert first.past
    assert first.seconds_until(second) == 2.0


@pytest.mark.gpu
def test_moments_on_a_gpu_are_told_by_its_own_clock() -> None:
    device = torch.device("cuda", 0)
    first = Moment(device)
    torch.cuda._sleep(10**8)
    second = Moment(device)
    third = Moment(device)
    third.wait()
    assert first.past
    assert second.past
    assert first.seconds_until(second) > 10 * second.seconds_until(third)
