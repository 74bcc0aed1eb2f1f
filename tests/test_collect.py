from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mudreamer_fast.collect import Collector, random_policy, replay_fields
from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import ActionSpec, VectorStep, make_env
from mudreamer_fast.replay import ReplayBuffer
from tests.tiny_env import TinyEnv

LENGTHS = (3, 5, 1)


class Recorder:
    """Stands in for the replay: keeps what it is given."""

    def __init__(self) -> None:
        self.steps: list[dict[str, np.ndarray]] = []

    def add(self, step: dict[str, np.ndarray]) -> None:
        self.steps.append({name: np.array(array) for name, array in step.items()})

    def stacked(self) -> dict[str, np.ndarray]:
        return {name: np.stack([step[name] for step in self.steps]) for name in self.steps[0]}


def tiny(**options: Any) -> TinyEnv:
    return TinyEnv(**({"num_envs": 3, "observation": "both", "episode_length": LENGTHS} | options))


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("terminal", [False, True])
def test_collector_stores_every_step_with_the_action_that_led_to_it(
    discrete: bool, terminal: bool
) -> None:
    options = {"discrete": discrete, "terminal": terminal, "seed": 3}
    env, recorder = tiny(**options), Recorder()
    collector = Collector(env, recorder, random_policy(env.action_spec, 3, 7))  # type: ignore[arg-type]
    for steps in (1, 4, 7):
        collector.collect(steps)
    data = recorder.stacked()
    assert set(data) == set(replay_fields(env.observation_spec, env.action_spec))

    twin, policy = tiny(**options), random_policy(env.action_spec, 3, 7)
    step, action = twin.reset(), np.zeros((3, env.action_spec.size), np.float32)
    for t in range(13):
        for name in ("image", "vector"):
            np.testing.assert_array_equal(data[name][t], step.observation[name])
        for name in ("reward", "is_first", "is_terminal"):
            np.testing.assert_array_equal(data[name][t], getattr(step, name))
        np.testing.assert_array_equal(data["action"][t][~step.is_first], action[~step.is_first])
        assert (data["action"][t][step.is_first] == 0).all()
        assert (data["reward"][t][step.is_first] == 0).all()
        action, _ = policy(step.observation, step.is_first, None)
        step = twin.step(action)
    # lengths 3, 5 and 1: the first observation, the steps, and the next first one
    assert np.flatnonzero(data["is_first"][:, 0]).tolist() == [0, 4, 8, 12]
    assert np.flatnonzero(data["is_first"][:, 1]).tolist() == [0, 6, 12]
    assert np.flatnonzero(data["is_first"][:, 2]).tolist() == [0, 2, 4, 6, 8, 10, 12]
    ends = np.flatnonzero(data["is_terminal"][:, 1]).tolist()
    assert ends == ([5, 11] if terminal else [])


def test_collector_returns_the_episodes_that_ended() -> None:
    env, recorder = tiny(), Recorder()
    collector = Collector(env, recorder, random_policy(env.action_spec, 3, 7))  # type: ignore[arg-type]
    episodes = collector.collect(2) + collector.collect(1) + collector.collect(3)
    data = recorder.stacked()
    assert [(e.env_index, e.length_steps) for e in episodes] == [
        (2, 1), (0, 3), (2, 1), (1, 5), (2, 1),
    ]  # fmt: skip
    assert episodes[1].score == pytest.approx(data["reward"][1:4, 0].sum())
    assert episodes[3].score == pytest.approx(data["reward"][1:6, 1].sum())
    assert episodes[4].score == pytest.approx(data["reward"][5, 2])
    assert episodes[1].score > 0


class Failing(TinyEnv):
    """Environment 1 drops its episode at the third step and starts another."""

    steps = 0

    def step(self, action: np.ndarray[Any, Any]) -> VectorStep:
        self.steps += 1
        self._is_last[1] |= self.steps == 3
        return super().step(action)


def test_collector_leaves_no_trace_of_an_episode_that_was_dropped_but_its_steps() -> None:
    env, recorder = Failing(3, "both", episode_length=(9, 4, 9)), Recorder()
    told = []

    def policy(observation: Any, is_first: Any, state: Any) -> tuple[np.ndarray, Any]:
        told.append(is_first[1])
        return np.zeros((3, 2), np.float32), state

    episodes = Collector(env, recorder, policy).collect(8)  # type: ignore[arg-type]
    data = recorder.stacked()
    assert np.flatnonzero(data["is_first"][:, 1]).tolist() == [0, 3, 8]
    assert np.flatnonzero(told).tolist() == [0, 3]
    assert not data["is_terminal"].any()
    assert (data["reward"][3, 1], data["action"][3, 1].any()) == (0, False)
    assert data["reward"][1:3, 1].any(), "something that could be counted by mistake"
    assert [(e.env_index, e.length_steps) for e in episodes] == [(1, 4)]
    assert episodes[0].score == pytest.approx(data["reward"][4:8, 1].sum())


