"""Crafter (Hafner, arXiv 2109.06780), an open world to survive in, as a Gymnasium environment."""

from __future__ import annotations

import importlib
from collections import defaultdict
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs.tasks import ACHIEVEMENT, CRAFTER
from mudreamer_fast.envs.vector_env import Frames

PICTURE_SIZE = 256
"""Height and width of what is drawn for videos."""


class _InOrder(dict[Any, None]):
    """A set that is gone through in the order in which its elements came.

    Crafter draws among creatures that it keeps in sets, whose order depends on where they lie in
    memory: the same seed and actions would give different episodes.
    """

    def add(self, element: Any) -> None:
        self[element] = None

    def remove(self, element: Any) -> None:
        del self[element]


class CrafterEnv(gymnasium.Env):  # type: ignore[misc]
    """One world: images, 17 actions, and as facts of an episode which of 22 achievements it had.

    The reward is 1 for each achievement unlocked for the first time in an episode, and a tenth of
    each point of health that is won or lost; `crafter/noreward` has none. An episode ends with the
    player's death; its time is up after 10,000 steps.

    Args:
        config: `crafter/reward` or `crafter/noreward`, and the size of the images.

    Raises:
        ConfigError: another task, or Crafter is not installed.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, config: EnvConfig) -> None:
        kinds = {f"{CRAFTER}reward": True, f"{CRAFTER}noreward": False}
        if config.task not in kinds:
            raise ConfigError(f"task must be {' or '.join(kinds)}, got {config.task!r}")
        self._rewards, self._shape = kinds[config.task], config.image_shape
        self.render_mode = "rgb_array"
        try:
            self._crafter: Any = importlib.import_module("crafter")
        except ImportError as error:
            raise ConfigError(
                f"{config.task} needs Crafter, which does not import ({error}): "
                "pip install 'mudreamer-fast[crafter]'"
            ) from None
        self._world: Any = None
        self._env: Any = self._made(0)
        self.observation_space = spaces.Box(0, 255, (*self._shape, 3), np.uint8)
        self.action_space = spaces.Discrete(len(self._env.action_names))

    def _made(self, seed: int) -> Any:
        height, width = self._shape
        env = self._crafter.Env(size=(width, height), reward=self._rewards, seed=seed)
        world = env._world
        start = world.reset

        def reset(seed: int | None = None) -> None:
            start(seed)
            world._chunks = defaultdict(_InOrder)

        world.reset = reset
        return env

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, dict[str, Any]]:
        """Makes a new world."""
        super().reset(seed=seed)
        if seed is not None:
            self._env = self._made(seed)
        return self._env.reset(), {}

    def step(self, action: int) -> tuple[Frames, float, bool, bool, dict[str, Any]]:
        """Takes one of the 17 actions."""
        image, reward, done, info = self._env.step(int(action))
        died = bool(done) and info["discount"] == 0
        told = {
            f"log_{ACHIEVEMENT}{name}": float(count > 0)
            for name, count in info["achievements"].items()
        }
        return image, float(reward), died, bool(done) and not died, told

    def render(self) -> Frames:
        """A picture for videos."""
        picture: Frames = self._env.render((PICTURE_SIZE, PICTURE_SIZE))
        return picture
