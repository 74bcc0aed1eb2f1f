"""Environments: N robots side by side, seen as pixels, vectors or both.

`make_env` picks the simulator; everything else in the project sees `VectorEnv` alone.
"""

from __future__ import annotations

import importlib
import importlib.util

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs.graphics import try_to_load_egl
from mudreamer_fast.envs.tasks import find_task, task_names
from mudreamer_fast.envs.vector_env import (
    ActionSpec,
    ArraySpec,
    EnvError,
    Policy,
    VectorEnv,
    VectorStep,
)

__all__ = [
    "ActionSpec",
    "ArraySpec",
    "EnvError",
    "Policy",
    "VectorEnv",
    "VectorStep",
    "make_env",
    "task_names",
]


def make_env(config: EnvConfig, num_envs: int, seed: int) -> VectorEnv:
    """Makes N environments of a task.

    Args:
        config: task, observation, simulator and rendering; its own num_envs is not looked at.
        num_envs: N.
        seed: of environment 0; environment i takes seed + i.

    Raises:
        ConfigError: an unknown task, a camera the task does not have, or a simulator that is not
            installed.
        EnvError: a simulator or renderer that does not work here.
    """
    find_task(config.task, config.camera)  # a wrong name should not wait for an import
    missing = {}
    if config.backend != "dm_control":
        try_to_load_egl()
        try:
            importlib.import_module("envpool")
        except ImportError as error:
            missing["EnvPool"] = f"EnvPool does not import ({error})"
        else:
            from mudreamer_fast.envs.envpool_env import EnvPoolEnv

            return EnvPoolEnv(config, num_envs, seed)
    if config.backend != "envpool":
        if importlib.util.find_spec("dm_control") is not None:
            from mudreamer_fast.envs.dmc_env import DmcEnv

            return DmcEnv(config, num_envs, seed)
        missing["dm_control"] = "dm_control is not installed"
    raise ConfigError(
        f"no simulator for {config.task}: {' and '.join(missing.values())}; "
        "pip install envpool==1.2.5, or dm_control==1.0.38 with mujoco==3.6.0"
    )
