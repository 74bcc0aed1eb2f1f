from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs import make_env, task_names
from mudreamer_fast.envs.dmc_simulator import DmcSimulator
from mudreamer_fast.envs.graphics import try_to_load_egl
from mudreamer_fast.envs.tasks import EPISODE_SIMULATOR_STEPS, PAPERS_TASKS, TASKS, find_task
from tests.envs.rollouts import make
from tests.simulators import EACH, needs


def test_the_papers_twenty_are_tasks() -> None:
    assert len(set(PAPERS_TASKS)) == 20
    assert set(PAPERS_TASKS) < set(task_names())
    assert all(TASKS[name].in_envpool for name in PAPERS_TASKS)


@needs("dm_control")
def test_tasks_are_as_dm_control_has_them() -> None:
    try_to_load_egl()
    os.environ.setdefault("MUJOCO_GL", "egl")
    from dm_control import suite

    own = {(task.domain, task.name) for task in TASKS.values()}
    assert own == set(suite.ALL_TASKS)
    for task in TASKS.values():
        if task.smallest_reward or (task.domain == "dog" and task.name in ("trot", "run", "stand")):
            continue  # the model of another, which takes seconds to compile
        simulator = DmcSimulator(EnvConfig(task.full_name, "vector", backend="dm_control"), 0)
        env = simulator._env
        assert task.observation_keys == tuple(env.observation_spec()), task
        assert task.cameras == env.physics.model.ncam, task
        assert env._step_limit == EPISODE_SIMULATOR_STEPS, task
        simulator.reset()
        simulator.step(np.ones(simulator.action_size, np.float32))
        assert simulator.vector().shape == (simulator.vector_size,), task


@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize(
    ("name", "smallest"), [("cheetah_run", 0.25), ("walker_run", 0.25), ("walker_walk", 0.7)]
)
def test_a_sparse_task_keeps_the_rewards_that_are_large_enough(
    name: str, smallest: float, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, sparse = TASKS[f"dmc/{name}"], TASKS[f"dmc/{name}_sparse"]
    assert (dense.smallest_reward, sparse.smallest_reward) == (0, smallest)
    assert sparse.envpool_id == dense.envpool_id
    if name == "cheetah_run":  # of random actions' rewards some are kept, and some not
        monkeypatch.setitem(TASKS, "dmc/cheetah_run_sparse", replace(sparse, smallest_reward=0.01))
        smallest = 0.01
    if backend == "dm_control":
        names = f"dmc/{name}", f"dmc/{name}_sparse"
        one, other = (DmcSimulator(EnvConfig(n, "vector", action_repeat=1), 3) for n in names)
        one.reset()
        other.reset()
        actions = np.random.default_rng(0).uniform(-1, 1, (40, one.action_size)).astype("f4")
        pairs = [(one.step(action).reward, other.step(action).reward) for action in actions]
    else:
        envs = [make(n, 1, 3, action_repeat=1, backend=backend) for n in (name, f"{name}_sparse")]
        for env in envs:
            env.reset()
        size = envs[0].action_spec.size
        actions = np.random.default_rng(0).uniform(-1, 1, (40, 1, size)).astype("f4")
        pairs = [tuple(float(env.step(a).reward[0]) for env in envs) for a in actions]  # type: ignore[misc]
    for whole, kept in pairs:
        assert kept == (whole if whole >= smallest else 0)
    assert any(whole for whole, _ in pairs)
    if name == "cheetah_run":
        assert {kept > 0 for whole, kept in pairs if whole} == {True, False}


@needs("envpool")
def test_a_sparse_task_judges_every_simulator_step() -> None:
    twice, once = (
        make("cheetah_run_sparse", 1, 3, action_repeat=repeat, backend="envpool")
        for repeat in (2, 1)
    )
    for env in (twice, once):
        env._task = replace(env._task, smallest_reward=0.02)  # type: ignore[attr-defined]
        env.reset()
    for action in np.random.default_rng(0).uniform(-1, 1, (30, 1, 6)).astype("f4"):
        whole = twice.step(action).reward
        np.testing.assert_allclose(once.step(action).reward + once.step(action).reward, whole)


@needs("envpool", "dm_control")
def test_a_task_that_envpool_plays_otherwise_goes_to_dm_control() -> None:
    env = make("point_mass_easy", 1, 0)
    assert type(env).__name__ == "EnvPoolEnv"
    env = make("cartpole_two_poles", 1, 0)
    assert type(env).__name__ == "DmcEnv"
    env.close()
    with pytest.raises(ConfigError, match=r"as dm_control does; train with --env.backend dm_con"):
        make("humanoid_walk", backend="envpool")


@needs("envpool")
@pytest.mark.parametrize("name", PAPERS_TASKS)
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
    with pytest.raises(ConfigError, match="mudreamer-fast info lists them"):
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
