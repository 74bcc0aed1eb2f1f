"""What `VectorEnv` promises, of both simulators."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs import VectorEnv, make_env
from mudreamer_fast.envs.dmc_env import DmcEnv
from mudreamer_fast.envs.envpool_env import EnvPoolEnv
from mudreamer_fast.envs.vector_env import MAX_SEED
from tests.envs.rollouts import assert_same, make, random_actions, roll, stacked
from tests.simulators import EACH

BACKENDS = {"envpool": EnvPoolEnv, "dm_control": DmcEnv}

pytestmark = pytest.mark.parametrize("backend", EACH)


@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_a_policy_step_is_its_simulator_steps_with_rewards_added(backend: str, repeat: int) -> None:
    env, single = (
        make("walker_stand", 2, seed=5, action_repeat=count, backend=backend)
        for count in (repeat, 1)
    )
    actions = random_actions(env, 8)
    by_hand = roll(single, np.repeat(actions, repeat, 0))[1:]
    for number, step in enumerate(roll(env, actions)[1:]):
        parts = by_hand[number * repeat : (number + 1) * repeat]
        rewards = np.sum([part.reward for part in parts], 0)
        np.testing.assert_allclose(step.reward, rewards, rtol=1e-6)
        assert (rewards > 0).all()
        np.testing.assert_array_equal(
            step.observation["vector"], parts[-1].observation["vector"]
        )  # fmt: skip
    env.close()
    single.close()


def test_an_episode_ends_with_its_own_last_observation_and_reward(backend: str) -> None:
    env = make("cartpole_balance", 2, seed=1, action_repeat=3, backend=backend)
    longer = make("cartpole_balance", 2, seed=1, action_repeat=1, backend=backend)
    actions = random_actions(env, 336)
    data = stacked(roll(env, actions))
    one_by_one = stacked(roll(longer, np.repeat(actions[:334], 3, 0)[:1001]))
    assert np.flatnonzero(data["is_last"][:, 0]).tolist() == [334]
    assert np.flatnonzero(data["is_first"][:, 1]).tolist() == [0, 335]
    assert not data["is_terminal"].any(), "a time limit is no end"
    # 1000 = 333 * 3 + 1: what is left of the action repeat falls to nobody
    np.testing.assert_array_equal(data["vector"][334], one_by_one["vector"][1000])
    np.testing.assert_array_equal(data["reward"][334], one_by_one["reward"][1000])
    np.testing.assert_array_equal(data["vector"][335], one_by_one["vector"][1001])
    assert (data["reward"][[0, 335]] == 0).all()
    assert (data["reward"][336] > 2).all(), "the new episode's steps are whole"
    env.close()
    longer.close()


def test_environment_i_of_a_seed_is_the_first_of_the_seed_plus_i(backend: str) -> None:
    def play(num_envs: int, seed: int, actions: np.ndarray) -> dict[str, np.ndarray]:
        env = make("reacher_easy", num_envs, seed, backend=backend)
        data = stacked(roll(env, actions))
        env.close()
        return data

    actions = np.random.default_rng(0).uniform(-1, 1, (12, 3, 2)).astype(np.float32)
    together = play(3, 4, actions)
    assert_same(together, play(3, 4, actions))
    for i in range(3):
        alone = play(1, 4 + i, actions[:, i : i + 1])
        assert_same({name: array[:, i : i + 1] for name, array in together.items()}, alone)
    assert (together["vector"][0, 0] != together["vector"][0, 1]).any()


@pytest.fixture(name="env")
def _env(backend: str) -> Any:
    env = make("cartpole_balance", 2, observation="both", render_profile="flat", backend=backend)
    yield env
    env.close()


def test_nothing_wrong_reaches_the_simulator(backend: str, env: VectorEnv) -> None:
    untouched = make(
        "cartpole_balance", 2, observation="both", render_profile="flat", backend=backend
    )
    actions = random_actions(env, 3)
    env.reset()
    good = actions[0]
    beyond, not_a_number = np.full_like(good, 1.1), np.full_like(good, np.nan)
    for bad in (
        good[:1], np.repeat(good, 2, 0), np.repeat(good, 2, 1), good[:, 0], good.astype(float),
        good.tolist(), None, beyond, -beyond, not_a_number, np.full_like(good, -np.inf),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="actions must"):
            env.step(bad)  # type: ignore[arg-type]
    for size, indices in ((0, None), (-1, None), (481, None), (10**9, None), (64, [2]), (64, [-1])):
        with pytest.raises(ValueError, match="must be in"):
            env.render(size, indices)
    untouched.reset()
    assert_same(
        stacked([env.step(action) for action in actions]),
        stacked([untouched.step(action) for action in actions]),
    )
    untouched.close()


def test_seeds_cameras_and_tasks_that_do_not_exist_are_refused(backend: str) -> None:
    config = EnvConfig("dmc/cartpole_balance", "vector", backend=backend)  # type: ignore[arg-type]
    for num_envs, seed in ((1, -1), (2, MAX_SEED - 1), (0, 0), (-1, 0)):
        with pytest.raises(ValueError, match=r"(seed|num_envs) must be"):
            BACKENDS[backend](config, num_envs, seed)
    begun = []
    for seed in (MAX_SEED - 1, MAX_SEED - 1, 0):
        env = BACKENDS[backend](config, 1, seed)
        begun.append(env.reset().observation["vector"])
        env.close()
    np.testing.assert_array_equal(begun[0], begun[1])
    assert (begun[0] != begun[2]).any()
    for task, camera, words in (
        ("dmc/cartpole_balance", 2, "camera"),
        ("dmc/cartpole_balance", -1, "camera"),
        ("dmc/cartpole_fly", None, "there is no task"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_env(EnvConfig(task, camera=camera, backend=backend), 1, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["99", "-1", "first"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_drawn(
    backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mudreamer_fast.envs import graphics

    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", device)
    graphics.renderer_name.cache_clear()
    with pytest.raises(ConfigError, match=f"MUJOCO_EGL_DEVICE_ID must be.*got '{device}'"):
        make("cartpole_balance", observation="pixels", backend=backend)
    graphics.renderer_name.cache_clear()


def test_images_are_of_the_present_state_and_the_camera_asked_for(backend: str) -> None:
    seen = {}
    for camera in (None, 0, 1):
        env = make(
            "pendulum_swingup", 2, 3, observation="pixels", camera=camera, render_profile="flat",
            backend=backend,
        )  # fmt: skip
        first, *_, last = roll(env, np.ones((8, 2, 1), np.float32))
        for step in (first, last):
            image = step.observation["image"]
            assert image.shape == (2, 3, 64, 64)
            assert image.dtype == np.uint8
            assert image.flags.c_contiguous
        assert (first.observation["image"] != image).any((1, 2, 3)).all()
        np.testing.assert_array_equal(env.render(), image.transpose(0, 2, 3, 1))
        assert env.render(96, [1, 0, 1]).shape == (3, 96, 96, 3)
        np.testing.assert_array_equal(env.render(indices=[1])[0], image[1].transpose(1, 2, 0))
        seen[camera] = image
        env.close()
    np.testing.assert_array_equal(seen[None], seen[0])
    assert (seen[0] != seen[1]).any()


def test_steps_belong_to_the_caller(env: VectorEnv) -> None:
    steps = roll(env, random_actions(env, 1))
    before = {name: array.copy() for name, array in stacked(steps).items()}
    for array in (*steps[-1].observation.values(), steps[-1].is_last):
        array[...] = 1
    following = env.step(random_actions(env, 1, seed=1)[0])
    assert not following.is_first.any(), "what is done to a step changes nothing"
    assert_same(
        {name: array[:1] for name, array in before.items()}, stacked(steps[:1])
    )  # fmt: skip


def test_auto_takes_envpool_where_it_imports_and_dm_control_otherwise(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "dm_control":
        monkeypatch.setitem(sys.modules, "envpool", None)
    env = make("cartpole_balance", backend="auto")
    assert type(env) is BACKENDS[backend]
    env.close()


def test_a_missing_simulator_is_named_with_what_to_install(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lack = {"envpool": "EnvPool does not import", "dm_control": "dm_control is not installed"}
    for name in BACKENDS:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=lack[backend]) as alone:
        make("cartpole_balance", backend=backend)
    with pytest.raises(ConfigError, match=lack[backend]) as either:
        make("cartpole_balance", backend="auto")
    assert (" and " in str(alone.value), " and " in str(either.value)) == (False, True)
    for caught in (alone, either):
        assert "pip install envpool==1.2.5, or dm_control==1.0.38" in str(caught.value)
        assert "\n" not in str(caught.value)
