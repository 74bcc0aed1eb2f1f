"""Means over tasks and seeds with their uncertainty, by rliable.

After Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(NeurIPS 2021): intervals by a bootstrap stratified by task, and the interquartile mean beside mean
and median.
"""

from __future__ import annotations

import importlib.util
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mudreamer_fast.report.published import UNITS, normalised, suite
from mudreamer_fast.report.runs import ReportedRun

Array = np.ndarray[Any, np.dtype[np.float64]]

AGGREGATES = ("mean", "median", "interquartile mean")
REPEATS = 2_000
"""Draws of the bootstrap."""
LEVELS = 51
"""Scores between 0 and 1 at which profiles are drawn."""


@dataclass(frozen=True)
class Comparison:
    """Variants over the tasks and numbers of seeds that all of them have."""

    tasks: list[str]
    unit: str
    """Of the scores."""
    seeds: int
    """Runs of each task that were taken, those with the lowest seeds."""
    aggregates: Mapping[str, Mapping[str, tuple[float, float, float]]]
    """Value, and the ends of its 95% interval, by variant and aggregate."""
    improvement: Mapping[tuple[str, str], tuple[float, float, float]]
    """Probability that a run of the first variant is better than one of the second."""
    levels: Array
    profiles: Mapping[str, tuple[Array, Array, Array]]
    """Share of runs above each level, and the ends of its interval."""


def compare(groups: Mapping[str, Sequence[ReportedRun]]) -> Comparison | str:
    """Compares variants over the tasks of a suite that all of them have scores of.

    Of several suites that with the most tasks is taken.

    Args:
        groups: runs by variant.

    Returns:
        The comparison, or a sentence on why there is none.
    """
    scores = {label: _by_task(runs) for label, runs in groups.items()}
    common = sorted(set.intersection(*(set(one) for one in scores.values()))) if scores else []
    if not common:
        return (
            "No task of DeepMind Control or of Atari 100k has a score of every variant, so nothing "
            "is averaged."
        )
    taken = statistics.mode(map(suite, common))
    tasks = [task for task in common if suite(task) == taken]
    seeds = min(len(one[task]) for one in scores.values() for task in tasks)
    if seeds < 2:
        return (
            "A task or a variant has one seed alone, which tells nothing of its spread, so nothing "
            "is averaged over tasks: two seeds are the least, and five are usual."
        )
    if importlib.util.find_spec("rliable") is None:
        return (
            "Averages over tasks and their intervals take rliable: pip install "
            "'mudreamer-fast[report]'."
        )
    matrices = {
        label: np.array([one[task][:seeds] for task in tasks]).T for label, one in scores.items()
    }
    return _bootstrap(tasks, UNITS[taken], seeds, matrices)


def _by_task(runs: Sequence[ReportedRun]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for run in runs:
        score = None if run.score is None else normalised(run.task, run.score)
        if score is not None:
            found.setdefault(run.task, []).append(score)
    return found


def _bootstrap(tasks: list[str], unit: str, seeds: int, matrices: dict[str, Array]) -> Comparison:
    from rliable import library, metrics

    def aggregate(scores: Array) -> Array:
        return np.array(
            [
                metrics.aggregate_mean(scores),
                metrics.aggregate_median(scores),
                metrics.aggregate_iqm(scores),
            ]
        )

    def estimate(scores: Mapping[str, Any], statistic: Callable[..., Any]) -> tuple[Any, Any]:
        with warnings.catch_warnings():  # rliable hands on a generator of the kind before last
            warnings.simplefilter("ignore", FutureWarning)
            values, bounds = library.get_interval_estimates(
                scores, statistic, reps=REPEATS, random_state=np.random.RandomState(0)
            )
        return values, bounds

    values, bounds = estimate(matrices, aggregate)
    aggregates = {
        label: {
            name: (float(values[label][i]), float(bounds[label][0, i]), float(bounds[label][1, i]))
            for i, name in enumerate(AGGREGATES)
        }
        for label in matrices
    }
    improvement = {}
    for pair in combinations(matrices, 2):
        both = {"pair": (matrices[pair[0]], matrices[pair[1]])}
        chance, ends = estimate(both, metrics.probability_of_improvement)
        low, high = (float(end) for end in ends["pair"].ravel())
        improvement[pair] = (float(chance["pair"]), low, high)
    levels = np.linspace(0.0, 1.0, LEVELS)
    shares, ends = estimate(matrices, lambda scores: _profile(scores, levels))
    profiles = {label: (shares[label], ends[label][0], ends[label][1]) for label in matrices}
    return Comparison(tasks, unit, seeds, aggregates, improvement, levels, profiles)


def _profile(scores: Array, levels: Array) -> Array:
    """Share of all runs that score above each level."""
    return np.asarray((scores.reshape(-1, 1) > levels).mean(0))
