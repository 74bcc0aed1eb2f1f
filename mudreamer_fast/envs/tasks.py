"""The tasks that can be run, and what the simulators call them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from mudreamer_fast.config import ConfigError

EPISODE_SIMULATOR_STEPS = 1000
"""Length of every DeepMind Control episode; only the time limit ends it."""


@dataclass(frozen=True)
class Task:
    """One task of the DeepMind Control Suite."""

    domain: str
    """dm_control's domain, such as walker."""
    name: str
    """dm_control's task, such as walk."""
    observation_keys: tuple[str, ...]
    """dm_control's observations in its order: EnvPool gives more of them in some tasks."""
    camera: int
    """Camera that films the robot by default."""
    cameras: int
    """Number of cameras the model has."""

    @property
    def full_name(self) -> str:
        """The project's name, such as dmc/walker_walk."""
        return f"dmc/{self.domain}_{self.name}"

    @property
    def envpool_id(self) -> str:
        """EnvPool's name, such as WalkerWalk-v1."""
        words = f"{self.domain}_{self.name}".split("_")
        return "".join(word.capitalize() for word in words) + "-v1"


_POSITION = ("position", "velocity")
_FINGER_TURN = ("position", "velocity", "touch", "target_position", "dist_to_target")
_QUADRUPED = ("egocentric_state", "torso_velocity", "torso_upright", "imu", "force_torque")
_WALKER = ("orientations", "height", "velocity")
_REACHER = ("position", "to_target", "velocity")

_DOMAINS: dict[str, dict[str, tuple[str, ...]]] = {
    "acrobot": {"swingup": ("orientations", "velocity")},
    "ball_in_cup": {"catch": _POSITION},
    "cartpole": dict.fromkeys(
        ("balance", "balance_sparse", "swingup", "swingup_sparse"), _POSITION
    ),
    "cheetah": {"run": _POSITION},
    "finger": {
        "spin": (*_POSITION, "touch"),
        "turn_easy": _FINGER_TURN,
        "turn_hard": _FINGER_TURN,
    },
    "hopper": dict.fromkeys(("hop", "stand"), (*_POSITION, "touch")),
    "pendulum": {"swingup": ("orientation", "velocity")},
    "quadruped": dict.fromkeys(("run", "walk"), _QUADRUPED),
    "reacher": dict.fromkeys(("easy", "hard"), _REACHER),
    "walker": dict.fromkeys(("run", "stand", "walk"), _WALKER),
}

TASKS: dict[str, Task] = {
    task.full_name: task
    for domain, names in _DOMAINS.items()
    for name, keys in names.items()
    for task in [
        Task(
            domain, name, keys,
            camera=2 if domain == "quadruped" else 0,
            cameras=4 if domain == "quadruped" else 2,
        )
    ]
}  # fmt: skip
"""The 20 tasks of the paper's DeepMind Control experiments, by name."""


def task_names() -> tuple[str, ...]:
    """Names of all tasks, such as dmc/walker_walk."""
    return tuple(TASKS)


def find_task(name: str, camera: int | None = None) -> tuple[Task, int]:
    """The task of a name and the camera to film it with.

    Args:
        name: such as dmc/walker_walk.
        camera: index; None takes the task's usual one.

    Raises:
        ConfigError: an unknown task (close matches are named) or a camera it does not have.
    """
    task = TASKS.get(name)
    if task is None:
        close = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(TASKS)}"
        raise ConfigError(f"there is no task {name!r}: {hint}")
    if camera is None:
        camera = task.camera
    if not 0 <= camera < task.cameras:
        raise ConfigError(
            f"camera of {name} must be in 0..{task.cameras - 1}, got {camera}"
        )  # fmt: skip
    return task, camera
