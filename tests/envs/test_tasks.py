from __future__ import annotations

import os

import numpy as np
import pytest

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs import make_env, task_names
from mudreamer_fast.envs.graphics import try_to_load_egl
from mudreamer_fast.envs.tasks import EPISODE_SIMULATOR_STEPS, TASKS, find_task


def test_task_names_are_the_papers_twenty() -> None:
    assert len(set(task_names())) == 20
    assert {"dmc/acrobot_swingup", "dmc/ball_in_cup_catch", "dmc/walker_walk"} <= set(task_names())


def test_tasks_are_as_dm_control_has_them() -> None:
    try_to_load_egl()
    os.environ.setdefault("MUJOCO_GL", "egl")
    from dm_control import suite

    for task in TASKS.values():
        env = suite.load(task.domain, task.name)
        assert task.observation_keys == tuple(env.observation_spec()), task
        assert task.cameras == env.physics.model.ncam, task
        assert env._step_limit == EPISODE_SIMULATOR_STEPS, task


@pytest.mark.parametrize("name", task_names())
def test_every_task_is_made_by_envpool_with_dm_controls_vector(name: str) -> None:
    sizes = {
        "acrobot": 6, "ball_in_cup": 8, "cartpole": 5, "cheetah": 17, "finger_spin": 9,
        "finger_turn": 12, "hopper": 15, "pendulum": 3, "quadruped": 78, "reacher": 6,
        "walker": 24,
    }  # fmt: skip
    size = next(n for prefix, n in sizes.items() if name.startswith(f"dmc/{prefix}"))
    env = make_env(EnvConfig(task=name, observation="vector", backend="envpool"), 2, seed=0)
    assert env.observation_spec["vector"].shape == (size,)
    first = env.reset()
    action = np.full((2, env.action_spec.size), 0.5, np.float32)
    step = env.step(action)
    assert step.observation["vector"].shape == (2, size)
    assert step.observation["vector"].dtype == np.float32
    assert (step.observation["vector"] != first.observation["vector"]).any(1).all()
    assert not np.array_equal(*step.observation["vector"])
    env.close()


def test_find_task_names_close_matches_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*dmc/walker_walk") as caught:
        find_task("dmc/walker_wlak")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="known are dmc/acrobot_swingup"):
        find_task("atari/zzz")


def test_make_env_refuses_a_wrong_task_whatever_the_backend() -> None:
    for backend in ("auto", "envpool", "dm_control"):
        config = EnvConfig(task="dmc/cartpole_swing", backend=backend)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="dmc/cartpole_swingup"):
            make_env(config, 1, 0)


def test_find_task_films_the_quadruped_from_camera_two() -> None:
    assert find_task("dmc/quadruped_run")[1] == 2
    assert find_task("dmc/walker_run")[1] == 0
    assert find_task("dmc/walker_run", 1)[1] == 1


@pytest.mark.parametrize(("name", "camera"), [("dmc/walker_run", 2), ("dmc/quadruped_run", -1)])
def test_find_task_refuses_a_camera_that_is_not_there(name: str, camera: int) -> None:
    with pytest.raises(ConfigError, match=f"camera of {name} must be in 0.*got {camera}"):
        find_task(name, camera)
