"""One Gymnasium environment as the agent sees it: made, translated, and held to its contract."""

from __future__ import annotations

import difflib
import os
import signal
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs import graphics
from mudreamer_fast.envs.crafter_env import CrafterEnv
from mudreamer_fast.envs.factories import Factory, import_factory, import_module
from mudreamer_fast.envs.gym_spaces import ActionTranslator, ObservationTranslator, to_image
from mudreamer_fast.envs.render_profile import ProfileName, apply_to_model
from mudreamer_fast.envs.tasks import CRAFTER, GYMNASIUM
from mudreamer_fast.envs.vector_env import EnvError, FloatArray, Frames

SUCCESS = ("is_success", "success")
LOG = "log_"
"""Numbers that `info` has under these names, or names that begin so, as an episode ends, go to the
metrics: the first two are usual, the last is the way of DreamerV3's environments."""


class GymMaker:
    """Makes one of N environments, in this process or in one of its own.

    Args:
        config: task and observation.
        factory: makes the environment; None makes it by the task's name.
        index: its place among the N.
    """

    def __init__(self, config: EnvConfig, factory: Factory | None, index: int) -> None:
        self._config, self._factory, self._index = config, factory, index
        self._process = os.getpid()

    def __call__(self) -> GymSimulator:
        """Makes it."""
        if os.getpid() != self._process:
            # what asks a whole job to stop asks its workers too, which is the parent's business
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        return GymSimulator(self._config, self._factory, self._index)


class GymSimulator(gymnasium.Env):  # type: ignore[misc]
    """A Gymnasium environment with action repeat, the agent's observations and its actions.

    Args:
        config: task and observation.
        factory: makes the environment; None makes it by the task's name.
        index: its place among the N, for messages.

    Raises:
        ConfigError: it does not exist, or shows or takes what the agent cannot see or do.
    """

    def __init__(self, config: EnvConfig, factory: Factory | None, index: int) -> None:
        self._task, self._place = config.task, f"environment {index} of {config.task}"
        self._index, self._repeat, self._shape = index, config.action_repeat, config.image_shape
        self._env = _made(config, factory)
        self.metadata = dict(self._env.metadata or {})
        self.render_mode = self._env.render_mode
        self._draws = self.render_mode == "rgb_array"
        self._actions = ActionTranslator(self._env.action_space, config.task)
        self.action_spec = self._actions.spec
        self._seen = ObservationTranslator(
            self._env.observation_space, config.observation, self._shape, config.task
        )
        self.left_out = self._seen.left_out
        rendered = config.observation != "vector" and self._seen.image_path is None
        self.render_profile = _settled(self._env, config.render_profile, rendered)
        """How MuJoCo draws, where it does; None for what is drawn by others."""
        shown: dict[str, Any] = {}
        if config.observation != "vector":
            if self._seen.image_path is None and not self._draws:
                raise ConfigError(
                    f"{config.task} shows no image and draws none: train with "
                    "--env.observation vector, or make it with render_mode='rgb_array'"
                )
            shown["image"] = spaces.Box(0, 255, (3, *self._shape), np.uint8)
        if config.observation != "pixels":
            shown["vector"] = spaces.Box(-np.inf, np.inf, (self._seen.vector_size,), np.float32)
        self.observation_space = spaces.Dict(shown)
        self.action_space = spaces.Box(-1, 1, (self.action_spec.size,), np.float32)
        self._observation: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts a new episode."""
        came = self._call("reset", seed=seed, options=options)
        if not isinstance(came, tuple) or len(came) != 2 or not isinstance(came[1], dict):
            raise self._fault(f"reset must give (observation, info), got {_kind(came)}")
        return self._see(came[0]), {}

    def step(self, action: FloatArray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Takes an action (A,) `action_repeat` times, or until the episode is over."""
        taken, total = self._actions(action), 0.0
        for _ in range(self._repeat):
            came = self._call("step", taken)
            if not isinstance(came, tuple) or len(came) != 5:
                raise self._fault(
                    "step must give (observation, reward, terminated, truncated, info), "
                    f"got {_kind(came)}"
                )
            observation, reward, terminated, truncated, info = came
            total += self._reward(reward)
            for name, flag in (("terminated", terminated), ("truncated", truncated)):
                if not isinstance(flag, bool | np.bool_):
                    raise self._fault(f"{name} must be a bool, got {_kind(flag)}")
            if terminated or truncated:
                break
        facts = _facts(info) if terminated or truncated else {}
        return self._see(observation), total, bool(terminated), bool(truncated), facts

    def _reward(self, reward: Any) -> float:
        if isinstance(reward, np.ndarray) and reward.size == 1:
            reward = reward.item()
        if not isinstance(reward, Real | np.number | np.bool_):
            raise self._fault(f"its reward must be a number, got {_kind(reward)}")
        number = float(reward)
        if not abs(number) < float(np.finfo(np.float32).max):
            raise self._fault(f"its reward is {number:g}")
        return number

    def picture(self, size: int, indices: Sequence[int]) -> Frames | None:
        """A picture (size, size, 3) of the present state; None where others are asked for."""
        if self._index not in indices:
            return None
        if self._draws:
            return np.moveaxis(self._drawn((size, size)), 0, 2)
        if self._seen.image_path is not None:
            seen = np.moveaxis(self._seen.image(self._observation), 0, 2)
            return np.moveaxis(to_image(seen, (size, size), "its image"), 0, 2)
        raise self._fault("it draws no pictures: make it with render_mode='rgb_array'")

    def close(self) -> None:
        """Ends the environment."""
        self._env.close()

    def _see(self, observation: Any) -> dict[str, Any]:
        self._observation = observation
        seen: dict[str, Any] = {}
        try:
            if "image" in self.observation_space.spaces:
                rendered = self._seen.image_path is None
                seen["image"] = (
                    self._drawn(self._shape) if rendered else self._seen.image(observation)
                )
            if "vector" in self.observation_space.spaces:
                seen["vector"] = self._seen.vector(observation)
        except EnvError as error:
            if str(error).startswith(self._place):
                raise
            raise self._fault(str(error)) from None
        return seen

    def _drawn(self, shape: tuple[int, int]) -> Frames:
        frame = self._call("render")
        try:
            return to_image(frame, shape, "its rendered picture")
        except EnvError as error:
            raise self._fault(str(error)) from None

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self._env, name)(*arguments, **options)
        except Exception as error:
            raise self._fault(f"{name} raised {type(error).__name__}: {error}") from error

    def _fault(self, what: str) -> EnvError:
        return EnvError(" ".join(f"{self._place} failed: {what}".split()))


