from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs import EnvError
from mudreamer_fast.envs.dmc_env import DmcEnv
from mudreamer_fast.envs.dmc_simulator import DmcSimulator
from tests.envs.rollouts import assert_same, make, random_actions, roll, stacked
from tests.patience import PATIENCE_SECONDS
from tests.simulators import needs

pytestmark = needs("dm_control")

BALANCE = EnvConfig(task="dmc/cartpole_balance", observation="vector", action_repeat=3)


def test_dmc_simulator_adds_the_rewards_of_repeated_steps() -> None:
    simulator = DmcSimulator(BALANCE, seed=2)
    simulator.reset()
    from dm_control import suite

    raw = suite.load("cartpole", "balance", {"random": 2})
    raw.reset()
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 1)).astype(np.float32):
        step = simulator.step(action)
        shown = [raw.step(action) for _ in range(3)]
        assert step.reward == pytest.approx(sum(one.reward for one in shown), abs=1e-6)
        vector = np.concatenate(list(shown[-1].observation.values()))
        np.testing.assert_array_equal(simulator.vector(), vector.astype(np.float32))


def test_dmc_simulator_scales_actions_to_the_tasks_bounds() -> None:
    config = EnvConfig(task="dmc/quadruped_walk", observation="vector", action_repeat=1)
    simulator = DmcSimulator(config, seed=0)
    simulator.reset()
    simulator.step(np.ones(12, np.float32))
    np.testing.assert_allclose(simulator.physics.control(), [1, 1.1, 0.8] * 4)
    simulator.step(-np.ones(12, np.float32))
    np.testing.assert_allclose(simulator.physics.control(), [-1, -1, -0.8] * 4)


def test_dmc_simulator_draws_in_every_size_with_its_camera() -> None:
    usual, other = (
        DmcSimulator(EnvConfig(task="dmc/cartpole_balance", camera=camera), seed=0)
        for camera in (0, 1)
    )
    usual.reset()
    first = usual.image((64, 64)).copy()
    np.testing.assert_array_equal(first, usual.physics.render(64, 64, 0))
    assert usual.image((96, 84)).shape == (96, 84, 3)
    np.testing.assert_array_equal(usual.image((64, 64)), first)
    other.reset()
    assert (other.image((64, 64)) != first).any()


def test_dmc_env_keeps_the_contract_over_an_episodes_end() -> None:
    config = EnvConfig(task="dmc/cartpole_balance", observation="vector", action_repeat=3)
    env, simulator = DmcEnv(config, 2, seed=6), DmcSimulator(config, seed=7)
    actions = random_actions(env, 337)
    data = stacked(roll(env, actions))
    assert np.flatnonzero(data["is_last"][:, 0]).tolist() == [334]
    assert np.flatnonzero(data["is_first"][:, 1]).tolist() == [0, 335]
    assert not data["is_terminal"].any()
    assert (data["reward"][[0, 335]] == 0).all()
    assert (data["reward"][334] <= 1).all(), "the last step of 1000 = 333 * 3 + 1"
    simulator.reset()
    for step in range(334):
        simulator.step(actions[step, 1])
    np.testing.assert_array_equal(data["vector"][334, 1], simulator.vector())
    simulator.reset()
    np.testing.assert_array_equal(data["vector"][335, 1], simulator.vector())
    simulator.step(actions[335, 1])
    np.testing.assert_array_equal(data["vector"][336, 1], simulator.vector())
    env.close()


@pytest.mark.parametrize("task", ["hopper_stand", "reacher_hard"])
def test_dmc_env_gives_what_its_simulators_give(task: str) -> None:
    config = EnvConfig(
        task=f"dmc/{task}", observation="both", action_repeat=2, render_profile="flat"
    )
    env = DmcEnv(config, 2, seed=6)
    actions = random_actions(env, 60)
    data = stacked(roll(env, actions))
    env.close()
    for index in range(2):
        simulator = DmcSimulator(config, 6 + index)
        simulator.reset()
        for number in range(61):
            reward = simulator.step(actions[number - 1, index]).reward if number else 0
            assert data["reward"][number, index] == np.float32(reward)
            np.testing.assert_array_equal(data["vector"][number, index], simulator.vector())
            image = simulator.image((64, 64)).transpose(2, 0, 1)
            np.testing.assert_array_equal(data["image"][number, index], image)
        simulator.close()


