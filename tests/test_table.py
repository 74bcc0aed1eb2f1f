"""The table of what runs came to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.table import main


def run(folder: Path, task: str, scores: list[float], random: list[float], seed: int) -> str:
    folder.mkdir()
    result = {
        "task": task, "env_steps": 200_000, "updates": 3_100, "seconds": 630.0,
        "scores": scores, "random_scores": random,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.json").write_text(json.dumps({"train": {"seed": seed}}))
    return str(folder)


def test_table_sets_runs_beside_random_and_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path / "a", "dmc/ball_in_cup_catch", [900.0, 800.0], [100.0, 0.0], 3)
    second = run(tmp_path / "b", "dmc/ball_in_cup_catch", [450.0], [0.0, 0.0], 4)
    assert main([first, second]) == 0
    *_, one, other, _, all_runs = capsys.readouterr().out.splitlines()
    cells = "ball in cup catch | 3 | 200,000 | 3,100 | 10.5 | 50.0 | 850.0 | 17.0 | 971.8 | 87%"
    assert one == f"| {cells} |"
    assert "| 0.0 | 450.0 | - | 971.8 | 46% |" in other
    # 850 and 450 over 25, which all four random episodes come to.
    assert all_runs == "2 runs: agent 650.0 +- 282.8, 26.0 times random, at least 18.0"


def test_table_of_several_tasks_has_no_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        run(tmp_path / name, f"dmc/{name}", [3.0], [1.0], 0)
        for name in ("walker_stand", "one_of_my_own")
    ]
    assert main(runs) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("| 3.0 | 3.0 | - | - |")
    assert main([]) == 2


def test_a_folder_without_a_result_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("expected folders of finished runs: ")
    assert error.endswith(f"'{tmp_path / 'result.json'}'\n")
