"""Numbers that no simulator should give."""

from __future__ import annotations

import numpy as np
import pytest

from mudreamer_fast.envs import EnvError
from mudreamer_fast.envs.vector_env import find_non_finite
from tests.envs.rollouts import make, random_actions
from tests.simulators import needs


def test_find_non_finite_names_the_first_that_is_not() -> None:
    vector = np.array([1, -3e38, 3e38], np.float32)  # whose squares would overflow
    assert find_non_finite(1e38, vector) is None
    assert find_non_finite(-np.inf, vector) == "its reward is -inf"
    vector[1:] = np.nan, np.inf
    assert find_non_finite(0, vector) == "number 1 of its observation is nan"


@needs("envpool")
@pytest.mark.parametrize("observation", ["vector", "pixels"])
@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("reward", np.nan, "its reward is nan"),
        ("obs:velocity", np.inf, "number 3 of its observation is inf"),
    ],
)
def test_envpool_env_names_the_environment_whose_numbers_are_not_finite(
    observation: str, place: str, value: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(
        "cartpole_balance", 3, observation=observation, render_profile="flat", backend="envpool"
    )
    actions = random_actions(env, 2)
    env.reset()
    env.step(actions[0])
    pool = env._pool  # type: ignore[attr-defined]
    receive, names = pool._recv, pool._state_keys

    def spoiled() -> list[np.ndarray]:
        state: list[np.ndarray] = receive()
        state[names.index(place)][1] = value
        return state

    monkeypatch.setattr(pool, "_recv", spoiled)
    with pytest.raises(EnvError, match=f"^environment 1 of dmc/cartpole_balance failed: {words}$"):
        env.step(actions[1])
