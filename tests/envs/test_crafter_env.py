"""Crafter behind the protocol of `VectorEnv`, beside the package played by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs import make_env
from mudreamer_fast.envs.vector_env import facts_of

crafter = pytest.importorskip("crafter")


def one_hot(choice: int) -> np.ndarray:
    return np.eye(17, dtype=np.float32)[[choice]]


def test_images_rewards_and_achievements_are_those_of_the_package() -> None:
    env = make_env(EnvConfig("crafter/reward", action_repeat=1), 1, 3)
    peer = crafter.Env(seed=3)
    rng = np.random.default_rng(1)
    step, image = env.reset(), peer.reset()
    assert env.observation_spec["image"].shape == (3, 64, 64)
    assert (env.action_spec.size, env.action_spec.continuous) == (17, False)
    np.testing.assert_array_equal(step.observation["image"][0], np.moveaxis(image, 2, 0))
    # creatures that the package draws from sets come later: up to then all is the same
    for _ in range(9):
        choice = int(rng.integers(17))
        image, reward, done, _ = peer.step(choice)
        step = env.step(one_hot(choice))
        np.testing.assert_array_equal(step.observation["image"][0], np.moveaxis(image, 2, 0))
        assert step.reward[0] == np.float32(reward)
        assert not done
        assert not step.is_last[0]
    env.close()


def test_creatures_among_which_crafter_draws_stand_in_the_order_in_which_they_came() -> None:
    # in sets their order is that of their places in memory, another one in each process
    env = make_env(EnvConfig("crafter/reward", action_repeat=1), 1, 5)
    for _ in range(2):
        env.reset()
        world = env._vector.envs[0]._env._env._world  # type: ignore[attr-defined]
        crowds = [list(objects) for objects in world._chunks.values() if len(objects) > 2]
        assert len(crowds) > 2
        for crowd in crowds:
            assert crowd == sorted(crowd, key=world._objects.index)
        moved = crowds[0][0]
        world.remove(moved)
        moved.removed = False
        world.add(moved)
        crowd = list(world._chunks[world.chunk_key(moved.pos)])
        assert crowd == [*crowds[0][1:], moved]
    env.close()


def test_death_ends_an_episode_for_good_and_tells_its_achievements() -> None:
    env = make_env(EnvConfig("crafter/noreward", action_repeat=1), 1, 0)
    env.reset()
    world = env._vector.envs[0]._env._env  # type: ignore[attr-defined]
    world._player.achievements["collect_wood"] = 3
    world._player.health = 0
    step = env.step(one_hot(0))
    assert step.is_last[0]
    assert step.is_terminal[0]
    assert step.reward[0] == 0
    told = facts_of(step.facts, 0)
    assert len(told) == 22
    assert {name for name, share in told.items() if share} == {"achievement_collect_wood"}
    assert env.step(one_hot(0)).is_first[0]
    world._step = 9_999
    step = env.step(one_hot(0))
    assert step.is_last[0]
    assert not step.is_terminal[0]
    env.close()


def test_films_show_the_same_world_in_more_pixels() -> None:
    env = make_env(EnvConfig("crafter/reward", action_repeat=1), 1, 3)
    image = np.moveaxis(env.reset().observation["image"][0], 0, 2)
    picture = env.render(128)[0]
    assert picture.shape == (128, 128, 3)
    small = picture.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.corrcoef(small.ravel(), image.ravel())[0, 1] > 0.8
    env.close()


def test_a_wider_image_has_the_same_world_in_it() -> None:
    env = make_env(EnvConfig("crafter/reward", action_repeat=1, image_width=128), 1, 3)
    image = crafter.Env(seed=3, size=(128, 64)).reset()
    assert image.shape == (64, 128, 3)
    np.testing.assert_array_equal(env.reset().observation["image"][0], np.moveaxis(image, 2, 0))
    env.close()


def test_another_task_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="task must be crafter/reward or crafter/noreward"):
        make_env(EnvConfig("crafter/rewards"), 1, 0)
