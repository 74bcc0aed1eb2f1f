"""Workers of dm_control that fail, and what reaches them from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import EnvError, dmc_env, dmc_process, dmc_worker
from mudreamer_fast.envs.dmc_env import DmcEnv
from mudreamer_fast.envs.dmc_worker import _Worker
from tests.envs.rollouts import random_actions
from tests.limits import few_files, open_files
from tests.patience import PATIENCE_SECONDS
from tests.simulators import needs

pytestmark = needs("dm_control")

CONFIG = EnvConfig("dmc/cartpole_balance", "vector", backend="dm_control", render_profile="flat")
ROOT = Path(__file__).parents[2]


@pytest.fixture(name="env")
def _env() -> Iterator[DmcEnv]:
    env = DmcEnv(CONFIG, 2, seed=3)
    yield env
    env.close()


def kill(env: DmcEnv, index: int) -> None:
    os.kill(env._workers[index].process.pid, signal.SIGKILL)


def stop(env: DmcEnv, index: int) -> None:
    os.kill(env._workers[index].process.pid, signal.SIGSTOP)
    env._workers[index]._patience_seconds = 0.1


FAILURES = [(kill, "its process ended with code -9"), (stop, "no answer within 0.1 s")]


@pytest.mark.parametrize(("fail", "reason"), FAILURES)
def test_a_worker_that_fails_is_replaced_and_the_others_go_on(
    env: DmcEnv, fail: Callable[[DmcEnv, int], None], reason: str
) -> None:
    untouched = DmcEnv(CONFIG, 1, seed=3)
    actions = random_actions(env, 6)
    first = env.reset()
    expected = [untouched.reset()] + [untouched.step(action[:1]) for action in actions]
    steps = [env.step(action) for action in actions[:3]]
    assert (env.restarts, env.take_notices()) == (0, [])
    fail(env, 1)
    steps += [env.step(action) for action in actions[3:]]
    untouched.close()
    assert [step.is_first.tolist() for step in steps] == [
        [False, number == 3] for number in range(6)
    ]
    dropped, begun = steps[2], steps[3]
    assert not any(step.is_last.any() or step.is_terminal.any() for step in steps)
    assert (dropped.reward[1] > 0, begun.reward[1], steps[4].reward[1] > 0) == (True, 0, True)
    new = begun.observation["vector"][1]
    assert np.isfinite(new).all()
    assert (new != first.observation["vector"][1]).any(), "another episode than the first"
    for mine, theirs in zip(steps, expected[1:], strict=True):
        assert mine.reward[0] == theirs.reward[0]
        np.testing.assert_array_equal(
            mine.observation["vector"][0], theirs.observation["vector"][0]
        )
    line = f"environment 1 of dmc/cartpole_balance was restarted and its episode dropped: {reason}"
    assert (env.restarts, env.take_notices(), env.take_notices()) == (1, [line], [])


def test_a_simulators_own_error_has_it_replaced(env: DmcEnv) -> None:
    env.reset()
    # no action that `step` lets through makes this simulator diverge
    (reply,) = env._ask({1: ("step", np.array([np.nan], np.float32))})
    assert reply.is_first
    (line,) = env.take_notices()
    assert "environment 1 of dmc/cartpole_balance" in line
    assert "PhysicsError" in line
    assert "\n" not in line
    assert not env.step(random_actions(env, 1)[0]).is_first.any()


def test_pictures_are_still_drawn_and_the_episode_starts_anew(env: DmcEnv) -> None:
    env.reset()
    (before,) = env.render(32, [0])
    kill(env, 1)
    frames = env.render(32, [1, 1, 0])
    assert frames.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(frames[0], frames[1])
    np.testing.assert_array_equal(frames[2], before)
    assert (frames[0] != before).any()
    assert len(env.take_notices()) == 1
    assert env.step(random_actions(env, 1)[0]).is_first.tolist() == [False, True]
    assert env.take_notices() == []


def test_an_environment_that_finishes_no_step_is_given_up(
    env: DmcEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dmc_env, "FAILURES_IN_A_ROW", 2)
    action = random_actions(env, 1)[0]
    env.reset()
    kill(env, 0)
    assert env.step(action).is_first.tolist() == [True, False]
    env.step(action)  # finished: what follows is no longer in a row with what was
    kill(env, 0)
    assert env.step(action).is_first.tolist() == [True, False]
    workers = env._workers
    kill(env, 0)
    said = "environment 0 of dmc/cartpole_balance failed 2 times in a row without a finished step: "
    with pytest.raises(EnvError, match=f"^{said}its process ended with code -9$"):
        env.step(action)
    assert workers[1].process.wait(PATIENCE_SECONDS) == 0
    with pytest.raises(EnvError, match="is closed"):
        env.step(action)


def test_a_simulator_that_fails_again_and_again_within_an_hour_is_given_up(
    env: DmcEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dmc_env, "FAILURES_PER_HOUR", 0)  # as many as there are environments count
    env._failed_at = [time.monotonic() - 3601] * 9 + [time.monotonic() - 1800]
    action = random_actions(env, 1)[0]
    env.reset()
    kill(env, 0)
    env.step(action)
    env.step(action)
    kill(env, 1)
    with pytest.raises(
        EnvError, match=r"environment 1 of .* failed: .* failed 3 times within an h"
    ):
        env.step(action)


def test_a_worker_that_never_starts_is_no_reason_to_try_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dmc_process, "_PROGRAM", "raise SystemExit(7)")
    said = "environment 0 of dmc/cartpole_balance failed: its process ended with code 7"
    with pytest.raises(EnvError, match=f"^{said}$"):
        DmcEnv(CONFIG, 1, seed=0)
    monkeypatch.setattr(dmc_process, "_PROGRAM", "import time; time.sleep(10_000)")
    monkeypatch.setattr(dmc_process, "START_SECONDS", 0.1)
    monkeypatch.setattr(dmc_process, "CLOSE_SECONDS", 1.0)
    with pytest.raises(EnvError, match=r"failed: no answer within 0\.1 s$"):
        DmcEnv(CONFIG, 1, seed=0)


def test_a_worker_that_does_not_end_is_killed(env: DmcEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dmc_process, "CLOSE_SECONDS", 1.0)
    os.kill(env._workers[0].process.pid, signal.SIGSTOP)
    env.close()
    assert env._workers[0].process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_a_worker_that_not_even_force_ends_is_left_behind(
    env: DmcEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = env._workers[0].process

    def never(seconds: float) -> int:
        raise subprocess.TimeoutExpired(process.args, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(process, "wait", never)
        assert env._workers[0].end(grace_seconds=0) is None
    assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


@pytest.mark.parametrize("place", [0, 3])
def test_a_worker_fails_over_an_observation_that_is_not_finite(place: int) -> None:
    worker = _Worker(CONFIG, 0, 0, 1, -1)
    vector = worker.reset().vector
    assert not worker.step(np.zeros(1, np.float32)).is_first
    vector[place] = np.inf
    worker._simulator.vector = lambda: vector  # type: ignore[method-assign]
    with pytest.raises(EnvError, match=f"^number {place} of its observation is inf$"):
        worker.step(np.zeros(1, np.float32))


TERMINAL = """
import os, signal, sys
import numpy as np
from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs.dmc_env import DmcEnv
received = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: received.append(number))
env = DmcEnv(EnvConfig("dmc/cartpole_balance", "vector"), 2, 0)
env.reset()
print("ready", *(worker.process.pid for worker in env._workers), flush=True)
sys.stdin.readline()
steps = [env.step(np.zeros((2, 1), np.float32)) for _ in range(3)]
print(sorted(received), env.restarts, any(step.is_first.any() for step in steps), flush=True)
env.close()
print(*(worker.process.returncode for worker in env._workers), flush=True)
"""


def test_what_a_terminal_sends_to_a_whole_job_leaves_the_workers_at_work() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        ready, *workers = parent.stdout.readline().split()
        assert (ready, len(workers)) == ("ready", 2)
        numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
        for number in numbers:
            os.killpg(parent.pid, number)
        for number in numbers[:2]:  # as batch systems do, who know all processes
            os.kill(int(workers[1]), number)
        said: Any = parent.communicate("go on\n", timeout=PATIENCE_SECONDS)[0].splitlines()
    assert said == [f"{sorted(map(int, numbers))} 0 False", "0 0"]


@pytest.mark.parametrize(
    ("spare", "said"),
    [
        (0, "Too many open files"),  # the memory of the images
        (2, "environment 0 of dmc/cartpole_balance gets no process: Too many open files"),
        (4, "environment 0 of dmc/cartpole_balance gets no process: Too many open files"),
        (9, r"environment [1-9] of dmc/cartpole_balance gets no process: Too many open files"),
    ],
)
def test_workers_that_get_no_files_are_one_line_and_leave_none_open(
    spare: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dmc_process, "python_command", lambda *_: ["sleep", "1000"])
    monkeypatch.setattr(dmc_process, "CLOSE_SECONDS", 0.05)
    before = open_files()
    with few_files(spare), pytest.raises((EnvError, OSError), match=said) as caught:
        DmcEnv(CONFIG, 20, seed=0)
    assert open_files() == before, caught  # which has kept all that the constructor held


def test_a_worker_that_fails_after_its_parent_has_gone_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dmc_worker, "_end_with", lambda parent: None)
    ours, theirs = Pipe()
    ours.send((EnvConfig("dmc:no_such_module:make"), 0, 0, 1))
    ours.close()
    dmc_worker.main(0, os.dup(theirs.fileno()), -1)
