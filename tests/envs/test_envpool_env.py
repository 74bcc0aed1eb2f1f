from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mudreamer_fast.envs import EnvError, graphics
from mudreamer_fast.envs.vector_env import MAX_RENDER_SIZE
from tests.envs.rollouts import assert_same, make, random_actions, roll, stacked
from tests.simulators import needs

pytestmark = needs("envpool")


def raw_envpool(name: str, num_envs: int, seed: int) -> Any:
    graphics.try_to_load_egl()
    import envpool

    return envpool.make_dm(name, num_envs=num_envs, seed=seed)


@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_envpool_env_adds_the_rewards_of_repeated_steps(repeat: int) -> None:
    env = make("cartpole_balance", num_envs=3, seed=5, action_repeat=repeat, backend="envpool")
    raw = raw_envpool("CartpoleBalance-v1", 3, 5)
    actions = random_actions(env, 20)
    steps = roll(env, actions)
    raw.reset()
    for action, step in zip(actions, steps[1:], strict=True):
        by_hand = np.zeros(3, np.float32)
        for _ in range(repeat):
            shown = raw.step(action.astype(float))
            by_hand += shown.reward
        np.testing.assert_array_equal(step.reward, by_hand)
        vector = np.concatenate([shown.observation.position, shown.observation.velocity], 1)
        np.testing.assert_array_equal(step.observation["vector"], vector.astype(np.float32))


def test_envpool_env_keeps_the_last_observation_and_resets_on_the_next_step() -> None:
    env = make("cartpole_balance", num_envs=2, action_repeat=2, backend="envpool")
    actions = random_actions(env, 502)
    data = stacked(roll(env, actions))
    raw = raw_envpool("CartpoleBalance-v1", 2, 0)
    shown = [raw.reset()]
    for action in actions[:500]:
        shown += [raw.step(action.astype(float)) for _ in range(2)]
    shown.append(raw.step(actions[500].astype(float)))
    assert np.flatnonzero(data["is_last"][:, 0]).tolist() == [500]
    assert np.flatnonzero(data["is_first"][:, 0]).tolist() == [0, 501]
    assert not data["is_terminal"].any(), "a time limit is no end"
    np.testing.assert_array_equal(
        data["vector"][500, :, :3], shown[1000].observation.position.astype(np.float32)
    )
    np.testing.assert_array_equal(
        data["vector"][501, :, :3], shown[1001].observation.position.astype(np.float32)
    )
    assert (shown[1001].reward != 0).all(), "EnvPool repeats the last episode's reward"
    assert (data["reward"][501] == 0).all()
    assert (data["reward"][502] > 0).all()


def test_envpool_env_ignores_the_action_of_a_reset_step() -> None:
    rollouts = []
    for action_of_reset in (-1.0, 1.0):
        env = make("cartpole_balance", num_envs=2, action_repeat=2, backend="envpool")
        actions = random_actions(env, 503)
        actions[500] = action_of_reset
        rollouts.append(stacked(roll(env, actions)))
    assert_same(*rollouts)


def test_envpool_env_cuts_the_repeat_short_where_the_episode_ends() -> None:
    env = make("cartpole_balance", num_envs=2, action_repeat=3, backend="envpool")
    raw = raw_envpool("CartpoleBalance-v1", 2, 0)
    actions = random_actions(env, 336)
    data = stacked(roll(env, actions))
    raw.reset()
    for action in actions[:333]:
        for _ in range(3):
            raw.step(action.astype(float))
    shown = raw.step(actions[333].astype(float))
    assert (shown.step_type == 2).all()
    assert data["is_last"][334].all()
    np.testing.assert_array_equal(data["reward"][334], shown.reward)
    assert data["is_first"][335].all()
    assert (data["reward"][336] > 2).all(), "the new episode's steps are whole again"


def test_envpool_env_scales_actions_to_the_tasks_bounds() -> None:
    env = make("quadruped_walk", action_repeat=1, backend="envpool")
    raw = raw_envpool("QuadrupedWalk-v1", 1, 0)
    spec = raw.action_spec()
    assert spec.minimum[2] == -0.8, "bounds other than 1 are what this test is about"
    env.reset()
    raw.reset()
    for sign, bound in ((1, spec.maximum), (-1, spec.minimum)):
        step = env.step(np.full((1, 12), sign, np.float32))
        shown = raw.step(bound[None])
        ours, theirs = step.observation["vector"][:, :44], shown.observation.egocentric_state
        np.testing.assert_array_equal(ours, theirs.astype(np.float32))


def test_envpool_env_takes_rounding_beyond_the_bounds_for_the_bounds() -> None:
    rollouts = []
    for largest in (1, 1.00005):
        env = make("quadruped_walk", num_envs=2, backend="envpool")
        actions = np.sign(random_actions(env, 5)) * np.float32(largest)
        rollouts.append(stacked(roll(env, actions)))
    assert_same(*rollouts)


