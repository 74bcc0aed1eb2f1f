"""The report itself: one HTML page that needs nothing else, and the pictures in it."""

from __future__ import annotations

import base64
import mimetypes
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudreamer_fast.config import ConfigError
from mudreamer_fast.envs.tasks import GAMES_OF_ATARI_100K, PAPERS_TASKS
from mudreamer_fast.report import figures
from mudreamer_fast.report.comparison import AGGREGATES, Comparison, compare
from mudreamer_fast.report.facts import fact_rows
from mudreamer_fast.report.published import (
    OVERALL,
    SOURCES,
    PublishedColumn,
    normalised,
    published_columns,
    suite,
)
from mudreamer_fast.report.runs import ReportedRun, differing_settings, read_runs, variants

TEMPLATE = Path(__file__).with_name("page.html")
PAGE = "index.html"
LARGEST_FILM = 4 * 2**20
"""Bytes of a video that is put into the page; a larger one is left where it lies."""
SUITES = {
    "dmc": (PAPERS_TASKS, "tasks of the paper"),
    "atari": (GAMES_OF_ATARI_100K, "games of Atari 100k"),
}
"""What is to be run of each suite."""
PUBLISHED_STEPS = {"dmc": 1_000_000, "atari": 400_000}
USUAL_SEEDS = 3
"""Seeds of the paper's scores."""


@dataclass(frozen=True)
class Film:
    """What a run left to look at."""

    title: str
    source: str
    """A data URI."""
    video: bool


@dataclass(frozen=True)
class TaskRow:
    """One variant on one task."""

    task: str
    variant: str
    seeds: int
    env_steps: str
    random: str
    score: str
    """Mean over seeds and standard deviation."""
    ratio: str
    normalised: str
    """By what humans score, in games of Atari 100k."""
    published: list[str]


