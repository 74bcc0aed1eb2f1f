"""Run folders as a report sees them: whatever is there of each, and what it is called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.run.folder import (
    IMMATERIAL,
    RunFolder,
    read_config,
    read_result,
    settings_of,
)
from mudreamer_fast.run.metrics import METRICS_FILE, is_number, read_lines

USUAL, ALL = "baseline", "all runs"
"""What the variant of most runs is called, and the only one."""


@dataclass(frozen=True)
class ReportedRun:
    """One run, as far as it came."""

    name: str
    """What it is called; no other run of the report is."""
    root: Path
    config: Config
    rows: Sequence[Mapping[str, Any]]
    """Lines of its metrics."""
    result: Mapping[str, Any]
    """Its final scores; empty where it did not come to its end."""
    made_with: Mapping[str, Any]

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.config.env.task

    @property
    def seed(self) -> int:
        """Seed of everything drawn."""
        return self.config.train.seed

    @property
    def finished(self) -> bool:
        """Whether its final evaluation is there."""
        return bool(_numbers(self.result.get("scores")))

    @property
    def scores(self) -> list[float]:
        """Returns of its last evaluation; none where there was none."""
        return _numbers(self.result.get("scores")) or _numbers(self._last("evaluation/scores"))

    @property
    def random_scores(self) -> list[float]:
        """Returns of the random policy on the same episodes."""
        found = _numbers(self.result.get("random_scores"))
        return found or _numbers(self._last("random/scores"))

    @property
    def score(self) -> float | None:
        """Mean return of its last evaluation."""
        return sum(self.scores) / len(self.scores) if self.scores else None

    @property
    def env_steps(self) -> int:
        """Simulator steps taken."""
        return int(self._count("env_steps", "env_steps"))

    @property
    def scored_at(self) -> int:
        """Simulator steps taken before its last evaluation."""
        if self.finished:
            return self.env_steps
        return next((step for step, _ in reversed(self.curve("evaluation/score"))), 0)

    @property
    def updates(self) -> int:
        """Gradient updates done."""
        return int(self._count("updates", "run/updates"))

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self._count("seconds", "seconds")

    @property
    def device(self) -> str:
        """What it was computed on."""
        return str(self.made_with.get("device", "not recorded"))

    @property
    def state(self) -> str:
        """How far it came, in words."""
        if self.finished:
            return "finished"
        wanted = f"of {self.config.train.env_steps:,} steps"
        if not self.rows:
            return f"not begun: no line of metrics, 0 {wanted}"
        return f"not finished: {self.env_steps:,} {wanted}"

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """A metric over environment steps."""
        return [(row["env_steps"], row[metric]) for row in self.rows if is_number(row.get(metric))]

    def rate(self, metric: str) -> float | None:
        """Median of a metric; None where it was not logged."""
        values = sorted(value for _, value in self.curve(metric))
        return values[len(values) // 2] if values else None

    def file(self, *names: str) -> Path | None:
        """The first of these files that the folder has."""
        paths = (self.root / name for name in names)
        return next((path for path in paths if path.is_file()), None)

    def _count(self, name: str, metric: str) -> float:
        """Of the result or, without one, of the last line of metrics that has it."""
        for value in (self.result.get(name), self._last(metric)):
            if value is not None and is_number(value):
                return float(value)
        return 0.0

    def _last(self, metric: str) -> Any:
        found = (row[metric] for row in reversed(self.rows) if row.get(metric) is not None)
        return next(found, None)


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, list):
        return []
    return [float(value) for value in values if is_number(value)]


def find_folders(places: Sequence[Path]) -> list[Path]:
    """The run folders among places and below them, each once, in order.

    A place without a `config.json` stands for the folders below it that have one, or for itself
    where none has.
    """
    found: dict[Path, None] = {}
    for place in places:
        inside = list(_below(place)) or [place]
        found |= {Path(os.path.realpath(path)): None for path in inside}
    return list(found)


def _below(place: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(place):
        folders.sort()
        if RunFolder(Path(root)).config.name in files:
            folders.clear()  # its checkpoints are no runs
            yield Path(root)


def read_runs(places: Sequence[Path]) -> tuple[list[ReportedRun], list[str]]:
    """Reads runs, finished or not.

    Args:
        places: run folders, or folders of run folders.

    Returns:
        The runs, and a sentence on each folder that is none.
    """
    runs, others = [], []
    folders = find_folders(places)
    for root, name in zip(folders, names_of(folders), strict=True):
        folder = RunFolder(root)
        try:
            if not root.is_dir():
                raise ConfigError(f"{root} is not a folder")
            config = read_config(folder.config)
            rows = list(read_lines(root / METRICS_FILE))
            runs.append(
                ReportedRun(
                    name,
                    root,
                    config,
                    rows,
                    read_result(folder.result),
                    read_result(folder.made_with),
                )
            )
        except (ConfigError, OSError) as error:
            others.append(str(error))
    return runs, others


def names_of(folders: Sequence[Path]) -> list[str]:
    """The ends of paths, no longer than it takes to tell them apart."""
    parts = 1

    def ends(length: int) -> list[str]:
        texts = ("/".join(path.parts[-length:]).lstrip("/") for path in folders)
        return [os.fsencode(text).decode(errors="replace") for text in texts]

    longest = max((len(path.parts) for path in folders), default=1)
    while parts < longest and len(set(ends(parts))) < len(folders):
        parts += 1
    return ends(parts)


def differing_settings(runs: Sequence[ReportedRun]) -> dict[str, list[Any]]:
    """Settings in which runs differ, with each run's value."""
    settings = [settings_of(run.config) for run in runs]
    names = list(settings[0]) if settings else []
    values = {name: [one[name] for one in settings] for name in names}
    return {name: each for name, each in values.items() if len(set(map(repr, each))) > 1}


def variants(runs: Sequence[ReportedRun]) -> dict[str, list[ReportedRun]]:
    """Runs that differ in task and seed alone, together, by what sets them apart.

    A variant is called by the folder that holds its runs and no others, as a sweep has one for
    each, or else by its settings that are not those of most runs. A setting that has one value for
    each task, such as an action repeat, sets no runs apart.
    """
    own = {*IMMATERIAL, "env.task", "train.seed"}
    apart: dict[str, Any] = {}
    for name, values in differing_settings(runs).items():
        by_task: dict[str, set[str]] = {}
        for run, value in zip(runs, values, strict=True):
            by_task.setdefault(run.task, set()).add(repr(value))
        if name not in own and any(len(each) > 1 for each in by_task.values()):
            apart[name] = Counter(map(repr, values)).most_common(1)[0][0]
    found: dict[str, list[ReportedRun]] = {}
    for run in runs:
        settings = settings_of(run.config)
        unusual = (name for name, usual in apart.items() if repr(settings[name]) != usual)
        label = ", ".join(f"{name} {settings[name]}" for name in unusual)
        found.setdefault(label or (USUAL if apart else ALL), []).append(run)
    folders = [{run.root.parent.name for run in group} for group in found.values()]
    names = [name for group in folders for name in group]
    if len(set(names)) == len(names) == len(found) > 1:
        found = dict(zip(names, found.values(), strict=True))
    return {
        label: sorted(group, key=lambda run: (run.task, run.seed)) for label, group in found.items()
    }
