from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mudreamer_fast.report import comparison
from mudreamer_fast.report.comparison import Comparison, compare
from mudreamer_fast.report.runs import ReportedRun, read_runs, variants
from tests.report.folders import configuration, write_run

TASKS = ("dmc/cheetah_run", "dmc/walker_walk")


def runs_with(tmp_path: Path, scores: dict[str, np.ndarray]) -> dict[str, list[ReportedRun]]:
    """Runs by place of batch norm; scores are (seeds, tasks)."""
    folders = [
        write_run(
            tmp_path / f"{norm}-{task[4:]}-{seed}",
            configuration(task, seed, batch_norm=norm),
            [float(values[seed, column])],
        )
        for norm, values in scores.items()
        for seed in range(len(values))
        for column, task in enumerate(TASKS)
    ]
    groups = variants(read_runs(folders)[0])
    return {next(iter(group)).config.model.batch_norm: list(group) for group in groups.values()}


def test_aggregates_are_those_of_numpy_and_bounded(tmp_path: Path) -> None:
    pytest.importorskip("rliable")
    random = np.random.default_rng(0)
    scores = {"both": random.uniform(0, 900, (4, 2)), "none": random.uniform(0, 900, (4, 2))}
    found = compare(runs_with(tmp_path, scores))
    assert isinstance(found, Comparison)
    assert (found.tasks, found.seeds) == (list(TASKS), 4)
    for norm, values in scores.items():
        # Of eight runs the interquartile mean leaves out the two lowest and the two highest.
        expected = {
            "mean": values.mean(),
            "median": np.median(values.mean(0)),
            "interquartile mean": np.sort(values.ravel())[2:6].mean(),
        }
        for name, value in expected.items():
            middle, low, high = found.aggregates[norm][name]
            assert middle == pytest.approx(value / 1000)
            assert low < middle < high
        share, low_share, high_share = found.profiles[norm]
        assert share[0] == 1.0
        assert share[-1] == 0.0
        np.testing.assert_allclose(
            share, [(values > 1000 * level).mean() for level in found.levels]
        )
        assert np.all((low_share <= share) & (share <= high_share))
    wins = [scores["both"][:, [t]] > scores["none"][:, t] for t in range(2)]
    assert found.improvement["both", "none"][0] == pytest.approx(np.mean(wins))


def test_an_interval_covers_what_resampling_seeds_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rliable")
    monkeypatch.setattr(comparison, "REPEATS", 2_000)
    values = np.random.default_rng(1).uniform(0, 900, (5, 2))
    found = compare(runs_with(tmp_path, {"both": values}))
    assert isinstance(found, Comparison)
    random = np.random.default_rng(2)
    means = [np.mean([random.choice(values[:, task], 5) for task in range(2)]) for _ in range(4000)]
    _, low, high = found.aggregates["both"]["mean"]
    assert (low, high) == pytest.approx(np.percentile(means, (2.5, 97.5)) / 1000, rel=0.05)


def test_of_more_seeds_the_lowest_are_taken(tmp_path: Path) -> None:
    pytest.importorskip("rliable")
    scores = {"both": np.array([[100.0, 200], [300, 400], [900, 900]]), "none": np.ones((2, 2))}
    found = compare(runs_with(tmp_path, scores))
    assert isinstance(found, Comparison)
    assert found.seeds == 2
    assert found.aggregates["both"]["mean"][0] == pytest.approx(0.25)


def test_one_seed_tells_nothing_of_the_spread(tmp_path: Path) -> None:
    found = compare(runs_with(tmp_path, {"both": np.ones((2, 2)), "none": np.ones((1, 2))}))
    assert "one seed alone" in str(found)


def test_games_are_averaged_by_what_humans_score_and_apart_from_other_tasks(
    tmp_path: Path,
) -> None:
    pytest.importorskip("rliable")
    scores = {"dmc/cheetah_run": 500.0, "atari/pong": 14.6, "atari/boxing": 0.1}
    folders = [
        write_run(tmp_path / f"{seed}-{task[-6:]}", configuration(task, seed), [score])
        for seed in range(2)
        for task, score in scores.items()
    ]
    found = compare(variants(read_runs(folders)[0]))
    assert isinstance(found, Comparison)
    assert (found.tasks, found.unit) == (["atari/boxing", "atari/pong"], "human-normalised score")
    (aggregates,) = found.aggregates.values()
    assert aggregates["mean"][0] == pytest.approx(0.5)


def test_no_common_task_is_said(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a", configuration("gym:CartPole-v1", 0)),
        write_run(tmp_path / "b", configuration("gym:CartPole-v1", 1)),
    ]
    assert "No task of DeepMind Control or of" in str(compare(variants(read_runs(folders)[0])))
    assert "No task of DeepMind Control or of" in str(compare({}))


def test_without_rliable_the_way_to_it_is_said(tmp_path: Path) -> None:
    groups = runs_with(tmp_path, {"both": np.ones((2, 2))})
    with mock.patch("importlib.util.find_spec", return_value=None):
        assert "pip install 'mudreamer-fast[report]'" in str(compare(groups))