def write_report(places: Sequence[Path], out: Path, title: str) -> Iterator[str]:
    """Writes a report on runs, finished or not, and says what it writes.

    Args:
        places: run folders, or folders of run folders.
        out: folder to write `index.html` and its pictures to; made where it is missing.
        title: of the page.

    Raises:
        ConfigError: none of the folders is a run's.
    """
    from jinja2 import Environment, StrictUndefined

    runs, others = read_runs(places)
    if not runs:
        raise ConfigError(
            f"nothing to report on: expected run folders, got {'; '.join(others) or 'none'}"
        )
    out.mkdir(parents=True, exist_ok=True)
    groups = variants(runs)
    comparison = compare(groups)
    pictures = _draw(groups, comparison, out)
    moving = {run.config.env.background != "none" for run in runs}
    columns = [
        column
        for backgrounds in sorted(moving)
        for column in published_columns({run.task for run in runs}, backgrounds)
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.from_string(TEMPLATE.read_text()).render(
        title=title,
        runs=runs,
        groups=groups,
        rows=list(_task_rows(groups, columns)),
        columns=columns,
        sources={column.source: SOURCES[column.source] for column in columns},
        overall=OVERALL if any(run.task in PAPERS_TASKS for run in runs) else None,
        pictures={name: _data_uri(path) for name, path in pictures.items()},
        facts=list(fact_rows(groups)),
        atari=any(suite(run.task) == "atari" for run in runs),
        comparison=comparison if isinstance(comparison, Comparison) else None,
        why_not_compared=comparison if isinstance(comparison, str) else None,
        aggregates=AGGREGATES,
        films={run.name: _films(run) for run in runs},
        differing=differing_settings(runs),
        missing=[*others, *_missing(runs, groups)],
        bounded=bounded,
        number=number,
    )
    path = out / PAGE
    path.write_text(page, errors="backslashreplace")
    yield from map(str, (*pictures.values(), path))


def number(value: float | None, digits: int = 1) -> str:
    """A number of a table; a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def bounded(value: tuple[float, float, float]) -> str:
    """A value with the ends of its interval."""
    middle, low, high = value
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def _draw(
    groups: Mapping[str, Sequence[ReportedRun]], comparison: Comparison | str, out: Path
) -> dict[str, Path]:
    """Draws what there is something to draw of; gives the pictures by name."""
    runs = [run for group in groups.values() for run in group]
    found: dict[str, Path] = {}

    def draw(name: str, picture: Callable[..., None], content: Any) -> None:
        found[name] = out / f"{name}.png"
        picture(content, found[name])

    if any(run.curve("evaluation/score") for run in runs):
        draw("learning_curves", figures.learning_curves, groups)
    if any(run.curve(metric) for run in runs for metric in figures.DIAGNOSTICS):
        draw("diagnostics", figures.diagnostics, groups)
    if isinstance(comparison, Comparison):
        draw("aggregates", figures.aggregates, comparison)
        draw("profiles", figures.profiles, comparison)
    return found


def _task_rows(
    groups: Mapping[str, Sequence[ReportedRun]], columns: Sequence[PublishedColumn]
) -> Iterator[TaskRow]:
    for task in sorted({run.task for runs in groups.values() for run in runs}):
        for label, group in groups.items():
            runs = [run for run in group if run.task == task]
            scores = [run.score for run in runs if run.score is not None]
            if not runs:
                continue
            random = [score for run in runs for score in run.random_scores]
            steps = sorted({run.scored_at for run in runs if run.score is not None})
            mean = statistics.fmean(scores) if scores else None
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            base = statistics.fmean(random) if random else None
            yield TaskRow(
                task=task,
                variant=label,
                seeds=len(scores),
                env_steps=" to ".join(f"{s:,}" for s in dict.fromkeys((*steps[:1], *steps[-1:]))),
                random=number(base),
                score=number(mean) + spread,
                ratio=f"{mean / base:.1f}" if mean is not None and base and base > 0 else "-",
                normalised=number(
                    normalised(task, mean) if mean is not None and suite(task) == "atari" else None,
                    digits=2,
                ),
                published=[number(column.scores.get(task)) for column in columns],
            )


def _films(run: ReportedRun) -> list[Film]:
    found = []
    for title, names in {
        "an evaluation's first episode": ("evaluation.mp4", "evaluation.gif"),
        "what the agent saw": ("agent_view.png",),
        "seen, reconstructed and imagined": ("dream.mp4", "dream.gif"),
    }.items():
        path = run.file(*names)
        if path is not None and path.stat().st_size <= LARGEST_FILM:
            found.append(Film(title, _data_uri(path), path.suffix == ".mp4"))
    return found


def _data_uri(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _missing(
    runs: Sequence[ReportedRun], groups: Mapping[str, Sequence[ReportedRun]]
) -> Iterator[str]:
    """What was not run, in plain words."""
    for run in runs:
        if not run.finished:
            yield f"{run.name}: {run.state}" + (
                f"; its score is that of its last evaluation, at {run.scored_at:,} steps"
                if run.scores
                else "; it has no score"
            )
    tasks = {run.task for run in runs}
    for label, group in groups.items():
        for task in sorted(tasks):
            seeds = len({run.seed for run in group if run.task == task})
            if not seeds:
                yield f"{label}: {task} was not run"
            elif seeds < USUAL_SEEDS:
                yield f"{label}: {task} was run with {seeds} of the paper's {USUAL_SEEDS} seeds"
    for kind, (known, called) in SUITES.items():
        unrun = sorted(set(known) - tasks)
        if unrun and kind in map(suite, tasks):
            names = ", ".join(task.removeprefix(f"{kind}/") for task in unrun)
            yield f"of the {len(known)} {called} these were not run: {names}"
    for kind, steps in PUBLISHED_STEPS.items():
        own = [run for run in runs if suite(run.task) == kind]
        if short := [run for run in own if run.scored_at < steps]:
            yield (
                f"{len(short)} of {len(own)} runs have their score after fewer than the {steps:,} "
                "steps of most published scores: the comparison shows the distance"
            )
    drawn = {run.config.env.render_profile for run in runs if suite(run.task) == "dmc"}
    profiles = sorted(drawn - {"reference", "auto"})
    if profiles:
        yield (
            f"images were rendered in the profile {' and '.join(profiles)}, published scores come "
            "from the reference"
        )
    if any(run.config.train.eval_policy != "sample" for run in runs):
        yield "some scores come from the policy's mode; published ones come from sampled actions"
    if not any(run.file("dream.mp4", "dream.gif") for run in runs):
        yield (
            "no run has a film of what its model imagines: mudreamer-fast dream RUN --out "
            "RUN/dream.mp4 makes one"
        )
    yield (
        "what a linear probe reads of the simulator's state, and the features' effective rank, "
        "take checkpoints and dm_control: python -m bench.probe"
    )
