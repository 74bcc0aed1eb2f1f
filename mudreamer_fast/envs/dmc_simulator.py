"""One DeepMind Control environment on dm_control, in this process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import graphics
from mudreamer_fast.envs.render_profile import apply_to_model
from mudreamer_fast.envs.tasks import find_task
from mudreamer_fast.envs.vector_env import FloatArray, Frames


@dataclass(frozen=True)
class Step:
    """What one policy step of one environment came to."""

    reward: float
    """Summed over the action repeat."""
    is_last: bool
    """The episode is over."""
    is_terminal: bool
    """The episode really ended."""


class DmcSimulator:
    """One task on dm_control, with action repeat and pictures.

    `physics` is dm_control's, for tests that set the state.

    Args:
        config: task and observation.
        seed: of the starting states, or what they are drawn with.

    Raises:
        ConfigError: a task or camera that does not exist.
        EnvError: nothing can be rendered here.
    """

    def __init__(self, config: EnvConfig, seed: int | np.random.RandomState) -> None:
        self._task, self._camera_id = find_task(config.task, config.camera)
        self._repeat = config.action_repeat
        if config.observation != "vector":
            self.render_profile = graphics.prepare(config.render_profile)
        else:
            self.render_profile = graphics.video_profile(config.render_profile)
            if not graphics.try_to_load_egl():
                os.environ["MUJOCO_GL"] = "disable"  # vectors need none, but dm_control looks
        from dm_control import suite

        self._env: Any = suite.load(self._task.domain, self._task.name, {"random": seed})
        self.physics: Any = self._env.physics
        apply_to_model(self.physics.model, self.render_profile)
        spec = self._env.action_spec()
        self.action_size = int(spec.shape[0])
        shown = self._env.observation_spec()
        self.vector_size = sum(
            int(np.prod(shown[key].shape)) for key in self._task.observation_keys
        )
        self._action_half = (spec.maximum - spec.minimum) / 2
        self._action_centre = (spec.maximum + spec.minimum) / 2
        self._observation: dict[str, Any] = {}
        self._cameras: dict[int, Any] = {}

    def reset(self) -> None:
        """Starts a new episode."""
        self._observation = self._env.reset().observation

    def step(self, action: FloatArray) -> Step:
        """Takes an action (A,) in [-1, 1] `action_repeat` times, or until the episode is over."""
        control = self._action_centre + self._action_half * np.clip(action, -1, 1, dtype=float)
        reward = np.float32(0)
        for _ in range(self._repeat):
            shown = self._env.step(control)
            reward += np.float32(shown.reward)
            if shown.last():
                break
        self._observation = shown.observation
        return Step(float(reward), shown.last(), shown.last() and shown.discount == 0)

    def vector(self) -> FloatArray:
        """The state (V,) float32: dm_control's observations in its order."""
        parts = [np.ravel(self._observation[key]) for key in self._task.observation_keys]
        return np.concatenate(parts, dtype=np.float32)

    def image(self, size: int) -> Frames:
        """A picture (size, size, 3) uint8 of the present state."""
        from dm_control.mujoco import engine

        if size not in self._cameras:
            # kept: `physics.render` makes a camera for every picture, at four times the cost
            graphics.prepare(self.render_profile)
            self._cameras[size] = engine.Camera(self.physics, size, size, self._camera_id)
        frame: Frames = self._cameras[size].render()
        return frame

    def close(self) -> None:
        """Gives up the renderer."""
        self.physics.free()
