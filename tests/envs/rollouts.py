"""Environments and rollouts that several test files need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import VectorEnv, VectorStep, make_env


def make(task: str, num_envs: int = 1, seed: int = 0, **options: Any) -> VectorEnv:
    """An environment with vectors, unless the options say otherwise."""
    config = EnvConfig(task=f"dmc/{task}", **({"observation": "vector"} | options))
    return make_env(config, num_envs, seed)


def random_actions(env: VectorEnv, steps: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """(steps, N, A) float32 in [-1, 1]."""
    shape = (steps, env.num_envs, env.action_spec.size)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def roll(env: VectorEnv, actions: np.ndarray[Any, Any]) -> list[VectorStep]:
    """The reset, then a step for each action."""
    return [env.reset(), *(env.step(action) for action in actions)]


def stacked(steps: Sequence[VectorStep]) -> dict[str, np.ndarray[Any, Any]]:
    """Everything that the steps hold, as (steps, N, ...)."""
    names = ("reward", "is_first", "is_last", "is_terminal")
    arrays = {name: np.stack([getattr(step, name) for step in steps]) for name in names}
    for name in steps[0].observation:
        arrays[name] = np.stack([step.observation[name] for step in steps])
    return arrays


def assert_same(
    left: dict[str, np.ndarray[Any, Any]], right: dict[str, np.ndarray[Any, Any]]
) -> None:
    """Both are equal, bit for bit."""
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
