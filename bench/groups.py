"""Groups of runs side by side: returns and spread as they learn, and what a probe read at the end.

    python -m bench.groups NAME=RUN... --probe FILE... --out PNG

Runs of one NAME form a group and share a colour. Each RUN is a folder with `metrics.jsonl`; a FILE
is what `python -m bench.probe` wrote of the same runs, named alike. Where several files tell of the
same run, they have to tell the same; a bar beside each group is its file's untrained agent.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mudreamer_fast.run.metrics import METRICS_FILE, read_lines

CURVES = {
    "evaluation/score": "return of an episode, evaluations",
    "world_model/feature_std": "spread of the features",
    "world_model/stoch_std": "spread of the latents' probabilities",
}
"""Metrics drawn over environment steps."""
WINDOW = 10
"""Logged values that a point of a spread's curve is the mean of."""
PROBED = {
    "mean_r2": "R² of a linear probe of the state",
    "background": "R² of one of the background",
    "effective_rank": "effective rank",
}
"""What is drawn of a probe; the background where runs have one."""
KINDS = {"encoder": "features", "latents": "latents", "model_state": "model state"}


class Probed(NamedTuple):
    """What a probe found, by kind of features."""

    run: Mapping[str, Any]
    untrained: Mapping[str, Any]
    """Of an agent that has learned nothing, on the same frames."""


class GroupsError(ValueError):
    """Groups that cannot be drawn; the message is shown to the user as it is."""


@dataclass(frozen=True)
class Options:
    """Draw groups of runs side by side."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """NAME=RUN each: the group, and the run's folder."""
    probe: tuple[Path, ...]
    """JSON of `bench.probe` on all of them, in one file or several."""
    out: Path
    """PNG to write."""


def grouped(runs: Sequence[str]) -> dict[str, list[Path]]:
    """Folders by group, in the order in which they were named.

    Raises:
        GroupsError: no run is named, or one has no group.
    """
    groups: dict[str, list[Path]] = {}
    for run in runs:
        name, equals, folder = run.partition("=")
        if not (name and equals and folder):
            raise GroupsError(f"expected NAME=RUN, got {run!r}")
        groups.setdefault(name, []).append(Path(folder))
    if not groups:
        raise GroupsError("name at least one run, as NAME=RUN")
    return groups


def probed_runs(files: Sequence[Path]) -> dict[str, Probed]:
    """What was probed, by run.

    Raises:
        GroupsError: two files tell something else of the same run.
    """
    probed: dict[str, Probed] = {}
    for file in files:
        runs = json.loads(file.read_text())["runs"]
        untrained = runs.pop("untrained")
        for name, run in runs.items():
            found = Probed(run, untrained)
            if probed.setdefault(name, found) != found:
                raise GroupsError(f"{file} has other values of {name} than the files before it")
    return probed


def curve(run: Path, metric: str) -> tuple[list[float], list[float]]:
    """Environment steps and values of a metric, averaged where it is logged often."""
    try:
        rows = [row for row in read_lines(run / METRICS_FILE) if metric in row]
    except OSError as error:
        raise GroupsError(f"{run / METRICS_FILE}: {error.strerror}") from None
    size = 1 if metric.startswith("evaluation/") else WINDOW
    steps, values = [], []
    for begin in range(0, len(rows), size):
        part = rows[begin : begin + size]
        steps.append(sum(row["env_steps"] for row in part) / len(part))
        values.append(sum(row[metric] for row in part) / len(part))
    return steps, values


def draw(groups: Mapping[str, Sequence[Path]], probed: Mapping[str, Probed]) -> Figure:
    """A line for each run's curves, and a mark for each run of what the probe measured.

    Args:
        groups: run folders by group.
        probed: what `bench.probe` wrote of them, by run.
    """
    figure = Figure(figsize=(11.0, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1)
    drawn = [probed[str(run)] for runs in groups.values() for run in runs]
    panels = {
        value: label
        for value, label in PROBED.items()
        if any(level(found.run, kind, value) is not None for found in drawn for kind in KINDS)
    }
    curves, marks = above.subplots(1, len(CURVES)), below.subplots(1, len(panels))
    for index, (name, runs) in enumerate(groups.items()):
        for axes, metric in zip(curves, CURVES, strict=True):
            marker = "o" if metric.startswith("evaluation/") else ""
            for number, run in enumerate(runs):
                legend = {"label": name} if number == 0 else {}
                axes.plot(*curve(run, metric), color=f"C{index}", ms=3, marker=marker, **legend)
        for axes, value in zip(marks, panels, strict=True):
            mark(axes, [probed[str(run)] for run in runs], value, index, len(groups))
    for axes, label in zip(curves, CURVES.values(), strict=True):
        axes.set(xlabel="environment steps", ylabel=label, ylim=(0, None))
    for axes, label in zip(marks, panels.values(), strict=True):
        axes.set(ylabel=label, xticks=range(len(KINDS)), xticklabels=list(KINDS.values()))
    marks[0].set_xlabel("bar: untrained", loc="left", fontsize="small")
    for axes in curves:
        axes.locator_params(axis="x", nbins=5)
    for axes in (*curves, *marks):
        axes.grid(alpha=0.3)
    curves[0].legend(loc="best", fontsize="small")
    return figure


def level(found: Mapping[str, Any], kind: str, value: str) -> float | None:
    """A value that was probed; None where there was nothing to probe."""
    one = found[kind].get(value)
    return one["mean_r2"] if isinstance(one, Mapping) else one


def mark(axes: Axes, probed: Sequence[Probed], value: str, index: int, of: int) -> None:
    """The marks of one group of `of`, beside those of the others, and a bar for the untrained."""
    for place, kind in enumerate(KINDS):
        x = place + 0.6 * (index - (of - 1) / 2) / of
        values = [level(found.run, kind, value) for found in probed]
        untrained = level(probed[0].untrained, kind, value)
        if untrained is not None:
            axes.plot([x], [untrained], color="0.4", ls="none", marker="_", ms=48 / of)
        known = [one for one in values if one is not None]
        axes.plot([x] * len(known), known, color=f"C{index}", ls="none", marker="o", ms=5)


def main() -> int:
    """Draws the figure that the command line asks for."""
    options = tyro.cli(Options, prog="python -m bench.groups", description=__doc__)
    try:
        groups = grouped(options.runs)
        probed = probed_runs(options.probe)
        missing = [str(run) for runs in groups.values() for run in runs if str(run) not in probed]
        if missing:
            files = ", ".join(map(str, options.probe))
            raise GroupsError(f"{files} has nothing of {', '.join(missing)}")
        figure = draw(groups, probed)
    except (GroupsError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    figure.savefig(options.out, format="png", dpi=120)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
