"""What environments tell of episodes, in a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mudreamer_fast.report.facts import FactRow, crafter_score, fact_rows
from mudreamer_fast.report.page import write_report
from mudreamer_fast.report.runs import read_runs
from mudreamer_fast.run.metrics import METRICS_FILE
from tests.report.folders import configuration, write_run


def test_score_is_the_papers_geometric_mean() -> None:
    none = {f"achievement_{i}": 0.0 for i in range(22)}
    assert crafter_score(none) == 0
    assert crafter_score(dict.fromkeys(none, 1.0)) == pytest.approx(100)
    half = {name: 1.0 if i < 11 else 0.0 for i, name in enumerate(none)}
    assert crafter_score({**half, "other": 5.0}) == pytest.approx(101**0.5 - 1)
    assert crafter_score({"success": 1.0}) is None


def told(folder: Path, task: str, seed: int, lines: list[dict[str, float]]) -> Path:
    write_run(folder, configuration(task, seed))
    with (folder / METRICS_FILE).open("a") as file:
        for line in lines:
            file.write(json.dumps({"env_steps": 100, "seconds": 5.0, **line}) + "\n")
    return folder


def test_rows_are_means_over_runs_of_all_training_and_of_the_last_evaluation(
    tmp_path: Path,
) -> None:
    lines = [
        {"episode/success": 1.0, "episode/score": 5.0},
        {"episode/success": 0.0},
        {"evaluation/success": 0.25},
        {"evaluation/success": 0.75},
    ]
    told(tmp_path / "a", "gym:Some-v0", 0, lines)
    told(tmp_path / "b", "gym:Some-v0", 1, [{"episode/success": 0.0}])
    told(tmp_path / "c", "dmc/cheetah_run", 0, [])
    runs, _ = read_runs([tmp_path])
    assert list(fact_rows({"mine": runs})) == [
        FactRow("gym:Some-v0", "mine", "success", training=0.25, evaluation=0.75)
    ]


def test_the_page_shows_crafters_score_and_achievements(tmp_path: Path) -> None:
    names = [f"achievement_{i}" for i in range(22)]
    line = {f"episode/{name}": 1.0 if i < 11 else 0.0 for i, name in enumerate(names)}
    run = told(tmp_path / "run", "crafter/reward", 0, [line])
    list(write_report([run], tmp_path / "report", "title"))
    page = (tmp_path / "report" / "index.html").read_text()
    assert "What the environments told" in page
    assert "achievement_21" in page
    score = f"<td>{101**0.5 - 1:.3f}</td>"
    assert score in page.split("Crafter&#39;s score, percent")[1].split("</tr>")[0]
    plain = write_run(tmp_path / "plain", configuration())
    list(write_report([plain], tmp_path / "other", "title"))
    assert "What the environments told" not in (tmp_path / "other" / "index.html").read_text()
