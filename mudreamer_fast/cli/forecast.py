"""How long a sweep will take: its runs, how far they are, and a measurement for each variant."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from mudreamer_fast.cli.info import run_seconds
from mudreamer_fast.config import Config
from mudreamer_fast.run.reporter import span_text
from mudreamer_fast.sweep.plan import PlannedRun

MEASURED_SECONDS = 10.0


def forecast(runs: Sequence[PlannedRun], jobs: int) -> Iterator[str]:
    """Says which runs there are and how long those that are not finished will take.

    The first run of each variant is measured for some seconds, and stands for its other tasks and
    seeds. What is done of a run that has begun is not taken off.

    Args:
        runs: those of the plan.
        jobs: runs at a time.
    """
    measured: dict[Config, float] = {}
    total = 0.0
    for run in runs:
        if run.finished:
            yield f"finished  {run.name}"
            continue
        kind = _without_task_and_seed(run.config)
        if kind not in measured:
            measured[kind] = run_seconds(run.config, MEASURED_SECONDS)
        total += measured[kind]
        state = "to resume" if run.begun else "to start "
        yield f"{state} {run.name}: {span_text(measured[kind])}, {run.config.env.task}"
    left = sum(not run.finished for run in runs)
    yield (
        f"{left} of {len(runs)} runs to do: {total / 3600:.1f} hours one after the other, "
        f"{total / 3600 / jobs:.1f} hours with {jobs} at a time, where they do not slow each other"
    )


def _without_task_and_seed(config: Config) -> Config:
    return dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, task="dmc/walker_walk"),
        train=dataclasses.replace(config.train, seed=0),
    )
