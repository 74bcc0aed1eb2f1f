"""What runs came to, as a Markdown table beside published scores.

    python -m bench.table RUN...

Each RUN is a run folder that ended: its `result.json` and `config.json` are read. Published are
DreamerV3's scores from pixels at 10^6 simulator steps, computed from the score files in
danijar/dreamerv3 (`mudreamer_fast/report/published_scores.csv`): means over seeds of the last 5% of
the steps before.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mudreamer_fast.report.published import published_scores

COLUMNS = (
    "task", "seed", "env steps", "updates", "minutes", "random", "agent", "ratio", "published",
    "share",
)  # fmt: skip


def row(result: Mapping[str, Any], seed: int, theirs: float | None) -> list[str]:
    """One run's cells, in the order of `COLUMNS`."""
    agent, random = statistics.fmean(result["scores"]), statistics.fmean(result["random_scores"])
    return [
        result["task"].removeprefix("dmc/").replace("_", " "),
        str(seed),
        f"{result['env_steps']:,}",
        f"{result['updates']:,}",
        f"{result['seconds'] / 60:.1f}",
        f"{random:.1f}",
        f"{agent:.1f}",
        f"{agent / random:.1f}" if random > 0 else "-",
        "-" if theirs is None else f"{theirs:.1f}",
        "-" if theirs is None else f"{agent / theirs:.0%}",
    ]


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """Mean and standard deviation over runs of their returns and ratios, random policies pooled."""
    agents = [statistics.fmean(result["scores"]) for result in results]
    random = statistics.fmean(score for result in results for score in result["random_scores"])
    spread = statistics.stdev(agents) if len(agents) > 1 else 0.0
    line = f"{len(agents)} runs: agent {statistics.fmean(agents):.1f} +- {spread:.1f}"
    if random > 0:
        ratios = [agent / random for agent in agents]
        line += f", {statistics.fmean(ratios):.1f} times random, at least {min(ratios):.1f}"
    return line


def main(folders: Sequence[str]) -> int:
    """Prints the table, and a line on all runs where they are of one task."""
    if not folders:
        print(__doc__, file=sys.stderr)
        return 2
    known = published_scores()
    try:
        results = [json.loads((Path(folder) / "result.json").read_text()) for folder in folders]
        seeds = [
            json.loads((Path(folder) / "config.json").read_text())["train"]["seed"]
            for folder in folders
        ]
    except (OSError, ValueError) as error:
        print(f"expected folders of finished runs: {error}", file=sys.stderr)
        return 2
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [
        row(result, seed, known.get(result["task"]))
        for result, seed in zip(results, seeds, strict=True)
    ]
    for cells in lines:
        print(f"| {' | '.join(cells)} |")
    if len({result["task"] for result in results}) == 1:
        print(f"\n{summary(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
