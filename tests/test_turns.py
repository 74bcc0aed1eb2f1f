"""Contenders that take turns: what is counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench import turns


def test_the_round_that_warms_up_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = {"slow": iter((9.0, 4e-3, 2e-3, 6e-3)), "fast": iter((9.0, 2e-3, 1e-3, 3e-3))}
    monkeypatch.setattr(turns, "seconds", lambda call: next(call()))

    def pedantic(one_round: Any, rounds: int) -> None:
        for _ in range(rounds):
            one_round()

    benchmark: Any = SimpleNamespace(pedantic=pedantic, extra_info={})
    contenders = {name: lambda name=name: durations[name] for name in durations}
    turns.take_turns(benchmark, contenders, "slow", 3, ("steps/s", 1))
    rows = benchmark.extra_info["contenders"]
    assert rows["slow"]["milliseconds"] == pytest.approx(4.0)
    assert rows["fast"]["milliseconds"] == pytest.approx(2.0)
    assert rows["fast"]["over slow"] == {"median": 2.0, "quartiles": [2.0, 2.0]}
