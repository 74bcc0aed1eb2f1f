"""Contenders that take turns, so that all of them see the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def take_turns(
    benchmark: BenchmarkFixture,
    contenders: Mapping[str, Callable[[], object]],
    base: str,
    rounds: int,
    rate: tuple[str, float],
    warm: Callable[[str], object] = lambda name: None,
    settle: float = 0.0,
) -> None:
    """Time the contenders one after the other, in each round once, and print what came of it.

    The order is drawn anew for each round: nobody always comes after the same, or after himself.

    Args:
        benchmark: gets the rows as `extra_info`; its own figures are those of a whole round.
        contenders: by name; what one call does.
        base: whose rate the others' are divided by.
        rounds: how often.
        rate: what to count, and how much of it a call does.
        warm: called before each turn with the contender's name; not timed.
        settle: seconds to wait after each turn, for what it leaves running.
    """
    unit, amount = rate
    taken: list[dict[str, float]] = []
    rng = np.random.default_rng(0)

    def one_round() -> None:
        turn = {}
        for name in rng.permutation(list(contenders)).tolist():
            warm(name)
            turn[name] = seconds(contenders[name])
            time.sleep(settle)
        taken.append(turn)

    one_round()
    taken.clear()
    benchmark.pedantic(one_round, rounds=rounds)
    rows: dict[str, Any] = {}
    print()
    for name in contenders:
        median = statistics.median(one[name] for one in taken)
        over_base = np.array([one[base] / one[name] for one in taken])
        low, middle, high = np.quantile(over_base, (0.25, 0.5, 0.75)).tolist()
        rows[name] = {
            "milliseconds": median * 1e3,
            "min_milliseconds": min(one[name] for one in taken) * 1e3,
            "max_milliseconds": max(one[name] for one in taken) * 1e3,
            unit: amount / median,
            f"over {base}": {"median": middle, "quartiles": [low, high]},
        }
        print(
            f"  {name:24}{median * 1e3:9.3f} ms {amount / median:12,.0f} {unit} "
            f"{middle:7.3f} ({low:.3f} to {high:.3f}) of {base}"
        )
    benchmark.extra_info["contenders"] = rows
