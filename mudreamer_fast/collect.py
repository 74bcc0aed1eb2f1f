"""A policy acts in environments; every step they take goes into the replay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mudreamer_fast.envs import ActionSpec, ArraySpec, Policy, VectorEnv, VectorStep
from mudreamer_fast.envs.vector_env import FloatArray, facts_of
from mudreamer_fast.replay import ReplayBuffer

_DRAWN_STEPS = 64
"""Steps whose random actions are drawn at once: NumPy's calls take longer than so few numbers."""

__all__ = [
    "Collector",
    "Episode",
    "Policy",
    "PolicyNotFiniteError",
    "random_policy",
    "replay_fields",
]


class PolicyNotFiniteError(RuntimeError):
    """A policy that gives infinite or NaN actions; no step was taken."""


@dataclass(frozen=True)
class Episode:
    """A finished episode."""

    score: float
    """Sum of its rewards."""
    length_steps: int
    """Policy steps taken, the reset not counted."""
    env_index: int
    """The environment that played it."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """What the environment told of it at its end."""


def replay_fields(
    observation_spec: Mapping[str, ArraySpec], action_spec: ActionSpec
) -> dict[str, ArraySpec]:
    """What the replay stores of one step of one environment.

    Beside the observations (o_t): the action (A,) that led here, a_{t-1}, zeros on first steps;
    the reward r_t that came with the observation; is_first_t and is_terminal_t.
    """
    flag = ArraySpec((), np.dtype(np.bool_))
    return {
        **observation_spec,
        "action": ArraySpec((action_spec.size,), np.dtype(np.float32)),
        "reward": ArraySpec((), np.dtype(np.float32)),
        "is_first": flag,
        "is_terminal": flag,
    }


def random_policy(action_spec: ActionSpec, num_envs: int, seed: int) -> Policy:
    """Acts uniformly at random in [-1, 1], or over the choices; needs no state.

    Args:
        action_spec: what the environments take.
        num_envs: N.
        seed: of the actions.
    """
    rng = np.random.default_rng(seed)
    one_hot = np.eye(action_spec.size, dtype=np.float32)

    def draw() -> Iterator[FloatArray]:
        shape = (_DRAWN_STEPS, num_envs)
        while True:
            if action_spec.continuous:
                yield from rng.random((*shape, action_spec.size), np.float32) * 2 - 1
            else:
                yield from one_hot[rng.integers(action_spec.size, size=shape)]

    actions = draw()

    def act(observation: Any, is_first: Any, state: Any) -> tuple[FloatArray, Any]:
        return next(actions), state

    return act


def replay_step(step: VectorStep, action: FloatArray) -> dict[str, Any]:
    """What the replay stores of a step, by the names of `replay_fields`.

    Args:
        step: of N environments.
        action: (N, A) that led to it; stored as zeros where the step is a reset.
    """
    if np.count_nonzero(step.is_first):
        action = np.where(step.is_first[:, None], np.float32(0), action)
    return {
        **step.observation,
        "action": action,
        "reward": step.reward,
        "is_first": step.is_first,
        "is_terminal": step.is_terminal,
    }


def no_action(env: VectorEnv) -> FloatArray:
    """(N, A) of what led to a reset."""
    return np.zeros((env.num_envs, env.action_spec.size), np.float32)


class Collector:
    """Carries a policy's steps into the replay: first and last observations, resets and all.

    The streams of the replay are the environments, and consecutive steps of a stream are
    consecutive steps of its environment.

    Args:
        env: N environments.
        replay: made with `replay_fields` and N streams.
        policy: acts for all N.
        initial_state: what the policy is first called with.
    """

    def __init__(
        self, env: VectorEnv, replay: ReplayBuffer, policy: Policy, initial_state: Any = None
    ) -> None:
        self.seconds = 0.0
        """Wall time spent in `collect` so far."""
        self.on_step: Callable[[FloatArray], None] | None = None
        """Told every action that the environments have taken."""
        self.handed_over = False
        """Whether another policy acts than the one at the start."""
        self._env = env
        self._replay = replay
        self._policy, self._state = policy, initial_state
        self._is_new = False
        self._step: VectorStep | None = None
        self._scores = np.zeros(env.num_envs)
        self._steps_taken = 0
        self._began_at = np.zeros(env.num_envs, np.int64)

    def collect(self, steps: int) -> list[Episode]:
        """Advances every environment `steps` times.

        Args:
            steps: policy steps of each environment. Where an episode is over, a step starts the
                next one. The reset of all environments before the very first step comes on top.

        Returns:
            The episodes that ended, in the order in which they did.

        Raises:
            PolicyNotFiniteError: the policy's actions cannot be taken.
        """
        started = time.monotonic()
        episodes: list[Episode] = []
        for _ in range(steps):
            if self._step is None:
                self._step = self._env.reset()
                self._replay.add(replay_step(self._step, no_action(self._env)))
            is_first = np.ones_like(self._step.is_first) if self._is_new else self._step.is_first
            self._is_new = False
            action, self._state = self._policy(self._step.observation, is_first, self._state)
            try:
                self._step = self._env.step(action)
            except ValueError as error:  # environments look at every action before they step
                if np.isfinite(action).all():
                    raise
                raise PolicyNotFiniteError("the policy's actions are not finite") from error
            if self.on_step is not None:
                self.on_step(action)
            self._replay.add(replay_step(self._step, action))
            episodes += self._count(self._step)
        self.seconds += time.monotonic() - started
        return episodes

    def hand_over(self, policy: Policy, initial_state: Any) -> None:
        """Have another policy act from now on.

        It has seen nothing of the episodes under way, so it is told that they begin here.
        """
        self._policy, self._state, self._is_new = policy, initial_state, True
        self.handed_over = True

    @property
    def step(self) -> VectorStep | None:
        """The last step of the environments; None before their first."""
        return self._step

    @property
    def policy_state(self) -> Any:
        """What the policy is called with next."""
        return self._state

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, but for the policy and its state."""
        return {
            "step": None if self._step is None else self._step.without_facts(),
            "scores": self._scores,
            "steps_taken": self._steps_taken,
            "began_at": self._began_at,
            "is_new": self._is_new,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        The policy of before is the caller's to hand over. That of the start draws as many actions
        again as it has drawn, where it still acts.
        """
        step = state["step"]
        if step is not None:  # copies: a checkpoint's arrays may be maps of its files
            observation = {name: np.array(array) for name, array in step["observation"].items()}
            self._step = VectorStep(**{**step, "observation": observation})
        self._scores, self._began_at = np.array(state["scores"]), np.array(state["began_at"])
        self._steps_taken, self._is_new = state["steps_taken"], state["is_new"]
        if not self.handed_over:
            for _ in range(self._steps_taken):
                self._policy({}, np.zeros(0, np.bool_), self._state)

    def _count(self, step: VectorStep) -> list[Episode]:
        self._steps_taken += 1
        self._scores += step.reward
        if np.count_nonzero(step.is_first):  # the episode before it has ended or was dropped
            self._scores[step.is_first] = 0
            self._began_at[step.is_first] = self._steps_taken
        if not np.count_nonzero(step.is_last):
            return []
        ended = np.flatnonzero(step.is_last)
        lengths = self._steps_taken - self._began_at
        return [
            Episode(float(self._scores[i]), int(lengths[i]), int(i), facts_of(step.facts, int(i)))
            for i in ended
        ]
