"""Gymnasium's environments behind the protocol of `VectorEnv`."""

from __future__ import annotations

import errno
import gc
import multiprocessing.synchronize
import os
import signal
import sys
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import mudreamer_fast
from mudreamer_fast.collect import Collector, random_policy, replay_fields
from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs import EnvError, gym_env, make_env
from mudreamer_fast.envs.gym_env import GymEnv, GymProcesses
from mudreamer_fast.envs.gym_spaces import to_image
from mudreamer_fast.envs.vector_env import facts_of
from mudreamer_fast.evaluate import evaluate
from mudreamer_fast.replay import ReplayBuffer
from mudreamer_fast.run.scoring import uniform_policy
from tests.envs import gym_toy
from tests.envs.gym_toy import LENGTHS, Toy, ending, pixel, reward
from tests.envs.rollouts import assert_same, random_actions, roll, stacked
from tests.limits import few_files, open_files
from tests.simulators import needs

NAME = "gym:tests.envs.gym_toy:Toy"


def toy(num_envs: int = 1, seed: int = 0, task: str = NAME, **options: Any) -> Any:
    options = {"observation": "both", "action_repeat": 1, "backend": "sync"} | options
    return make_env(EnvConfig(task, **options), num_envs, seed)


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("gym:tests.envs.gym_toy:Toy", "sync"),
        ("gym:tests.envs.gym_toy:Toy", "async"),
        ("gym:tests.envs.gym_toy:discrete_toy", "sync"),
        pytest.param("dmc:tests.envs.dmc_toy:known", "dm_control", marks=needs("dm_control")),
    ],
)
def test_action_reward_reset_and_ending_are_aligned_from_environment_to_batch(
    kind: str, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # dm_control's processes look into the current folder last, and other packages have `tests` too
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    env = toy(2, seed=3, task=kind, backend=backend)
    fields = replay_fields(env.observation_spec, env.action_spec)
    replay = ReplayBuffer(fields, capacity_steps=100, num_streams=2, seed=0)
    taken: list[np.ndarray] = []
    collector = Collector(env, replay, random_policy(env.action_spec, 2, 7))
    collector.on_step = taken.append
    episodes = collector.collect(40)
    assert [e.length_steps for e in episodes if e.env_index == 1] == [*LENGTHS * 3, LENGTHS[0]][:9]
    assert episodes[0].score == sum(reward(3, 0, step) for step in range(1, LENGTHS[0] + 1))

    batch, seen = replay.sample(60, 9), set()
    for row in range(60):
        for t in range(9):
            seed, episode, step, *led_here = batch["vector"][row, t]
            length, for_good = ending(int(episode))
            seen.add((int(seed), int(episode), int(step)))
            assert batch["is_first"][row, t] == (step == 0 or t == 0)
            assert batch["is_terminal"][row, t] == (step == length and for_good)
            assert batch["reward"][row, t] == (reward(seed, episode, step) if step else 0)
            image = batch["image"][row, t]
            colour = pixel(int(seed), int(episode), int(step))
            assert (image == colour[:, None, None]).all()
            action = batch["action"][row, t]
            if step == 0:
                assert not action.any()
                assert led_here == [0, 0]
            elif not kind.endswith("discrete_toy"):  # bounds -2..2 and 0..10
                np.testing.assert_allclose(led_here, [2 * action[0], 5 + 5 * action[1]], atol=1e-6)
            else:
                assert led_here == [5 + action.argmax()] * 2
            if t and step:
                before = batch["vector"][row, t - 1, :3]
                assert before.tolist() == [seed, episode, step - 1]
    # of every episode under way the first and the last observation
    assert {(s, e, ending(e)[0]) for s, e, _ in seen if e < 8} <= seen
    assert {seed for seed, *_ in seen} == {3, 4}
    np.testing.assert_array_equal(taken[0], random_policy(env.action_spec, 2, 7)({}, None, 0)[0])  # type: ignore[arg-type]
    env.close()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_what_an_environment_tells_of_an_episode_comes_with_its_last_step(backend: str) -> None:
    env = toy(2, backend=backend)
    policy = random_policy(env.action_spec, 2, 0)
    step, told = env.reset(), []
    assert not step.facts
    for _ in range(sum(LENGTHS) + len(LENGTHS)):
        step = env.step(policy({}, step.is_first, None)[0])
        assert bool(step.facts) == step.is_last.any()
        assert step.facts.keys() <= {"success", "episode"}
        told += [facts_of(step.facts, i) for i in np.flatnonzero(step.is_last)]
        assert all(not facts_of(step.facts, i) for i in np.flatnonzero(~step.is_last))
    expected = [
        {"success": float(ending(episode)[1]), "episode": float(episode)}
        for episode in range(len(LENGTHS))
    ]
    assert told[: 2 * len(LENGTHS)] == [facts for facts in expected for _ in range(2)]
    env.close()


def test_an_image_that_is_not_square_shows_the_whole_of_it() -> None:
    env = toy(image_size=64, image_width=128)
    step = env.reset()
    assert env.observation_spec["image"].shape == step.observation["image"].shape[1:]
    assert step.observation["image"].shape == (1, 3, 64, 128)
    assert env.render().shape == (1, 64, 64, 3)
    halves = np.zeros((40, 30, 3), np.uint8)
    halves[:, 15:] = 200
    image = to_image(halves, (64, 96), "it")
    assert image.shape == (3, 64, 96)
    assert (image[..., :48].max(), image[..., 48:].min()) == (0, 200)


@needs("dm_control")
def test_mujoco_draws_by_the_profile_that_is_asked_for() -> None:
    seen = {}
    for profile in ("reference", "light", "flat"):
        env = toy(task="gym:HalfCheetah-v5", observation="pixels", render_profile=profile, seed=1)
        seen[profile] = env.reset().observation["image"].astype(int)
        assert env.render_profile == profile
        quality = env._vector.envs[0]._env.unwrapped.model.vis.quality
        assert (quality.offsamples == 0) == (profile != "reference")
        assert (quality.shadowsize == 0) == (profile == "flat")
        env.close()
    for profile in ("light", "flat"):
        assert 0 < np.abs(seen[profile] - seen["reference"]).mean() < 20
    env = toy(task="gym:HalfCheetah-v5", observation="vector", render_profile="auto")
    assert env.render_profile is None
    assert env._vector.envs[0]._env.unwrapped.model.vis.quality.offsamples == 0  # its videos
    env.close()
    assert toy().render_profile is None


def test_facts_reach_episodes_and_evaluations() -> None:
    env = toy(2)
    fields = replay_fields(env.observation_spec, env.action_spec)
    replay = ReplayBuffer(fields, capacity_steps=100, num_streams=2, seed=0)
    collector = Collector(env, replay, random_policy(env.action_spec, 2, 7))
    episodes = collector.collect(sum(LENGTHS[:2]) + 2)
    assert [episode.facts["episode"] for episode in episodes] == [0.0, 0.0, 1.0, 1.0]
    assert "facts" not in collector.state_dict()["step"]
    policy = uniform_policy(0)(env)
    played = evaluate(env, policy, 3)
    first = int(played.facts[0]["episode"])
    assert [facts["episode"] for facts in played.facts] == [first, first, first + 1]
    assert played.mean_facts["episode"] == pytest.approx(first + 1 / 3)


def test_a_policy_step_adds_rewards_and_stops_at_the_end() -> None:
    data = stacked(roll(env := toy(action_repeat=2, seed=1), random_actions(env, 9)))
    # episodes of 3, 5 and 2 simulator steps
    assert data["vector"][:, 0, 2].tolist() == [0, 2, 3, 0, 2, 4, 5, 0, 2, 0]
    assert np.flatnonzero(data["is_last"][:, 0]).tolist() == [2, 6, 8]
    assert np.flatnonzero(data["is_terminal"][:, 0]).tolist() == [2, 8]
    r = [[reward(1, e, s) for s in range(6)] for e in range(3)]
    expected = [0, r[0][1] + r[0][2], r[0][3], 0, r[1][1] + r[1][2], r[1][3] + r[1][4], r[1][5]]
    assert data["reward"][:7, 0].tolist() == expected
    assert env.render_profile is None


def test_environments_play_in_processes_as_they_do_in_turn() -> None:
    in_turn, apart = toy(2, seed=4), toy(2, seed=4, backend="auto")
    assert type(in_turn) is type(apart) is GymEnv
    assert len(apart._vector.processes) == 2
    actions = random_actions(in_turn, 12)
    played = roll(apart, actions)
    assert_same(stacked(roll(in_turn, actions)), stacked(played))
    np.testing.assert_array_equal(in_turn.render(64), apart.render(64))
    kept = {name: array.copy() for name, array in stacked(played[-1:]).items()}
    apart.step(actions[0])
    assert_same(kept, stacked(played[-1:]))  # they belong to the caller
    os.kill(apart._vector.processes[0].pid, signal.SIGINT)
    os.kill(apart._vector.processes[0].pid, signal.SIGTERM)
    apart.step(actions[0])  # what asks the job to stop has left it at work
    processes = apart._vector.processes
    os.kill(processes[1].pid, signal.SIGKILL)
    with pytest.raises(EnvError, match=f"^environment 1 of {NAME} failed: .* ended with code -9$"):
        apart.step(actions[0])
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(EnvError, match="is closed"):
        apart.step(actions[0])
    apart.close()


def test_what_was_being_sent_to_a_dead_process_is_not_left_to_the_garbage_collector() -> None:
    env = toy(backend="async")
    env.reset()
    env._vector.processes[0].kill()
    env._vector.processes[0].join()
    gc.collect()
    gc.disable()
    try:
        held = sum(type(one) is memoryview for one in gc.get_objects())
        with pytest.raises(EnvError, match=r"ended with code -9$"):
            env.step(np.zeros((1, 2), np.float32))
        assert sum(type(one) is memoryview for one in gc.get_objects()) == held
    finally:
        gc.enable()


def test_a_process_is_named_whose_files_closed_before_it_had_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Ending:  # between the closing of its files and its end
        def __init__(self, code: int) -> None:
            self.sentinel, self._write = os.pipe()
            self.exitcode, self._code = None, code

        def die(self) -> None:
            os.close(self._write)

        def is_alive(self) -> bool:
            return self.exitcode is None

        def join(self, timeout: float) -> None:
            self.exitcode = self._code  # type: ignore[assignment]

    monkeypatch.setattr(gym_env, "CLOSE_SECONDS", 0.0)
    processes = [Ending(3), Ending(-9)]
    vector = GymProcesses.__new__(GymProcesses)
    vector.processes, vector.parent_pipes, vector.closed = processes, [], True
    assert vector.failed() is None
    processes[1].die()
    assert vector.failed() == (1, -9)


def test_processes_end_where_one_hangs_or_does_not_begin_or_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hung = toy(task="gym:tests.envs.gym_toy:Hung", backend="async")
    ended = toy(backend="async")
    processes = hung._vector.processes + ended._vector.processes
    hung.reset()
    monkeypatch.setattr(gym_env, "ANSWER_SECONDS", 0.01)
    with pytest.raises(EnvError, match=r"^an environment of gym:.*:Hung failed: it does not ans"):
        hung.step(np.zeros((1, 2), np.float32))
    ended.close()
    assert [process.exitcode for process in processes] == [-9, 0]
    name = "gym:tests.envs.gym_toy:DiesApart"
    with pytest.raises(EnvError, match=f"^a process of {name} ended before it was ready"):
        toy(task=name, backend="async")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError("lost"), "^an environment of gym:.* failed: its process does not answer$"),
        (KeyError("two\nlines"), r"^gym:.* failed: KeyError: 'two\\nlines'$"),
    ],
)
def test_what_gymnasium_itself_raises_is_one_line(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    def fail(*arguments: Any) -> Any:
        raise raised

    env = toy()
    env.reset()
    monkeypatch.setattr(env._vector, "step", fail)
    with pytest.raises(EnvError, match=said):
        env.step(np.zeros((1, 2), np.float32))


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_exception_in_an_environment_is_one_line(
    backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    env = toy(2, task="gym:tests.envs.gym_toy:Fragile", backend=backend)
    env.reset()
    action = np.zeros((2, 2), np.float32)
    env.step(action)
    with pytest.raises(EnvError) as caught:
        env.step(action)
    assert str(caught.value) == (
        "environment 1 of gym:tests.envs.gym_toy:Fragile failed: "
        "step raised RuntimeError: the motor is hot"
    )
    assert capfd.readouterr().err == ""
    env.close()


def spoil(name: str, change: Any) -> type[Toy]:
    """A toy whose method gives something else."""

    def spoiled(self: Toy, *arguments: Any, **options: Any) -> Any:
        return change(getattr(Toy, name)(self, *arguments, **options))

    return type("Spoiled", (Toy,), {name: spoiled})


def with_state(value: Any) -> Any:
    return lambda came: ({**came[0], "state": value}, *came[1:])


def with_camera(value: Any) -> Any:
    return lambda came: ({**came[0], "camera": value}, *came[1:])


BREACHES: list[tuple[str, Any, str]] = [
    ("step", with_state(np.full(5, np.nan)), "number 0 of its observation is nan"),
    ("step", with_state(np.zeros(6)), r"its observation state must be float64 of shape \(5,\)"),
    ("step", with_state(np.array(list("abcde"))), "got <U1 of shape"),
    ("step", with_state(np.full(5, 1e39)), "number 0 of its observation is inf"),
    ("step", with_camera(np.zeros((40, 30, 3))), "camera must be uint8 .* got float64"),
    ("step", with_camera(np.zeros((30, 40, 3), np.uint8)), r"got uint8 of shape \(30, 40, 3\)"),
    ("step", lambda came: ({"camera": came[0]["camera"]}, *came[1:]), "state is missing"),
    ("step", lambda came: (came[0], np.nan, *came[2:]), "its reward is nan"),
    ("step", lambda came: (came[0], 1e39, *came[2:]), r"its reward is 1e\+39"),
    ("step", lambda came: (came[0], None, *came[2:]), "its reward must be a number, got NoneType"),
    ("step", lambda came: (*came[:2], "no", *came[3:]), "terminated must be a bool, got str 'no'"),
    ("step", lambda came: (*came[:3], None, came[4]), "truncated must be a bool, got NoneType"),
    ("step", lambda came: (*came[:3], came[4]), "step must give .* got a tuple of 4"),
    ("reset", lambda came: came[0], "reset must give .observation, info., got dict"),
    ("reset", lambda came: (came[0], None), "reset must give .*got a tuple of 2 .dict, NoneType"),
]


@pytest.mark.parametrize(("method", "change", "said"), BREACHES)
def test_a_breach_of_contract_is_one_line_that_names_the_environment(
    method: str, change: Any, said: str
) -> None:
    config = EnvConfig(observation="both", action_repeat=1)
    env = make_env(config, 1, 0, env=spoil(method, change))
    with pytest.raises(EnvError, match=rf"^environment 0 of gym:\S+ failed: .*{said}") as caught:
        roll(env, random_actions(env, 1))
    assert "\n" not in str(caught.value)


class Shown(gymnasium.Env):
    """Shows and takes what it is told to; keeps the actions."""

    def __init__(self, space: Any, value: Any = None, actions: Any = None, frame: Any = None):
        self.observation_space, self._value, self._frame = space, value, frame
        self.action_space = actions or spaces.Discrete(2)
        self.render_mode = None if frame is None else "rgb_array"
        self.taken: list[Any] = []

    def reset(self, **options: Any) -> Any:
        return self._value, {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.taken.append(action)
        return self._value, 0.0, False, False, {}

    def render(self) -> Any:
        return self._frame


def show(observation: str, *arguments: Any, **options: Any) -> Any:
    config = EnvConfig(observation=observation)  # type: ignore[arg-type]
    return make_env(config, 1, 0, env=lambda: Shown(*arguments, **options))


def byte_box(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


DRAWN = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
ONES = np.ones((4, 2), np.uint8)
AREAS = DRAWN.reshape(64, 2, 64, 3, 3).mean((1, 3)).transpose(2, 0, 1)
"""Means over 2 x 3 pixels."""


@pytest.mark.parametrize(
    ("shape", "value", "expected"),
    [
        ((128, 192, 3), DRAWN, AREAS),
        ((3, 128, 192), DRAWN.transpose(2, 0, 1), AREAS),
        ((128, 192), DRAWN[..., 0], AREAS[[0, 0, 0]]),
        ((128, 192, 1), DRAWN[..., :1], AREAS[[0, 0, 0]]),
        ((1, 128, 192), DRAWN[..., 1][None], AREAS[[1, 1, 1]]),
        ((64, 64, 3), DRAWN[:64, :64], DRAWN[:64, :64].transpose(2, 0, 1)),
        ((16, 32, 3), DRAWN[:16, :32], np.kron(DRAWN[:16, :32].transpose(2, 0, 1), ONES)),
    ],
)  # fmt: skip
def test_images_of_any_layout_and_size_come_to_the_agents(
    shape: tuple[int, ...], value: Any, expected: np.ndarray
) -> None:
    env = show("pixels", byte_box(*shape), value)
    image = env.reset().observation["image"]
    assert env.observation_spec["image"].shape == (3, 64, 64)
    assert (image.shape, image.dtype) == ((1, 3, 64, 64), np.uint8)
    assert np.abs(image[0] - expected).max() <= 1
    np.testing.assert_array_equal(env.render()[0].transpose(2, 0, 1), image[0])  # no other picture
    assert env.render(96).shape == (1, 96, 96, 3)


def test_an_environment_that_shows_no_image_is_rendered() -> None:
    numbers = spaces.Box(-1, 1, (2, 2), np.float64)
    env = show("both", numbers, np.eye(2), frame=DRAWN)
    seen = env.reset().observation
    assert np.abs(seen["image"][0] - AREAS).max() <= 1
    assert seen["vector"].tolist() == [[1, 0, 0, 1]]
    assert set(show("pixels", numbers, np.eye(2), frame=DRAWN).observation_spec) == {"image"}
    with pytest.raises(EnvError, match="its rendered picture must be uint8"):
        show("pixels", numbers, np.eye(2), frame="frame").reset()
    with pytest.raises(EnvError, match=r"must have 1 or 3 channels, got shape \(64, 64, 2\)"):
        show("pixels", numbers, np.eye(2), frame=DRAWN[:64, :64, :2]).reset()
    (unseen := show("vector", numbers, np.eye(2))).reset()
    with pytest.raises(EnvError, match="draws no pictures: make it with render_mode='rgb_array'"):
        unseen.render()


def test_a_vector_is_all_numbers_and_choices_in_order() -> None:
    space = spaces.Dict(
        {
            "a": spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2))),
            "b": spaces.Dict({"c": byte_box(7, 7, 1), "d": spaces.Box(0, 1, (), np.float64)}),
            "e": spaces.Text(5),
            "f": byte_box(20, 20),
            "g": spaces.MultiDiscrete([2, 2]),
        }
    )
    cells = np.arange(49, dtype=np.uint8).reshape(7, 7, 1)
    value = {
        "a": (2, np.array([0, 1], np.int8)), "b": {"c": cells, "d": 0.5}, "e": "word",
        "f": np.zeros((20, 20), np.uint8), "g": np.array([1, 0]),
    }  # fmt: skip
    env = show("vector", space, value)
    vector = env.reset().observation["vector"]
    assert vector.dtype == np.float32
    assert vector[0].tolist() == [0, 0, 1, 0, 1, *range(49), 0.5, 0, 1, 1, 0]
    assert env.left_out == ["its observation e (Text)"]
    for wrong in (3, -1, "x"):
        bad = {**value, "a": (wrong, value["a"][1])}  # type: ignore[index]
        with pytest.raises(EnvError, match=r"observation a\.0 must be of Discrete"):
            show("vector", space, bad).reset()
    with pytest.raises(EnvError, match=r"observation g must be of MultiDiscrete"):
        show("vector", space, {**value, "g": [[1], [1, 2]]}).reset()


def test_a_reward_may_be_an_array_of_one_number() -> None:
    rewarded = spoil("step", lambda came: (came[0], np.array([2.5]), *came[2:]))
    env = make_env(EnvConfig(observation="both", action_repeat=2), 1, 0, env=rewarded)
    assert roll(env, random_actions(env, 1))[1].reward == [5]


NUMBERS = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("observation", "arguments", "said"),
    [
        ("vector", (byte_box(64, 64, 3),), "shows no vector"),
        ("both", (byte_box(64, 64, 3),), "shows images alone"),
        ("pixels", (NUMBERS,), "shows no image and draws none: train with --env.observation vec"),
        ("pixels", (byte_box(64, 64, 12),), "shows no image and draws none"),
        ("pixels", (spaces.Dict(a=byte_box(64, 64), b=byte_box(64, 64)),), "shows 2 images"),
        ("pixels", (byte_box(84, 84, 4),), "must have 1 or 3 channels, got 4"),
        ("vector", (NUMBERS, None, spaces.Box(-np.inf, 1, (2,))), "takes actions without bounds"),
        ("vector", (NUMBERS, None, spaces.Box(0, 5, (2,), np.int64)), "takes actions of Box"),
        ("vector", (NUMBERS, None, spaces.MultiDiscrete([50, 50])), "of 2,500 combinations"),
        ("vector", (NUMBERS, None, spaces.Text(3)), "takes actions of Text"),
    ],
)
def test_what_the_agent_cannot_see_or_do_is_one_line(
    observation: str, arguments: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=f"^gym:.*{said}") as caught:
        show(observation, *arguments)
    assert "\n" not in str(caught.value)


