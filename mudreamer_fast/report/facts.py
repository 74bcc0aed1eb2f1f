"""What environments told of their episodes, such as successes, averaged for the report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mudreamer_fast.envs.tasks import ACHIEVEMENT, CRAFTER
from mudreamer_fast.report.runs import ReportedRun

TRAINING, EVALUATION = "episode", "evaluation"
"""What the names of metrics begin with that come from either."""
OF_EVERY_EPISODE = ("score", "scores", "length_steps")
"""What is logged of episodes whatever their environment tells."""


@dataclass(frozen=True)
class FactRow:
    """One fact of one variant on one task: means over its runs, each with its episodes' mean."""

    task: str
    variant: str
    name: str
    training: float | None
    """Over all episodes of training."""
    evaluation: float | None
    """Over the episodes of the last evaluation."""


def crafter_score(facts: Mapping[str, float]) -> float | None:
    r"""Crafter's score S in percent, the geometric mean of success rates.

    $$S = \exp\Bigl(\tfrac{1}{22} \sum_i \ln(1 + s_i)\Bigr) - 1$$ with s_i the percentage of
    episodes that unlocked achievement i (Hafner, arXiv 2109.06780, section 3.3).

    Args:
        facts: shares of episodes, by the names of the facts.

    Returns:
        S, or None where no achievements are told of.
    """
    rates = [100 * share for name, share in facts.items() if name.startswith(ACHIEVEMENT)]
    if not rates:
        return None
    return math.expm1(sum(math.log1p(rate) for rate in rates) / len(rates))


def fact_rows(groups: Mapping[str, Sequence[ReportedRun]]) -> Iterator[FactRow]:
    """The facts of every task and variant, and Crafter's score.

    Args:
        groups: runs by variant.
    """
    for task in sorted({run.task for runs in groups.values() for run in runs}):
        for variant, group in groups.items():
            runs = [run for run in group if run.task == task]
            training = [_training(run) for run in runs]
            evaluated = [_evaluated(run) for run in runs]
            if task.startswith(CRAFTER):
                for told in (*training, *evaluated):
                    score = crafter_score(told)
                    if score is not None:
                        told["Crafter's score, percent"] = score
            names = dict.fromkeys(name for told in (*training, *evaluated) for name in told)
            for name in sorted(names, key=lambda name: (name.startswith(ACHIEVEMENT), name)):
                yield FactRow(task, variant, name, _mean(training, name), _mean(evaluated, name))


def _training(run: ReportedRun) -> dict[str, float]:
    return {
        name: statistics.fmean(value for _, value in run.curve(f"{TRAINING}/{name}"))
        for name in _names(run, TRAINING)
    }


def _evaluated(run: ReportedRun) -> dict[str, float]:
    return {name: run.curve(f"{EVALUATION}/{name}")[-1][1] for name in _names(run, EVALUATION)}


def _names(run: ReportedRun, kind: str) -> list[str]:
    found = dict.fromkeys(name for row in run.rows for name in row)
    names = [name.removeprefix(f"{kind}/") for name in found if name.startswith(f"{kind}/")]
    told = [name for name in names if name not in OF_EVERY_EPISODE]
    return [name for name in told if run.curve(f"{kind}/{name}")]


def _mean(told: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [facts[name] for facts in told if name in facts]
    return statistics.fmean(values) if values else None