def _settled(
    env: Any, profile: ProfileName | Literal["auto"], rendered: bool
) -> ProfileName | None:
    """Has MuJoCo draw by a profile, which is given back where what it draws is observed."""
    model = getattr(env.unwrapped, "model", None)
    if type(model).__name__ != "MjModel":
        return None
    chosen = graphics.prepare(profile) if rendered else graphics.video_profile(profile)
    apply_to_model(model, chosen)
    return chosen if rendered else None


def _facts(info: Any) -> dict[str, float]:
    """What is told of an episode at its end: numbers of certain names, without the `log_`."""
    facts = {}
    for name, told in info.items() if isinstance(info, dict) else ():
        if isinstance(name, str) and (name in SUCCESS or name.startswith(LOG)):
            number = np.asarray(told)
            if number.size == 1 and number.dtype.kind in "biuf" and np.isfinite(number).all():
                facts["success" if name in SUCCESS else name.removeprefix(LOG)] = number.item()
    return {name: float(number) for name, number in facts.items()}


def _kind(value: Any) -> str:
    """What came, in a few words."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(part).__name__ for part in value)})"
    return f"{type(value).__name__} {value!r}"[:100]


def _made(config: EnvConfig, factory: Factory | None) -> Any:
    task = config.task
    if factory is None:
        if task.startswith(CRAFTER):
            return CrafterEnv(config)
        factory = _found(task)
    try:
        env = factory()
    except ConfigError:
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{task} cannot be made: {said}") from None
    if not isinstance(env, gymnasium.Env):
        raise ConfigError(f"{task} must make a gymnasium.Env, got {type(env).__name__}")
    return env


def _found(task: str) -> Factory:
    module, _, name = task.removeprefix(GYMNASIUM).rpartition(":")
    if "<" in name:
        raise ConfigError(
            f"{task} was made by a function that has no name to import: go on in Python, with env="
        )
    if module:
        imported = import_module(task, module)
        if name not in gymnasium.registry and hasattr(imported, name.split(".")[0]):
            return import_factory(task, module, name)
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        close = difflib.get_close_matches(name, gymnasium.registry, n=3, cutoff=0.5)
        if close:
            hint = f"did you mean {' or '.join(GYMNASIUM + match for match in close)}?"
        elif module:
            hint = f"module {module!r} neither registers it nor has a function of this name"
        else:
            hint = "a package that registers it when it is imported is named as in gym:MODULE:ID"
        said = str(error).split(". ")[0].rstrip(".") if not close else "no such environment"
        raise ConfigError(f"there is no task {task!r}: {said}; {hint}") from None

    def make() -> Any:
        options = {"render_mode": "rgb_array"} if _draws_arrays(spec) else {}
        return gymnasium.make(spec, disable_env_checker=True, **options)

    return make


def _draws_arrays(spec: Any) -> bool:
    creator = spec.entry_point
    if isinstance(creator, str):
        creator = gymnasium.envs.registration.load_env_creator(creator)
    metadata = getattr(creator, "metadata", None)
    return isinstance(metadata, dict) and "rgb_array" in metadata.get("render_modes", ())
