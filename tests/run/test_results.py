from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mudreamer_fast.config import ActionChoice, Config
from mudreamer_fast.evaluate import Evaluation
from mudreamer_fast.run import pictures
from mudreamer_fast.run.folder import RunFolder
from mudreamer_fast.run.results import TrainResult, score_ratio, score_table, write_results


def result(folder: Path, evaluation: Evaluation | None) -> TrainResult:
    return TrainResult(folder, 100, 7, 12.5, [1.0, 3.0], evaluation, None)


def filmed() -> Evaluation:
    frames = [np.full((8, 8, 3), 20 * i, np.uint8) for i in range(4)]
    return Evaluation([30.0, 50.0], [9, 9], frames, facts=[{"success": 1.0}, {"success": 0.0}])


@pytest.mark.parametrize(("policy", "word"), [("sample", "sampled"), ("mode", "mode")])
def test_table_sets_the_agent_beside_the_random_policy(policy: ActionChoice, word: str) -> None:
    rows = [
        line.split() for line in score_table([30.0, 50.0, 40.0], [1.0, 3.0], policy).splitlines()
    ]
    assert rows == [
        ["mean", "std", "lowest", "highest", "episodes"],
        ["agent,", word, "40.0", "8.2", "30.0", "50.0", "3"],
        ["random", "policy", "2.0", "1.0", "1.0", "3.0", "2"],
        ["ratio", "20.00"],
    ]


@pytest.mark.parametrize("random", [[], [0.0, 0.0], [-5.0, 1.0]])
def test_ratio_to_nothing_is_left_out(random: list[float]) -> None:
    assert score_ratio([1.0], random) is None
    assert "ratio" not in score_table([1.0], random, "sample")


def test_results_hold_the_scores(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    written = write_results(result(tmp_path, filmed()), folder, Config(), print)
    assert written == [folder.result, folder.curve, folder.video, folder.strip]
    assert all(path.stat().st_size > 0 for path in written)
    assert json.loads(folder.result.read_text()) == {
        "task": "dmc/walker_walk", "env_steps": 100, "updates": 7, "seconds": 12.5,
        "eval_policy": "sample",
        "scores": [30.0, 50.0], "random_scores": [1.0, 3.0], "facts": {"success": 0.5},
    }  # fmt: skip


def test_evaluation_that_was_not_filmed_leaves_no_film(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    unseen = Evaluation([30.0, 50.0], [9, 9], [])
    written = write_results(result(tmp_path, unseen), folder, Config(), print)
    assert written == [folder.result, folder.curve]
    assert not folder.video.exists()


def test_picture_that_cannot_be_written_costs_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "plot_curve", full)
    warnings: list[str] = []
    folder = RunFolder(tmp_path)
    written = write_results(result(tmp_path, filmed()), folder, Config(), warnings.append)
    assert warnings == [f"warning: cannot write to {tmp_path}: No space left on device"]
    assert folder.result in written
    assert folder.curve not in written


def test_results_need_the_final_evaluation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without its final evaluation"):
        write_results(result(tmp_path, None), RunFolder(tmp_path), Config(), print)
