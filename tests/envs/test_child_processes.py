"""EnvPool in processes that multiprocessing starts, by whatever means."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mudreamer_fast.envs import EnvError
from tests.envs.rollouts import make, random_actions
from tests.patience import PATIENCE_SECONDS
from tests.simulators import needs

pytestmark = needs("envpool")

PROGRAM = """
import multiprocessing, sys
CHILD = '''
from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import make_env
env = make_env(EnvConfig("dmc/cartpole_balance", backend="envpool", render_profile="flat"), 2, 0)
assert env.reset().observation["image"].std() > 10
import triton  # as torch.compile does
'''
child = multiprocessing.get_context(sys.argv[1]).Process(target=exec, args=(CHILD,))
child.start()
child.join()
print(child.exitcode)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_triton_can_be_imported_after_a_picture_was_drawn_in_a_child(method: str) -> None:
    pytest.importorskip("triton")
    # in a new interpreter: this one may have imported Triton, and a fork would have it too
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, method],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "0\n", done.stderr


def test_an_environment_of_the_parent_is_refused_in_a_fork() -> None:
    env = make("cartpole_balance", 2, backend="envpool")
    actions = random_actions(env, 1)
    env.reset()
    child = os.fork()
    if child == 0:
        signal.alarm(int(PATIENCE_SECONDS))  # what is not refused may wait for ever
        told = 0
        for use in (env.reset, env.render, lambda: env.step(actions[0])):
            try:
                use()
            except EnvError as error:
                told += "made before this process was forked" in str(error)
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert not env.step(actions[0]).is_first.any()