def test_envpool_env_calls_terminal_what_ends_without_a_discount(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = make("cartpole_balance", num_envs=3, action_repeat=1, backend="envpool")
    env.reset()
    pool = env._pool
    receive, names = pool._recv, pool._state_keys

    def ending() -> Any:
        state = receive()
        state[names.index("done")][:2] = True
        state[names.index("discount")][1:] = 0
        return state

    still = np.zeros((3, 1), np.float32)
    assert not env.step(still).is_terminal.any()
    monkeypatch.setattr(pool, "_recv", ending)
    step = env.step(still)
    assert step.is_last.tolist() == [True, True, False]
    assert step.is_terminal.tolist() == [False, True, False]


def test_envpool_env_steps_on_where_the_episode_goes_on() -> None:
    def play(num_envs: int, seed: int, starts_again: list[int], actions: Any) -> Any:
        env = make("cartpole_balance", num_envs, seed, action_repeat=3, backend="envpool")
        steps = roll(env, actions[:100])
        if starts_again:
            env._pool._reset(np.array(starts_again, np.int32))
            env._pool._recv()
        return stacked([*steps, *(env.step(action) for action in actions[100:])])

    actions = np.random.default_rng(0).uniform(-1, 1, (437, 2, 1)).astype(np.float32)
    data = play(2, 0, [1], actions)
    assert np.flatnonzero(data["is_last"][:, 0]).tolist() == [334]
    assert np.flatnonzero(data["is_last"][:, 1]).tolist() == [434]
    first, second = play(1, 0, [], actions[:, :1]), play(1, 1, [0], actions[:, 1:])
    assert_same({name: array[:, :1] for name, array in data.items()}, first)
    assert_same({name: array[:, 1:] for name, array in data.items()}, second)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_envpool_env_gives_the_same_on_any_number_of_threads(threads: int) -> None:
    usual = make("cheetah_run", num_envs=3, backend="envpool")
    env = make("cheetah_run", num_envs=3, simulator_threads=threads, backend="envpool")
    assert env._pool.spec.config.num_threads == threads
    actions = random_actions(env, 30)
    assert_same(stacked(roll(env, actions)), stacked(roll(usual, actions)))


def test_envpool_env_gives_images_of_the_present_state() -> None:
    env = make("pendulum_swingup", 2, observation="both", render_profile="light", backend="envpool")
    assert set(env.observation_spec) == {"image", "vector"}
    first, *rest = roll(env, np.ones((8, 2, 1), np.float32))
    for step in (first, *rest):
        assert step.observation["image"].shape == (2, 3, 64, 64)
        assert step.observation["image"].dtype == np.uint8
        assert step.observation["image"].flags.c_contiguous
    last = rest[-1].observation["image"]
    np.testing.assert_array_equal(last.transpose(0, 2, 3, 1), env.render())
    assert (last != rest[0].observation["image"]).any((1, 2, 3)).all()
    large = env.render(96, [1])
    assert large.shape == (1, 96, 96, 3)
    shrunk = large[0].reshape(32, 3, 32, 3, 3).mean((1, 3))
    seen = last[1].transpose(1, 2, 0).reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(shrunk - seen).mean() < 5, "another size, the same scene"
    np.testing.assert_array_equal(env.render(), last.transpose(0, 2, 3, 1))


def test_envpool_env_renders_for_videos_where_vectors_are_observed() -> None:
    env = make("cartpole_balance", 2, backend="envpool")
    env.reset()
    frames = env.render()
    assert frames.shape == (2, 64, 64, 3)
    assert frames.std() > 10
    for size, indices in ((0, None), (MAX_RENDER_SIZE + 1, None), (64, [2])):
        with pytest.raises(ValueError, match="must be in"):
            env.render(size, indices)


@pytest.mark.parametrize("task", ["cartpole_balance", "quadruped_walk"])
def test_envpool_env_films_with_the_camera_asked_for(task: str) -> None:
    images = {}
    for camera in (None, 0, 1, 2) if task == "quadruped_walk" else (None, 0, 1):
        env = make(task, observation="pixels", camera=camera, backend="envpool")
        images[camera] = env.reset().observation["image"]
    usual = 2 if task == "quadruped_walk" else 0
    for camera, image in images.items():
        assert (image == images[None]).all() == (camera in (None, usual)), camera


def test_envpool_env_leaves_no_files_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = make("cartpole_balance", num_envs=3, render_profile="flat", backend="envpool")
    assert list(tmp_path.iterdir()) == []
    env.reset()
    assert env.render(indices=[2]).std() > 10
    assert env.step(np.zeros((3, 1), np.float32)).reward.all()


def test_envpool_env_says_that_it_is_closed() -> None:
    env = make("cartpole_balance", backend="envpool")
    env.reset()
    env.close()
    env.close()
    for use in (env.reset, env.render, lambda: env.step(np.zeros((1, 1), np.float32))):
        with pytest.raises(EnvError, match="dmc/cartpole_balance environment is closed"):
            use()