def test_dmc_env_shares_images_and_refuses_what_simulators_cannot_take() -> None:
    env = make("pendulum_swingup", 2, seed=3, observation="both", backend="dm_control")
    actions = random_actions(env, 3)
    steps = roll(env, actions)
    before = {name: array.copy() for name, array in stacked(steps).items()}
    simulator = DmcSimulator(EnvConfig(task="dmc/pendulum_swingup", observation="both"), seed=4)
    simulator.reset()
    for action in actions:
        simulator.step(action[1])
    last = steps[-1].observation
    np.testing.assert_array_equal(last["vector"][1], simulator.vector())
    np.testing.assert_array_equal(last["image"][1].transpose(1, 2, 0), simulator.image((64, 64)))
    np.testing.assert_array_equal(env.render(), last["image"].transpose(0, 2, 3, 1))
    assert env.render(96, [1]).shape == (1, 96, 96, 3)
    for bad in (actions[0][:1], actions[0].astype(float), np.full_like(actions[0], np.nan)):
        with pytest.raises(ValueError, match="actions must"):
            env.step(bad)
    with pytest.raises(ValueError, match="size must be"):
        env.render(100_000)
    env.step(actions[0])
    assert_same(before, stacked(steps))
    processes = [worker.process for worker in env._workers]
    env.close()
    env.close()
    assert all(process.returncode == 0 for process in processes)
    with pytest.raises(EnvError, match="dmc/pendulum_swingup environment is closed"):
        env.step(actions[0])


WITHOUT_EGL = """
import ctypes
class Library(ctypes.CDLL):
    def __init__(self, name, *arguments, **options):
        if "EGL" in str(name):
            raise OSError(f"{name}: cannot open shared object file")
        super().__init__(name, *arguments, **options)
ctypes.CDLL, ctypes.cdll = Library, ctypes.LibraryLoader(Library)
from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs.dmc_simulator import DmcSimulator
simulator = DmcSimulator(EnvConfig("dmc/cartpole_balance", "vector"), seed=0)
simulator.reset()
print(simulator.vector().shape)
"""


def test_dmc_simulator_gives_vectors_on_a_machine_without_egl() -> None:
    environment = {name: word for name, word in os.environ.items() if name != "MUJOCO_GL"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EGL],
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stdout) == (0, "(5,)\n"), done.stderr


def test_dmc_env_passes_on_a_workers_error_as_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    with pytest.raises(ConfigError, match=r"MUJOCO_EGL_DEVICE_ID must be.*got '99'") as caught:
        make("cartpole_balance", 1, observation="pixels", backend="dm_control")
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID")
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/nowhere.json")
    with pytest.raises(EnvError, match=r"environment 0 of dmc/\w+ failed: no EGL") as caught:
        make("cartpole_balance", 1, observation="pixels", backend="dm_control")
    assert "\n" not in str(caught.value)


PARENT = """
import os, sys, time
from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs.dmc_env import DmcEnv
env = DmcEnv(EnvConfig(task="dmc/cartpole_balance", observation="vector"), 2, 0)
env.reset()
if os.fork() == 0:  # holds the pipes open, as a data loader's worker would
    time.sleep(10_000)
    os._exit(0)
print(*(worker.process.pid for worker in env._workers), flush=True)
time.sleep(10_000)
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_dmc_env_workers_end_with_a_parent_that_is_killed() -> None:
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(is_running, workers))
        parent.kill()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(map(is_running, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        alive = [pid for pid in workers if is_running(pid)]
        os.killpg(parent.pid, signal.SIGKILL)
    assert not alive
