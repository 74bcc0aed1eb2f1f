"""What the agent will see of an environment, found by playing it at random."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from mudreamer_fast.collect import random_policy
from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import VectorEnv, VectorStep, make_env, without_layers


class _Span:
    """Lowest and highest of what was seen."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def add(self, numbers: Any) -> None:
        self.low = min(self.low, float(np.min(numbers)))
        self.high = max(self.high, float(np.max(numbers)))

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


def check_env(config: EnvConfig, steps: int, seed: int) -> Iterator[str]:
    """Plays an environment and says line by line what came.

    Args:
        config: the environment, and how it is seen.
        steps: policy steps of each of its `num_envs` environments.
        seed: of environments and actions.

    Raises:
        ConfigError: it cannot be made, seen or acted in.
        EnvError: it breaks its contract.
    """
    env = make_env(config, config.num_envs, seed)
    try:
        yield f"{config.task}: {type(without_layers(env)).__name__}, {config.num_envs} side by side"
        if env.action_spec.continuous:
            yield f"  actions      {env.action_spec.size} numbers in [-1, 1]"
        else:
            yield f"  actions      one of {env.action_spec.size} choices"
        yield from _play(env, config, steps, seed)
    finally:
        env.close()


def _play(env: VectorEnv, config: EnvConfig, steps: int, seed: int) -> Iterator[str]:
    seen = {name: _Span() for name in env.observation_spec}
    moved = dict.fromkeys(env.observation_spec, False)
    rewards = _Span()
    lengths, taken = np.zeros(env.num_envs, np.int64), 0
    ended: list[int] = []
    terminals = rewarded = 0
    policy = random_policy(env.action_spec, env.num_envs, seed)
    step = env.reset()
    first = step

    def look(step: VectorStep) -> None:
        for name, array in step.observation.items():
            seen[name].add(array)
            moved[name] |= bool((array != first.observation[name]).any())

    look(step)
    started = time.monotonic()
    for _ in range(steps):
        step = env.step(policy(step.observation, step.is_first, None)[0])
        look(step)
        acted = ~step.is_first
        lengths = np.where(acted, lengths + 1, 0)
        taken += int(acted.sum())
        if acted.any():
            rewards.add(step.reward[acted])
        rewarded += int(np.count_nonzero(step.reward))
        ended += lengths[step.is_last].tolist()
        terminals += int(step.is_terminal.sum())
    seconds = time.monotonic() - started
    for name, spec in env.observation_spec.items():
        shape = " x ".join(map(str, spec.shape))
        still = "" if moved[name] else "; never changed"
        yield f"  {name:12} {shape} {spec.dtype}, {seen[name]}{still}"
    left_out = getattr(without_layers(env), "left_out", ())
    if left_out:
        yield f"  not seen     {', '.join(left_out)}"
    yield f"  rewards      {rewards} a policy step, other than 0 in {rewarded:,} of {taken:,}"
    if ended:
        yield (
            f"  episodes     {len(ended)} ended after {min(ended)} to {max(ended)} policy steps of "
            f"{config.action_repeat} simulator steps: {terminals} for good (is_terminal), "
            f"{len(ended) - terminals} as their time was up"
        )
    else:
        yield (
            f"  episodes     none ended within {steps} policy steps of "
            f"{config.action_repeat} simulator steps; one that never ends cannot be evaluated"
        )
    yield f"  speed        {taken / max(seconds, 1e-9):,.0f} policy steps a second"
