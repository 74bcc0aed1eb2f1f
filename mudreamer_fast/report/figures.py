"""The pictures of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mudreamer_fast.report.comparison import AGGREGATES, Comparison
from mudreamer_fast.report.runs import ReportedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Groups = Mapping[str, Sequence[ReportedRun]]
Array = np.ndarray[Any, np.dtype[np.float64]]

DIAGNOSTICS = {
    "world_model/feature_std": "spread of the encoder's features",
    "world_model/stoch_std": "spread of the latents' probabilities",
    "world_model/posterior_entropy": "entropy of the posterior",
    "world_model/prior_entropy": "entropy of the prior",
    "world_model/kl": "KL of posterior and prior",
    "behaviour/entropy": "entropy of the policy",
}
"""Metrics that show a collapse, of the representation or of the policy."""
WIDTH, HEIGHT, COLUMNS = 4.0, 3.0, 3
DRAWS = 2_000
"""Of the bootstrap over seeds."""
WINDOW = 10
"""Logged values that a point of a diagnostic's curve is the mean of."""


@contextmanager
def _sheet(path: Path, count: int, scale: float = 1.0) -> Iterator[list[Axes]]:
    """Axes for `count` pictures side by side, which are saved at the end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    size = (scale * WIDTH * columns, scale * HEIGHT * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    yield axes
    _share_legend(figure, axes)
    figure.savefig(path, format="png", dpi=110)


def _share_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    known = {
        label: handle
        for one in axes
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
    }
    if known:
        figure.legend(
            known.values(), known.keys(), loc="outside upper center", fontsize="small", ncols=2
        )


def _on_one_grid(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[Array, Array]:
    """Curves of several seeds at the same steps, as far as all of them go.

    Returns:
        Steps (S,) and values (curves, S), interpolated where a seed was evaluated at others.
    """
    curves = [curve for curve in curves if curve]
    if not curves:
        return np.empty(0), np.empty((0, 0))
    first = max(curve[0][0] for curve in curves)
    last = min(curve[-1][0] for curve in curves)
    steps = np.unique([step for curve in curves for step, _ in curve if first <= step <= last])
    values = [np.interp(steps, *np.array(curve, float).T) for curve in curves]
    return steps.astype(float), np.array(values).reshape(len(curves), len(steps))


def interval(values: Array) -> tuple[Array, Array]:
    """Ends of the 95% interval of the mean over seeds, (seeds, S), by a bootstrap."""
    chosen = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.percentile(values[chosen].mean(1), (2.5, 97.5), axis=0)
    return low, high


def _draw_groups(
    axes: Axes, groups: Groups, curve: Callable[[ReportedRun], list[tuple[int, float]]]
) -> None:
    """Mean over seeds of each variant, its interval, and the seeds themselves, thin."""
    for number, (label, runs) in enumerate(groups.items()):
        curves, color = [curve(run) for run in runs], f"C{number % 10}"
        for one in filter(None, curves):
            axes.plot(*zip(*one, strict=True), color=color, lw=0.5, alpha=0.5)
        steps, values = _on_one_grid(curves)
        if len(steps):
            marker = "o" if len(steps) == 1 else None
            axes.plot(steps, values.mean(0), color=color, lw=1.8, marker=marker, label=label)
        if len(steps) and len(values) > 1:
            axes.fill_between(steps, *interval(values), color=color, alpha=0.2, lw=0)
    axes.grid(alpha=0.3)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))
    axes.tick_params(labelsize="small")


def _of(task: str, groups: Groups) -> dict[str, list[ReportedRun]]:
    return {label: [run for run in runs if run.task == task] for label, runs in groups.items()}


def learning_curves(groups: Groups, path: Path) -> None:
    """Returns of evaluations over environment steps, by task and variant."""
    tasks = sorted({run.task for runs in groups.values() for run in runs})
    with _sheet(path, len(tasks)) as sheet:
        for axes, task in zip(sheet, tasks, strict=True):
            chosen = _of(task, groups)
            _draw_groups(axes, chosen, lambda run: run.curve("evaluation/score"))
            random = [run.random_scores for runs in chosen.values() for run in runs]
            if any(random):
                mean = float(np.mean(np.concatenate(random)))
                axes.axhline(mean, ls="--", color="0.4", label="random policy")
            axes.set_title(task.partition("/")[2] or task, fontsize="medium")
            axes.set_xlabel("environment steps", fontsize="small")
            axes.set_ylabel("return", fontsize="small")


def diagnostics(groups: Groups, path: Path) -> None:
    """What would show a collapse over environment steps, all tasks together."""

    def smooth(run: ReportedRun, metric: str) -> list[tuple[int, float]]:
        points = run.curve(metric)
        parts = [points[i : i + WINDOW] for i in range(0, len(points), WINDOW)]
        return [(part[-1][0], float(np.mean([value for _, value in part]))) for part in parts]

    with _sheet(path, len(DIAGNOSTICS)) as sheet:
        for axes, (metric, title) in zip(sheet, DIAGNOSTICS.items(), strict=True):
            _draw_groups(axes, groups, lambda run, metric=metric: smooth(run, metric))  # type: ignore[misc]
            axes.set_title(title, fontsize="medium")
            axes.set_xlabel("environment steps", fontsize="small")


def aggregates(comparison: Comparison, path: Path) -> None:
    """Mean, median and interquartile mean of each variant, with their intervals."""
    labels = list(comparison.aggregates)
    with _sheet(path, len(AGGREGATES)) as sheet:
        for axes, name in zip(sheet, AGGREGATES, strict=True):
            for place, label in enumerate(labels):
                value, low, high = comparison.aggregates[label][name]
                color = f"C{place % 10}"
                axes.barh(place, high - low, left=low, height=0.6, color=color, alpha=0.4)
                axes.plot([value, value], [place - 0.3, place + 0.3], color=color, label=label)
            axes.set_yticks([])
            axes.set_xlim(left=0.0)
            axes.locator_params(axis="x", nbins=6)
            axes.set_title(f"{name}, {comparison.unit}", fontsize="medium")
            axes.grid(alpha=0.3, axis="x")


def profiles(comparison: Comparison, path: Path) -> None:
    """Share of runs that score above each level."""
    with _sheet(path, 1, scale=1.8) as (axes,):
        for number, (label, (share, low, high)) in enumerate(comparison.profiles.items()):
            color = f"C{number % 10}"
            axes.plot(comparison.levels, share, color=color, label=label)
            axes.fill_between(comparison.levels, low, high, color=color, alpha=0.2, lw=0)
        axes.set_xlabel(comparison.unit, fontsize="small")
        axes.set_ylabel("share of runs above it", fontsize="small")
        axes.grid(alpha=0.3)