def test_actions_reach_every_choice_and_both_bounds() -> None:
    def taken(actions: Any, agents: Any) -> list[Any]:
        env = show("vector", NUMBERS, np.zeros(2, np.float32), actions)
        env.reset()
        for action in np.array(agents, np.float32)[:, None]:
            env.step(action)
        return env._vector.envs[0]._env.taken[:: EnvConfig().action_repeat]  # type: ignore[no-any-return]

    low, high = np.array([[-1, 0.1], [5, -3]]), np.array([[1, 0.7], [6, -2]])
    box = spaces.Box(low, high, dtype=np.float64)
    scaled = taken(box, [[-1] * 4, [0] * 4, [1] * 4, [1.00001] * 4])
    np.testing.assert_allclose(scaled, [low, (low + high) / 2, high, high])
    assert taken(spaces.Discrete(3, start=-1), np.eye(3)) == [-1, 0, 1]
    pairs = taken(spaces.MultiDiscrete([2, 3]), np.eye(6))
    assert [pair.tolist() for pair in pairs] == [[i, j] for i in range(2) for j in range(3)]
    bits = taken(spaces.MultiBinary(2), np.eye(4))
    assert [pair.tolist() for pair in bits] == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_an_action_beyond_the_bounds_never_reaches_the_environment() -> None:
    env = toy()
    env.reset()
    for bad in (np.full((1, 2), 1.1, np.float32), np.zeros((1, 3), np.float32)):
        with pytest.raises(ValueError, match="actions must"):
            env.step(bad)
    assert env.step(np.zeros((1, 2), np.float32)).observation["vector"][0, 2] == 1