def test_collector_hands_the_policy_its_state_and_what_it_sees() -> None:
    env, recorder = tiny(), Recorder()
    seen: list[tuple[Any, Any, int]] = []

    def policy(observation: Any, is_first: Any, state: int) -> tuple[np.ndarray, int]:
        seen.append((observation["vector"], is_first, state))
        return np.full((3, 2), state / 100, np.float32), state + 1

    collector = Collector(env, recorder, policy, initial_state=5)  # type: ignore[arg-type]
    collector.collect(4)
    collector.collect(2)
    data = recorder.stacked()
    assert [state for *_, state in seen] == [5, 6, 7, 8, 9, 10]
    for t, (vector, is_first, state) in enumerate(seen):
        np.testing.assert_array_equal(vector, data["vector"][t])
        np.testing.assert_array_equal(is_first, data["is_first"][t])
        going_on = ~data["is_first"][t + 1]
        assert (data["action"][t + 1][going_on] == np.float32(state / 100)).all()


def test_a_policy_that_takes_over_is_told_that_episodes_begin_there() -> None:
    env, recorder = tiny(episode_length=(9, 9, 9)), Recorder()
    told: list[tuple[list[bool], int]] = []

    def policy(observation: Any, is_first: Any, state: int) -> tuple[np.ndarray, int]:
        told.append((is_first.tolist(), state))
        return np.zeros((env.num_envs, env.action_spec.size), np.float32), state + 1

    at_random = random_policy(env.action_spec, env.num_envs, 7)
    collector = Collector(env, recorder, at_random)  # type: ignore[arg-type]
    collector.collect(2)
    collector.hand_over(policy, 5)
    collector.collect(2)
    assert told == [([True] * env.num_envs, 5), ([False] * env.num_envs, 6)]
    assert not recorder.steps[-2]["is_first"].any()  # the replay is told what is true


def test_collector_fills_a_replay_with_consecutive_steps() -> None:
    env = tiny(discrete=True, observation="vector")
    fields = replay_fields(env.observation_spec, env.action_spec)
    replay = ReplayBuffer(fields, capacity_steps=90, num_streams=3, seed=0)
    collector = Collector(env, replay, random_policy(env.action_spec, 3, 7))
    collector.collect(50)  # wraps around the capacity of 30 steps a stream
    assert len(replay) == 90
    batch = replay.sample(40, 7)
    assert (batch["vector"].sum(-1) == 1).all()
    followed = ~batch["is_first"][:, 1:]
    # the reward says whether the action pointed to where the light was the step before
    hits = (batch["action"][:, 1:] * batch["vector"][:, :-1]).sum(-1)
    np.testing.assert_array_equal(batch["reward"][:, 1:][followed], hits[followed])
    assert (batch["action"][:, 1:][~followed] == 0).all()
    assert followed.any()
    assert not followed.all()


def test_collector_fills_a_replay_from_a_simulator() -> None:
    env = make_env(EnvConfig(task="dmc/cartpole_balance", observation="vector"), 2, 0)
    fields = replay_fields(env.observation_spec, env.action_spec)
    replay = ReplayBuffer(fields, capacity_steps=2_000, num_streams=2, seed=0)
    collector = Collector(env, replay, random_policy(env.action_spec, 2, 0))
    episodes = collector.collect(505)
    assert [(e.env_index, e.length_steps) for e in episodes] == [(0, 500), (1, 500)]
    assert all(100 < e.score < 900 for e in episodes)
    assert len(replay) == 2 * 506


SPECS = [ActionSpec(3, continuous=True), ActionSpec(3, continuous=False)]


@pytest.mark.parametrize("spec", SPECS)
def test_random_policy_leaves_its_actions_to_the_caller(spec: ActionSpec) -> None:
    policy, twin = random_policy(spec, 5, 0), random_policy(spec, 5, 0)
    for _ in range(3):
        action, _ = policy({}, np.zeros(5, bool), None)
        np.testing.assert_array_equal(action, twin({}, np.zeros(5, bool), None)[0])
        action[:] = 7


@pytest.mark.parametrize("spec", SPECS)
def test_random_policy_draws_every_action_alike(spec: ActionSpec) -> None:
    def draw(seed: int) -> np.ndarray:
        policy = random_policy(spec, 5, seed)
        return np.stack([policy({}, np.zeros(5, bool), None)[0] for _ in range(400)])

    actions = draw(0)
    assert actions.shape == (400, 5, 3)
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions, draw(0))
    assert (actions != draw(1)).any()
    if spec.continuous:
        assert -1 <= actions.min() < -0.99 < 0.99 < actions.max() <= 1
        assert abs(actions.mean()) < 0.03
    else:
        assert (actions.sum(-1) == 1).all()
        np.testing.assert_allclose(actions.mean((0, 1)), 1 / 3, atol=0.05)


def test_what_an_environment_refuses_of_finite_actions_is_its_own_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(action: Any) -> Any:
        raise ValueError("not today")

    env = tiny()
    monkeypatch.setattr(env, "step", refuse)
    collector = Collector(env, Recorder(), random_policy(env.action_spec, 3, 0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^not today$"):
        collector.collect(2)
