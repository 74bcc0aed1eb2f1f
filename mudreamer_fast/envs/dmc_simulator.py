"""One DeepMind Control environment on dm_control, in this process."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs import graphics
from mudreamer_fast.envs.factories import Factory, import_factory
from mudreamer_fast.envs.render_profile import apply_to_model, draws_green
from mudreamer_fast.envs.shifts import Shifts
from mudreamer_fast.envs.tasks import OWN_TASK, check_camera, find_task
from mudreamer_fast.envs.vector_env import FloatArray, Frames

LARGEST_CONTROL = 1e9
"""MuJoCo says 1e10 of a motor without limits."""
_SEED_ARGUMENTS = ("random", "random_state", "seed")
"""Of functions that make environments; they get a seed or a `numpy.random.RandomState`."""
_LQR_SECONDS = 30.0
"""Its episodes have no end of their own; so they are as long as those of all other tasks."""


@dataclass(frozen=True)
class Step:
    """What one policy step of one environment came to."""

    reward: float
    """Summed over the action repeat."""
    is_last: bool
    """The episode is over."""
    is_terminal: bool
    """The episode really ended."""


def _seed_argument(task: str, factory: Factory) -> str:
    """What a function calls its seed: its own says `random`, dm_control's `random_state`."""
    arguments = inspect.signature(factory).parameters
    for name in _SEED_ARGUMENTS:
        if name in arguments:
            return name
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        return _SEED_ARGUMENTS[0]
    raise ConfigError(
        f"{task} must take a seed as an argument named {' or '.join(_SEED_ARGUMENTS)}, "
        f"and takes {', '.join(arguments) or 'nothing'}"
    )


class DmcSimulator:
    """One task on dm_control, of its suite or the user's own, with action repeat and pictures.

    `physics` is dm_control's, for tests that set the state.

    Args:
        config: task and observation.
        seed: of the starting states, or what they are drawn with.

    Raises:
        ConfigError: a task or camera that does not exist.
        EnvError: nothing can be rendered here.
    """

    def __init__(self, config: EnvConfig, seed: int | np.random.RandomState) -> None:
        self._repeat = config.action_repeat
        self._green = draws_green(config)
        if config.observation != "vector":
            self.render_profile = graphics.prepare(config.render_profile)
        else:
            self.render_profile = graphics.video_profile(config.render_profile)
            if not graphics.can_render():
                os.environ["MUJOCO_GL"] = "disable"  # vectors need none, but dm_control looks
        self._name = config.task
        self._smallest_reward = 0.0
        if config.task.startswith(OWN_TASK):
            self._load_own(config, seed)
        else:
            self._load_from_suite(config, seed)
        self._model: Any = None
        self._cameras: dict[tuple[int, int], Any] = {}
        self._adopt_model()
        self._set_action_bounds()
        self._shifts = Shifts(config, self._camera_id, seed)
        shown = self._env.observation_spec()
        self.vector_size = sum(int(np.prod(shown[key].shape)) for key in self._keys)
        self._observation: dict[str, Any] = {}

    @property
    def physics(self) -> Any:
        """dm_control's simulation."""
        return self._env.physics

    def _load_from_suite(self, config: EnvConfig, seed: int | np.random.RandomState) -> None:
        from dm_control import suite

        task, self._camera_id = find_task(config.task, config.camera)
        options: dict[str, Any] = {"random": seed}
        if task.domain == "lqr":
            options["time_limit"] = _LQR_SECONDS
        self._env: Any = suite.load(task.domain, task.name, options)
        self._keys, self._smallest_reward = task.observation_keys, task.smallest_reward

    def _load_own(self, config: EnvConfig, seed: int | np.random.RandomState) -> None:
        _, module, name = config.task.split(":")
        factory = import_factory(config.task, module, name)
        self._env = factory(**{_seed_argument(config.task, factory): seed})
        if not hasattr(self._env, "physics"):
            raise ConfigError(
                f"{config.task} must make an environment of dm_control, "
                f"got {type(self._env).__name__}"
            )
        # what is drawn, the agent sees as its own picture
        self._keys = tuple(
            key for key, spec in self._env.observation_spec().items() if spec.dtype != np.uint8
        )
        self._camera_id = -1  # the free one, of a model that has none
        if config.camera is not None or self.physics.model.ncam:
            self._camera_id = config.camera or 0
            check_camera(config.task, self._camera_id, self.physics.model.ncam)

    def _set_action_bounds(self) -> None:
        spec = self._env.action_spec()
        low, high = (np.broadcast_to(bound, spec.shape) for bound in (spec.minimum, spec.maximum))
        self.action_size = int(spec.shape[0])
        if max(-low.min(), high.max()) > LARGEST_CONTROL:
            if not self._name.startswith("dmc/"):
                raise ConfigError(
                    f"{self._name} takes actions without bounds: give its motors a ctrlrange"
                )
            low, high = np.full_like(low, -1), np.full_like(high, 1)
        self._action_half, self._action_centre = (high - low) / 2, (high + low) / 2

    def _adopt_model(self) -> None:
        """Takes up the model where there is a new one, as a composer's task may have at a reset."""
        if self._model is not self.physics.model:
            self._model, self._cameras = self.physics.model, {}
            apply_to_model(self._model, self.render_profile, self._green)

    def reset(self) -> None:
        """Starts a new episode."""
        self._observation = self._env.reset().observation
        self._adopt_model()
        self._shifts.begin(self.physics)

    def step(self, action: FloatArray) -> Step:
        """Takes an action (A,) in [-1, 1] `action_repeat` times, or until the episode is over."""
        control = self._action_centre + self._action_half * np.clip(action, -1, 1, dtype=float)
        reward = np.float32(0)
        for _ in range(self._repeat):
            shown = self._env.step(control)
            self._shifts.move(self.physics)
            if shown.reward >= self._smallest_reward or not self._smallest_reward:
                reward += np.float32(shown.reward)
            if shown.last():
                break
        self._observation = shown.observation
        return Step(float(reward), shown.last(), shown.last() and shown.discount == 0)

    def vector(self) -> FloatArray:
        """The state (V,) float32: dm_control's observations in its order."""
        parts = [np.ravel(self._observation[key]) for key in self._keys]
        return np.concatenate([*parts, []], dtype=np.float32)

    def image(self, shape: tuple[int, int]) -> Frames:
        """A picture (height, width, 3) uint8 of the present state."""
        from dm_control.mujoco import engine

        if shape not in self._cameras:
            # kept: `physics.render` makes a camera for every picture, at four times the cost
            graphics.prepare(self.render_profile)
            self._cameras[shape] = engine.Camera(self.physics, *shape, self._camera_id)
        frame: Frames = self._cameras[shape].render()
        return frame

    def close(self) -> None:
        """Gives up the renderer."""
        self.physics.free()