def test_a_name_finds_what_is_registered_or_a_function() -> None:
    env = toy(task="gym:tests.envs.gym_toy:MudreamerToy-v0")
    data = stacked(roll(env, random_actions(env, 4)))
    assert np.flatnonzero(data["is_last"][:, 0]).tolist() == [2]  # the time limit of its spec
    assert not data["is_terminal"].any()
    assert toy(task="gym:MudreamerToy-v0").action_spec.size == 2  # it is registered by now
    assert toy(task="gym:CartPole-v1", observation="vector").action_spec.size == 2


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("gym:CartPole-v9", "did you mean gym:CartPole-v1"),
        ("gym:Zzz", "named as in gym:MODULE:ID"),
        ("gym:no_such_module:X-v0", "module 'no_such_module' does not import"),
        ("gym:tests.envs.gym_toy:Zzz", "neither registers it nor has a function of this name"),
        ("gym:tests.envs.gym_toy:LENGTHS", "has no function 'LENGTHS'"),
        ("gym:tests.envs.gym_toy:no_environment", "must make a gymnasium.Env, got int"),
        ("gym:tests.envs.gym_toy:pixel", "cannot be made: TypeError"),
        ("gym:tests.envs.gym_toy:<lambda>", "go on in Python, with env="),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(task: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        toy(task=task)
    assert "\n" not in str(caught.value)


def test_a_module_is_searched_in_the_current_folder_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    source = "from tests.envs.gym_toy import Toy"
    for name in ("module_here.py", "textwrap.py"):  # the second is one of Python's as well
        (tmp_path / name).write_text(source)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert toy(task="gym:module_here:Toy").num_envs == 1
    with pytest.raises(ConfigError, match="neither registers it nor has a function"):
        toy(task="gym:textwrap:Toy")


def test_gymnasium_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r"pip install 'mudreamer-fast\[gym\]'$"):
        toy()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "gym:CartPole-v1", "backend": "envpool"}, "must be auto, sync or async"),
        ({"task": "gym:CartPole-v1", "camera": 1}, "has no cameras to choose from"),
        ({"task": "dmc:os:fspath", "backend": "envpool"}, "must be auto or dm_control"),
        ({"backend": "async"}, "must be auto, envpool or dm_control"),
        ({"task": "gym:"}, "task must read"),
        ({"task": "dmc:module"}, "task must read"),
    ],
)
def test_settings_of_another_simulator_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_env(EnvConfig(**options), 1, 0)


