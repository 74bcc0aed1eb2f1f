"""Environments: N robots side by side, seen as pixels, vectors or both.

`make_env` picks the simulator; everything else in the project sees `VectorEnv` alone.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs.backgrounds import BackgroundEnv, without_layers
from mudreamer_fast.envs.factories import Factory, remember
from mudreamer_fast.envs.graphics import try_to_load_egl
from mudreamer_fast.envs.shifts import shifts_anything
from mudreamer_fast.envs.tasks import (
    ATARI,
    CRAFTER,
    GYMNASIUM,
    OWN_TASK,
    find_task,
    task_names,
)
from mudreamer_fast.envs.vector_env import (
    ActionSpec,
    ArraySpec,
    EnvError,
    Policy,
    StatefulPolicy,
    VectorEnv,
    VectorStep,
)

__all__ = [
    "ActionSpec",
    "ArraySpec",
    "EnvError",
    "Policy",
    "StatefulPolicy",
    "VectorEnv",
    "VectorStep",
    "make_env",
    "task_names",
    "with_factory",
    "without_layers",
]


def with_factory(config: EnvConfig, factory: Factory | None) -> EnvConfig:
    """The settings with a function's environment in place of their task's; None leaves them.

    Args:
        config: observation and more.
        factory: makes a gymnasium.Env, called without arguments, if need be in another process.
    """
    if factory is None:
        return config
    backend = config.backend if config.backend in ("sync", "async") else "auto"
    return dataclasses.replace(config, task=remember(factory), camera=None, backend=backend)


def _check_front_end(config: EnvConfig) -> None:
    """Refuses settings of one simulator for the tasks of another."""
    backends: tuple[str, ...] = ("auto", "envpool", "dm_control")
    of_dm_control = not config.task.startswith((ATARI, CRAFTER, GYMNASIUM))
    if not of_dm_control:
        game = config.task.startswith(ATARI)
        backends = ("auto", "envpool") if game else ("auto", "sync", "async")
        if config.camera is not None:
            raise ConfigError(f"{config.task} has no cameras to choose from")
        if config.background_mask == "chroma":
            raise ConfigError(f"{config.task} has no sky and floor to draw in green")
    elif config.task.startswith(OWN_TASK):
        backends = ("auto", "dm_control")
    if shifts_anything(config):
        if config.observation == "vector":
            raise ConfigError("shifts of colours and camera need images, got observation 'vector'")
        backends = tuple(name for name in backends if name in ("auto", "dm_control"))
        if not of_dm_control or config.backend not in backends:
            raise ConfigError(
                f"colours and cameras are shifted on dm_control alone, got {config.task} on "
                f"backend {config.backend!r}"
            )
    if config.backend not in backends:
        raise ConfigError(
            f"backend of {config.task} must be {', '.join(backends[:-1])} or {backends[-1]}, "
            f"got {config.backend!r}"
        )


def make_env(config: EnvConfig, num_envs: int, seed: int, env: Factory | None = None) -> VectorEnv:
    """Makes N environments of a task.

    Args:
        config: task, observation, simulator and rendering; its own num_envs is not looked at.
        num_envs: N.
        seed: of environment 0; environment i takes seed + i.
        env: makes a gymnasium.Env that stands in for the task.

    Raises:
        ConfigError: an unknown task, a camera the task does not have, a simulator that is not
            installed, or videos that are not what they should be.
        EnvError: a simulator or renderer that does not work here.
    """
    config = with_factory(config, env)
    made = _make_plain_env(config, num_envs, seed)
    if config.background == "none":
        return made
    try:
        return BackgroundEnv(made, config, seed)
    except BaseException:
        made.close()
        raise


def _make_plain_env(config: EnvConfig, num_envs: int, seed: int) -> VectorEnv:
    """N environments as their simulator shows them."""
    _check_front_end(config)
    if config.task.startswith((CRAFTER, GYMNASIUM)):
        if importlib.util.find_spec("gymnasium") is None:
            extra = "gym" if config.task.startswith(GYMNASIUM) else "crafter"
            raise ConfigError(
                f"{config.task} needs Gymnasium, which is not installed: "
                f"pip install 'mudreamer-fast[{extra}]'"
            )
        from mudreamer_fast.envs.gym_env import GymEnv

        return GymEnv(config, num_envs, seed)
    if config.task.startswith(ATARI):
        try:
            _import_envpool()
        except ImportError as error:
            raise ConfigError(
                f"{config.task} needs EnvPool, which does not import ({error}): "
                "pip install envpool==1.2.5"
            ) from None
        from mudreamer_fast.envs.atari_env import AtariEnv

        return AtariEnv(config, num_envs, seed)
    # a wrong name should not wait for an import
    own = config.task.startswith(OWN_TASK)
    in_envpool = not own and find_task(config.task, config.camera)[0].in_envpool
    missing = []
    if shifts_anything(config):
        missing.append("EnvPool shifts neither colours nor cameras")
    elif config.backend != "dm_control" and not in_envpool:
        missing.append("EnvPool does not play it as dm_control does")
    elif config.backend != "dm_control":
        try:
            _import_envpool()
        except ImportError as error:
            missing.append(f"EnvPool does not import ({error})")
        else:
            from mudreamer_fast.envs.envpool_env import EnvPoolEnv

            return EnvPoolEnv(config, num_envs, seed)
    if config.backend != "envpool":
        if importlib.util.find_spec("dm_control") is not None:
            from mudreamer_fast.envs.dmc_env import DmcEnv

            return DmcEnv(config, num_envs, seed)
        missing.append("dm_control is not installed")
    remedy = "pip install envpool==1.2.5, or dm_control==1.0.38 with mujoco==3.6.0"
    if config.backend == "envpool" and not in_envpool:
        remedy = "train with --env.backend dm_control"
    raise ConfigError(f"no simulator for {config.task}: {' and '.join(missing)}; {remedy}")


def _import_envpool() -> None:
    """Imports EnvPool, behind EGL whatever it is to play: see `graphics.try_to_load_egl`."""
    try_to_load_egl()
    importlib.import_module("envpool")
