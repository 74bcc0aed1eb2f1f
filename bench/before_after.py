"""Two groups of runs side by side: returns while they learn, and what a probe read at the end.

    python -m bench.before_after --before RUN... --after RUN... --probe FILE --out PNG

The runs are folders with `metrics.jsonl`; FILE is what `python -m bench.probe` wrote of the same
runs, named alike.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mudreamer_fast.run.metrics import METRICS_FILE, read_lines

FEATURES = {"encoder": "features of one image", "model_state": "model state"}


@dataclass(frozen=True)
class Options:
    """Draw two groups of runs."""

    before: tuple[Path, ...]
    """Run folders of the first group."""
    after: tuple[Path, ...]
    """Of the second."""
    probe: Path
    """JSON of `bench.probe` on all of them."""
    out: Path
    """PNG to write."""


def draw(options: Options) -> Figure:
    """The figure: a line for each run's evaluations, a mark for each run's mean R^2."""
    read = json.loads(options.probe.read_text())["runs"]
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    returns, probes = figure.subplots(1, 2, width_ratios=(3, 2))
    groups = {"before": (options.before, "C1"), "after": (options.after, "C0")}
    for name, (runs, colour) in groups.items():
        for run in runs:
            points = evaluations(run)
            returns.plot(*zip(*points, strict=True), "o-", color=colour, ms=4)
        marks: dict[str, Any] = {"color": colour, "ls": "none", "marker": "o", "label": name}
        for kind, label in FEATURES.items():
            values = [read[str(run)][kind]["mean_r2"] for run in runs]
            probes.plot([label] * len(values), values, **marks)
            marks.pop("label", None)
    for index, kind in enumerate(FEATURES):
        level = read["untrained"][kind]["mean_r2"]
        untrained = "untrained" if index == 0 else None
        probes.plot([index - 0.3, index + 0.3], [level] * 2, color="0.4", ls="--", label=untrained)
    returns.set(
        xlabel="environment steps", ylabel="return of an episode, evaluations", ylim=(0, None)
    )
    probes.set(ylabel="R² of a linear probe of the state, held-out episodes", xlim=(-0.5, 1.5))
    for axes in (returns, probes):
        axes.grid(alpha=0.3)
    probes.legend(loc="best", fontsize="small")
    return figure


def evaluations(run: Path) -> list[tuple[int, float]]:
    """Environment steps and mean returns of a run's evaluations."""
    rows = read_lines(run / METRICS_FILE)
    return [
        (row["env_steps"], row["evaluation/score"]) for row in rows if "evaluation/score" in row
    ]


def main() -> int:
    """Draws the figure that the command line asks for."""
    options = tyro.cli(Options, prog="python -m bench.before_after", description=__doc__)
    draw(options).savefig(options.out, format="png", dpi=120)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