def test_a_function_is_named_so_that_others_find_it_or_know_that_they_cannot() -> None:
    config = EnvConfig(observation="vector", camera=1, backend="envpool")
    env = mudreamer_fast.make_env(config, 1, 0, env=gym_toy.discrete_toy)  # type: ignore[operator]
    assert env._name == "gym:tests.envs.gym_toy:discrete_toy"
    assert env.action_spec.size == 3
    hidden = make_env(config, 1, 0, env=lambda: Toy(discrete=True))
    assert isinstance(hidden, GymEnv)
    assert hidden._name.startswith("gym:tests.envs.test_gym_env:<")
    assert hidden.action_spec.size == 3
    with pytest.raises(ConfigError, match=r"env must be a function .* got int"):
        make_env(config, 1, 0, env=3)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="has no attribute 'make_envs'"):
        mudreamer_fast.make_envs  # noqa: B018


def test_processes_that_are_refused_files_are_one_line_and_leave_none_open() -> None:
    resource_tracker.ensure_running()  # it stays open for the processes of all tests
    before = open_files()
    for spare in (0, 30):
        with few_files(spare), pytest.raises(EnvError, match="Too many open files") as caught:
            toy(20, backend="async")
        assert str(caught.value) == (
            f"the processes of {NAME} are refused: Too many open files; "
            "--env.backend sync does without them"
        )
        assert len(open_files() - before) < 8, "what one process was being given, no more"
        del caught
        gc.collect()
        assert open_files() == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOENT, errno.EACCES])
def test_shared_memory_that_is_full_missing_or_closed_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused:
        SEM_VALUE_MAX = 1

        def __init__(self, *arguments: Any) -> None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", Refused)  # type: ignore[attr-defined]
    with pytest.raises(EnvError) as caught:
        toy(2, backend="async")
    assert str(caught.value) == (
        f"the processes of {NAME} are refused: {os.strerror(number)} in /dev/shm; "
        "--env.backend sync does without them"
    )


def test_what_a_function_says_of_settings_is_kept() -> None:
    def refuse() -> Any:
        raise ConfigError("no map of this name")

    with pytest.raises(ConfigError, match=r"^no map of this name$"):
        make_env(EnvConfig(), 1, 0, env=refuse)
