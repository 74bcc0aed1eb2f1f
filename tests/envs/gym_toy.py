"""A Gymnasium environment of which every byte is known: what it shows is where it is."""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTHS = (3, 5, 2)
"""Simulator steps of an environment's first episode and of those after it, over and over; every
second episode ends for good, the others as their time is up."""
HEIGHT, WIDTH = 40, 30


def ending(episode: int) -> tuple[int, bool]:
    """Length of an episode, and whether it ends for good."""
    return LENGTHS[episode % len(LENGTHS)], episode % 2 == 0


def pixel(seed: int, episode: int, step: int) -> np.ndarray:
    """The colour (3,) of the whole image."""
    return np.array([seed, 20 * episode, 20 * step + 1], np.uint8)


def reward(seed: int, episode: int, step: int) -> float:
    """What the step that led to `step` earned."""
    return 100.0 * seed + 10.0 * episode + step


class Toy(gymnasium.Env):
    """Its vector is seed, episode, step and the action (2,) that led here, as float64.

    Args:
        discrete: takes one of 3 choices, from 5 on, and shows it twice.
    """

    def __init__(self, discrete: bool = False) -> None:
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8),
                "state": spaces.Box(-np.inf, np.inf, (5,), np.float64),
            }
        )
        self.action_space: Any = spaces.Box(
            np.array([-2, 0], np.float32), np.array([2, 10], np.float32)
        )
        if discrete:
            self.action_space = spaces.Discrete(3, start=5)
        self.seed, self.episode, self.steps = -1, -1, 0
        self.over = True

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed = self.seed if seed is None else seed % 200
        self.episode, self.steps, self.over = self.episode + 1, 0, False
        return self.look(np.zeros(2)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        assert not self.over, "a step after the last one"
        self.steps += 1
        length, for_good = ending(self.episode)
        self.over = self.steps == length
        earned = reward(self.seed, self.episode, self.steps)
        flags = (self.over and for_good, self.over and not for_good)
        return self.look(action), earned, *flags, self.told(for_good)

    def told(self, for_good: bool) -> dict[str, Any]:
        """At every step, though only what it says at the end is of an episode."""
        return {
            "is_success": for_good, "log_episode": np.array([self.episode], np.int64),
            "log_words": "none", "log_nan": np.nan, "some": 3.0,
        }  # fmt: skip

    def look(self, action: Any) -> dict[str, Any]:
        colour = pixel(self.seed, self.episode, self.steps)
        return {
            "camera": np.broadcast_to(colour, (HEIGHT, WIDTH, 3)).copy(),
            "state": np.array([self.seed, self.episode, self.steps, *np.broadcast_to(action, 2)]),
        }


class Fragile(Toy):
    """Fails in its second step as it is told to, at `seed` 1 alone."""

    fault = "raise"

    def step(self, action: Any) -> Any:
        observation, earned, *rest = super().step(action)
        if self.seed == 1 and self.steps == 2:
            raise RuntimeError("the motor\nis hot")
        return observation, earned, *rest


class Hung(Toy):
    """Never comes back from a step."""

    def step(self, action: Any) -> Any:
        threading.Event().wait()


class DiesApart(Toy):
    """Ends every process in which it is made but the first."""

    def __init__(self) -> None:
        if multiprocessing.parent_process() is not None:
            os._exit(3)
        super().__init__()


def discrete_toy() -> Toy:
    """Takes choices."""
    return Toy(discrete=True)


def no_environment() -> int:
    """Makes something else."""
    return 3


if "MudreamerToy-v0" not in gymnasium.registry:
    gymnasium.register("MudreamerToy-v0", f"{__name__}:Toy", max_episode_steps=2)
