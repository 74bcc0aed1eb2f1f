"""An environment that costs nothing, for tests of what acts and learns in environments.

A light stands at one of A places and the action should point to it: the reward is 1 for the right
choice (discrete) or 1 - |a_0 - x| for the place x in [-1, 1] (continuous), else 0. The light moves
at every step, so that only an agent that looks can do better than chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mudreamer_fast.envs import ActionSpec, VectorStep
from mudreamer_fast.envs.vector_env import check_action, check_render, observation_specs

IMAGE_SIZE = 64


class TinyEnv:
    """N environments that follow the protocol of `VectorEnv`.

    Args:
        num_envs: N.
        observation: "pixels", "vector" (one-hot of the place) or "both".
        discrete: one-hot actions over 3 places; otherwise 2 numbers, the first of which counts.
        episode_length: policy steps; an int for all, or one for each environment.
        terminal: whether the end of an episode is real, or only its time being up.
        seed: environment i takes seed + i.
    """

    def __init__(
        self,
        num_envs: int = 2,
        observation: Literal["pixels", "vector", "both"] = "pixels",
        discrete: bool = False,
        episode_length: int | Sequence[int] = 10,
        terminal: bool = False,
        seed: int = 0,
    ) -> None:
        self.num_envs = num_envs
        self.places = 3
        self.action_spec = ActionSpec(self.places if discrete else 2, continuous=not discrete)
        self.observation_spec = observation_specs(
            observation != "vector",
            (IMAGE_SIZE, IMAGE_SIZE),
            0 if observation == "pixels" else self.places,
        )
        self.render_profile: str | None = None
        self.closed = False
        self._lengths = np.broadcast_to(episode_length, (num_envs,))
        self._terminal = terminal
        self._rngs = [np.random.default_rng(seed + i) for i in range(num_envs)]
        self._place = np.zeros(num_envs, np.int64)
        self._age = np.zeros(num_envs, np.int64)
        self._is_last = np.zeros(num_envs, bool)

    def reset(self) -> VectorStep:
        everywhere = np.ones(self.num_envs, bool)
        return self._next(everywhere, np.zeros(self.num_envs, np.float32))

    def step(self, action: np.ndarray[Any, Any]) -> VectorStep:
        check_action(action, self.num_envs, self.action_spec)
        if self.action_spec.continuous:
            reward = np.clip(1 - np.abs(action[:, 0] - (self._place - 1)), 0, 1)
        else:
            reward = action[np.arange(self.num_envs), self._place]
        return self._next(self._is_last, reward.astype(np.float32))

    def _next(self, is_first: np.ndarray[Any, Any], reward: np.ndarray[Any, Any]) -> VectorStep:
        self._place = np.array([rng.integers(self.places) for rng in self._rngs])
        self._age = np.where(is_first, 0, self._age + 1)
        self._is_last = (self._age >= self._lengths) & ~is_first
        return VectorStep(
            self._observe(),
            np.where(is_first, np.float32(0), reward),
            is_first.copy(),
            self._is_last.copy(),
            self._is_last & self._terminal,
        )

    def _observe(self) -> dict[str, np.ndarray[Any, Any]]:
        observation: dict[str, np.ndarray[Any, Any]] = {}
        if "image" in self.observation_spec:
            frames = self.render(IMAGE_SIZE)
            observation["image"] = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
        if "vector" in self.observation_spec:
            observation["vector"] = np.eye(self.places, dtype=np.float32)[self._place]
        return observation

    def render(
        self, size: int | None = None, indices: Sequence[int] | None = None
    ) -> np.ndarray[Any, Any]:
        size = IMAGE_SIZE if size is None else size
        indices = range(self.num_envs) if indices is None else indices
        check_render(size, indices, self.num_envs)
        columns = np.arange(size) * self.places // size
        lit = columns == self._place[list(indices), None]
        image = np.where(lit, 255, 40).astype(np.uint8)
        return np.broadcast_to(image[:, None, :, None], (len(indices), size, size, 3)).copy()

    def take_notices(self) -> list[str]:
        return []

    def close(self) -> None:
        self.closed = True
