from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import VectorStep, make_env
from mudreamer_fast.evaluate import VIDEO_SIZE, evaluate
from mudreamer_fast.run import scoring
from tests.tiny_env import TinyEnv


def pointer(observation: Any, is_first: Any) -> np.ndarray:
    """Always right."""
    vector: np.ndarray = observation["vector"]
    return vector.copy()


def idle(observation: Any, is_first: Any) -> np.ndarray:
    """Does nothing."""
    return np.eye(3, dtype=np.float32)[np.zeros(len(is_first), int)]


def tiny(num_envs: int, episode_length: Any = 4, **options: Any) -> TinyEnv:
    options = {"observation": "vector", "discrete": True} | options
    return TinyEnv(num_envs, episode_length=episode_length, **options)


def test_evaluate_adds_up_the_rewards_of_whole_episodes() -> None:
    right = evaluate(tiny(2), pointer, episodes=4)
    assert right.scores == [4.0] * 4
    assert right.lengths_steps == [4] * 4
    assert right.frames == []
    env = tiny(2, episode_length=100)
    chance = evaluate(env, scoring.uniform_policy(0)(env), episodes=6)
    assert np.mean(chance.scores) == pytest.approx(100 / 3, abs=6)
    assert len(set(chance.scores)) > 1


@pytest.mark.parametrize(("num_envs", "episodes"), [(3, 7), (3, 3), (3, 1), (1, 2)])
def test_evaluate_gives_each_environment_its_fixed_share(num_envs: int, episodes: int) -> None:
    lengths = [2, 9, 5][:num_envs]
    played = evaluate(tiny(num_envs, lengths), pointer, episodes)
    assert played.lengths_steps == [lengths[k % num_envs] for k in range(episodes)]
    assert played.scores == played.lengths_steps


def test_evaluate_scores_do_not_depend_on_the_other_episodes() -> None:
    def scores(num_envs: int, lengths: Any) -> list[float]:
        # always the first place: what it scores depends on the environment alone
        return evaluate(tiny(num_envs, lengths, seed=5), idle, num_envs).scores

    assert scores(2, [30, 7])[0] == scores(2, [30, 30])[0] == scores(1, 30)[0]
    assert scores(2, [30, 30]) == scores(2, [30, 30])


@pytest.mark.parametrize("num_envs", [1, 2])
def test_evaluate_films_the_first_episode_from_first_to_last_observation(num_envs: int) -> None:
    seen = []

    def watching(observation: Any, is_first: Any) -> np.ndarray:
        seen.append(observation["vector"][0].argmax())
        return pointer(observation, is_first)

    played = evaluate(tiny(num_envs, 6), watching, episodes=2, film=True)
    assert len(played.frames) == 7
    assert {frame.shape for frame in played.frames} == {(VIDEO_SIZE, VIDEO_SIZE, 3)}
    lit = [frame[0, :, 0].argmax() * 3 // VIDEO_SIZE for frame in played.frames]
    np.testing.assert_allclose(lit[:6], seen[:6], atol=0)
    assert played.seen == []  # the policy saw no image
    small = evaluate(tiny(num_envs), pointer, episodes=2, film=True, frame_size=9)
    assert [frame.shape for frame in small.frames] == [(9, 9, 3)] * 5


def test_evaluate_keeps_what_the_policy_saw_of_the_filmed_episode() -> None:
    env = tiny(2, 5, observation="pixels")
    first = env.reset().observation["image"][0].transpose(1, 2, 0)
    played = evaluate(tiny(2, 5, observation="pixels"), idle, episodes=2, film=True)
    assert len(played.seen) == len(played.frames) == 6
    np.testing.assert_array_equal(played.seen[0], first)
    assert evaluate(env, idle, episodes=2).seen == []


def test_evaluate_ends_where_it_is_interrupted() -> None:
    calls = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny(1, 100), pointer, episodes=1, interrupt=interrupt)


def test_evaluate_tells_the_policy_where_episodes_begin() -> None:
    firsts = []

    def noting(observation: Any, is_first: Any) -> np.ndarray:
        firsts.append(bool(is_first[0]))
        return pointer(observation, is_first)

    evaluate(tiny(1, 3), noting, episodes=2)
    assert len(firsts) == 7
    # the call at an episode's end counts as well: its action is ignored and resets
    assert [i for i, first in enumerate(firsts) if first] == [0, 4]


def test_evaluate_refuses_to_play_nothing() -> None:
    with pytest.raises(ValueError, match="episodes must be positive, got 0"):
        evaluate(tiny(1), pointer, episodes=0)


def test_evaluate_gives_a_simulators_policy_the_same_scores_again() -> None:
    def play() -> tuple[list[float], list[int], list[Any]]:
        env = make_env(EnvConfig(task="dmc/cartpole_balance", observation="vector"), 2, 11)
        played = evaluate(env, scoring.uniform_policy(0)(env), episodes=2, film=False)
        env.close()
        return played.scores, played.lengths_steps, played.frames

    scores, lengths, _ = play()
    assert lengths == [500, 500]
    assert all(100 < score < 900 for score in scores)
    assert play()[0] == scores


class DroppingEnv(TinyEnv):
    """Its first episode is dropped after two steps, as where a simulator is replaced."""

    steps = 0

    def step(self, action: np.ndarray) -> VectorStep:
        self.steps += 1
        if self.steps == 3:
            self._is_last[:] = True  # the next step is a first one
        return super().step(action)


def test_evaluate_counts_nothing_of_an_episode_that_was_dropped() -> None:
    env = DroppingEnv(1, "both", discrete=True, episode_length=4)
    found = evaluate(env, pointer, 2, film=True)
    assert found.lengths_steps == [4, 4]
    assert len(found.frames) == len(found.seen) == 5
    assert all(score <= 4 for score in found.scores)
