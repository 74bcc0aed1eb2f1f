"""Scores that others have published, to stand beside one's own."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SCORES = Path(__file__).with_name("published_scores.csv")
ATARI_HUMAN = Path(__file__).with_name("atari_human.csv")
"""What a random policy and a human tester score in games of Atari 100k (Wang et al., arXiv
1511.06581, with up to 30 frames of doing nothing first)."""
FULL_SCORE = 1000.0
"""Largest return of an episode in DeepMind Control."""
AGENTS = {
    "dreamerv3": "DreamerV3",
    "drqv2": "DrQ-v2",
    "curl": "CURL",
    "sac": "SAC",
    "dreamerpro": "DreamerPro",
    "tpc": "TPC",
}
"""Names of the agents in the table. DrQ-v2, CURL and SAC have no model of the world."""
SOURCES = {
    "score files": (
        "computed from the score files in danijar/dreamerv3: mean over the last 5% of the steps "
        "before, then over seeds"
    ),
    "score files, last fifth": (
        "the same files' mean over the last fifth of the steps before, as games may be long"
    ),
    "2023 paper": "Hafner et al., arXiv 2301.04104, first version",
    "MuDreamer's code": "the author's repository of MuDreamer",
    "DreamerPro's runs": "Deng, Jang and Ahn, arXiv 2110.14565: its own runs, videos behind",
    "DreamerPro's table": "the same paper's table of others, videos behind",
}
"""What each source is."""
OVERALL = (
    "MuDreamer's scores by task are not published as numbers that could be read. Over the 20 tasks "
    "at 10^6 steps, mean and median, as a second-hand note gives them: MuDreamer 784.7 and 849.6, "
    "DreamerV3 739.6 and 808.5; with natural backgrounds, mean, MuDreamer 517.0, DreamerPro 445.2, "
    "TPC 372.8, DreamerV3 83.6."
)
UNITS = {"dmc": "return / 1000", "atari": "human-normalised score"}
"""What scores of each suite are averaged as."""


@functools.cache
def _atari_human() -> dict[str, tuple[float, float]]:
    with ATARI_HUMAN.open(newline="") as file:
        return {r["task"]: (float(r["random"]), float(r["human"])) for r in csv.DictReader(file)}


def suite(task: str) -> str:
    """The suite of a task, such as dmc."""
    return re.split("[/:]", task)[0]


def normalised(task: str, score: float) -> float | None:
    """A score in its suite's unit; None where there is none.

    DeepMind Control: by the largest return. Atari 100k: `(s - random) / (human - random)`.
    """
    if suite(task) == "dmc":
        return score / FULL_SCORE
    if task in (known := _atari_human()):
        random, human = known[task]
        return (score - random) / (human - random)
    return None


@dataclass(frozen=True)
class PublishedColumn:
    """One agent's scores at one number of steps, from one source."""

    agent: str
    source: str
    env_steps: int
    scores: dict[str, float]
    """Mean return by task."""

    @property
    def title(self) -> str:
        """How a table calls it."""
        return f"{AGENTS[self.agent]}, {self.source}, {self.env_steps:,} steps"


def published_columns(
    tasks: Iterable[str] | None = None, backgrounds: bool = False
) -> list[PublishedColumn]:
    """Published scores, a column each.

    Args:
        tasks: those wanted; columns that have none of them are left out. None takes all.
        backgrounds: scores with videos behind the robots instead of those without.
    """
    wanted = None if tasks is None else set(tasks)
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    with SCORES.open(newline="") as file:
        for row in csv.DictReader(file):
            known = (row["setting"] == "videos") == backgrounds
            if known and (wanted is None or row["task"] in wanted):
                key = row["agent"], row["source"], int(row["env_steps"])
                found.setdefault(key, {})[row["task"]] = float(row["mean"])
    return [PublishedColumn(*key, scores) for key, scores in found.items()]


def published_scores(
    agent: str = "dreamerv3", env_steps: int = 1_000_000, source: str = "score files"
) -> dict[str, float]:
    """Published mean returns by task of one agent, from one source."""
    for column in published_columns():
        if (column.agent, column.source, column.env_steps) == (agent, source, env_steps):
            return column.scores
    raise KeyError(f"no scores of {agent} at {env_steps} steps from {source}")
