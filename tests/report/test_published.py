from __future__ import annotations

import numpy as np
import pytest

from mudreamer_fast.envs.tasks import GAMES_OF_ATARI_100K
from mudreamer_fast.report.published import (
    AGENTS,
    SOURCES,
    normalised,
    published_columns,
    published_scores,
)


def test_published_scores_are_those_of_all_tasks() -> None:
    scores = published_scores()
    assert len(scores) == 20
    assert scores["dmc/ball_in_cup_catch"] == 971.8
    assert published_scores(env_steps=500_000)["dmc/ball_in_cup_catch"] == 967.5
    assert published_scores("sac") != scores


@pytest.mark.parametrize(
    ("agent", "env_steps", "source", "mean"),
    [
        ("dreamerv3", 1_000_000, "score files", 785.6),
        ("dreamerv3", 500_000, "score files", 667.1),
        ("dreamerv3", 1_000_000, "2023 paper", 739.6),
        ("dreamerv3", 1_000_000, "MuDreamer's code", 756.8),
        ("drqv2", 1_000_000, "score files", 704.9),
        ("curl", 1_000_000, "score files", 524.4),
    ],
)
def test_their_means_are_the_published_ones(agent, env_steps, source, mean) -> None:
    scores = published_scores(agent, env_steps, source)
    assert len(scores) == 20
    assert np.mean(list(scores.values())) == pytest.approx(mean, abs=0.06)


def test_dreamerv3s_games_average_to_what_its_paper_says() -> None:
    scores = published_scores(env_steps=400_000, source="score files, last fifth")
    assert set(scores) == set(GAMES_OF_ATARI_100K)
    found = [normalised(task, score) for task, score in scores.items()]
    # Its paper, with another average over the last steps: 1.12 and 0.49.
    assert np.mean(found) == pytest.approx(1.12, abs=0.04)  # type: ignore[arg-type]
    assert np.median(found) == pytest.approx(0.49, abs=0.01)  # type: ignore[arg-type]


def test_scores_are_normalised_by_their_suite() -> None:
    assert normalised("dmc/walker_walk", 250.0) == 0.25
    assert normalised("dmc:mine:task", 250.0) == 0.25
    assert normalised("atari/pong", -20.7) == 0.0
    assert normalised("atari/pong", 14.6) == 1.0
    assert normalised("atari/tetris", 1.0) is None  # no game of Atari 100k
    assert normalised("gym:CartPole-v1", 250.0) is None


def test_scores_with_videos_behind_are_kept_apart() -> None:
    columns = {column.agent: column.scores for column in published_columns(backgrounds=True)}
    assert {agent: len(scores) for agent, scores in columns.items()} == {"dreamerpro": 6, "tpc": 6}
    assert np.mean(list(columns["dreamerpro"].values())) == pytest.approx(558.2, abs=0.06)
    assert np.mean(list(columns["tpc"].values())) == pytest.approx(461.4, abs=0.3)


def test_every_column_has_a_name_and_a_source_and_scores_of_the_tasks_asked_for() -> None:
    columns = published_columns(["dmc/walker_walk", "gym:CartPole-v1"])
    assert len(columns) == 10
    for column in columns:
        assert list(column.scores) == ["dmc/walker_walk"]
        assert column.agent in AGENTS
        assert column.source in SOURCES
    assert published_columns(["gym:CartPole-v1"]) == []
    with pytest.raises(KeyError, match="no scores of ppo"):
        published_scores("ppo")
