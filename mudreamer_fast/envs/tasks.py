"""The tasks of the DeepMind Control Suite, and what the simulators call them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from mudreamer_fast.config import ConfigError

OWN_TASK = "dmc:"
"""What the name of a user's own dm_control task starts with: dmc:MODULE:FUNCTION."""
ATARI = "atari/"
"""What the name of an Atari game starts with: atari/NAME."""
GYMNASIUM = "gym:"
"""What the name of a Gymnasium environment starts with."""
CRAFTER = "crafter/"
"""What the names of Crafter's two tasks start with."""
ACHIEVEMENT = "achievement_"
"""What the facts of an episode of Crafter's start with that say whether an achievement was
unlocked in it (0 or 1)."""
EPISODE_SIMULATOR_STEPS = 1000
"""Length of every DeepMind Control episode; in all tasks but lqr only the time limit ends it."""


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
    in_envpool: bool
    """Whether EnvPool plays it as dm_control does, to the last bit of every picture."""
    smallest_reward: float = 0.0
    """What a simulator step earns less than this is taken for nothing."""

    @property
    def full_name(self) -> str:
        """The project's name, such as dmc/walker_walk."""
        sparse = "_sparse" if self.smallest_reward else ""
        return f"dmc/{self.domain}_{self.name}{sparse}"

    @property
    def envpool_id(self) -> str:
        """EnvPool's name, such as WalkerWalk-v1."""
        words = f"{self.domain}_{self.name}".split("_")
        return "".join(word[0].upper() + word[1:] for word in words) + "-v1"


_POSITION = ("position", "velocity")
_FINGER_TURN = ("position", "velocity", "touch", "target_position", "dist_to_target")
_QUADRUPED = ("egocentric_state", "torso_velocity", "torso_upright", "imu", "force_torque")
_WALKER = ("orientations", "height", "velocity")
_REACHER = ("position", "to_target", "velocity")
_HUMANOID = (
    "joint_angles", "head_height", "extremities", "torso_vertical", "com_velocity", "velocity"
)  # fmt: skip
_DOG = (
    "joint_angles", "joint_velocites", "torso_pelvis_height", "z_projection",
    "torso_com_velocity", "inertial_sensors", "foot_forces", "touch_sensors", "actuator_state",
)  # fmt: skip
_ARM = ("arm_pos", "arm_vel", "touch", "hand_pos")

_DOMAINS: dict[str, dict[str, tuple[str, ...]]] = {
    "acrobot": dict.fromkeys(("swingup", "swingup_sparse"), ("orientations", "velocity")),
    "ball_in_cup": {"catch": _POSITION},
    "cartpole": dict.fromkeys(
        (
            "balance", "balance_sparse", "swingup", "swingup_sparse", "two_poles", "three_poles",
        ),
        _POSITION,
    ),
    "cheetah": {"run": _POSITION},
    "dog": {
        **dict.fromkeys(("stand", "walk", "trot", "run"), _DOG),
        "fetch": (*_DOG, "ball_state", "target_position"),
    },
    "finger": {
        "spin": (*_POSITION, "touch"),
        "turn_easy": _FINGER_TURN,
        "turn_hard": _FINGER_TURN,
    },
    "fish": {
        "swim": ("joint_angles", "upright", "target", "velocity"),
        "upright": ("joint_angles", "upright", "velocity"),
    },
    "hopper": dict.fromkeys(("hop", "stand"), (*_POSITION, "touch")),
    "humanoid": {
        **dict.fromkeys(("run", "stand", "walk"), _HUMANOID),
        "run_pure_state": _POSITION,
    },
    "humanoid_CMU": dict.fromkeys(("run", "stand", "walk"), _HUMANOID),
    "lqr": dict.fromkeys(("lqr_2_1", "lqr_6_2"), _POSITION),
    "manipulator": dict.fromkeys(
        ("bring_ball", "bring_peg", "insert_ball", "insert_peg"),
        (*_ARM, "object_pos", "object_vel", "target_pos"),
    ),
    "pendulum": {"swingup": ("orientation", "velocity")},
    "point_mass": dict.fromkeys(("easy", "hard"), _POSITION),
    "quadruped": {
        **dict.fromkeys(("run", "walk"), _QUADRUPED),
        "escape": (*_QUADRUPED, "origin", "rangefinder"),
        "fetch": (*_QUADRUPED, "ball_state", "target_position"),
    },
    "reacher": dict.fromkeys(("easy", "hard"), _REACHER),
    "stacker": dict.fromkeys(("stack_2", "stack_4"), (*_ARM, "box_pos", "box_vel", "target_pos")),
    "swimmer": dict.fromkeys(("swimmer6", "swimmer15"), ("joints", "to_target", "body_velocities")),
    "walker": dict.fromkeys(("run", "stand", "walk"), _WALKER),
}  # fmt: skip
_CAMERAS = {
    "dog": 2, "dog_fetch": 4, "fish": 5, "humanoid": 3, "humanoid_CMU": 3, "quadruped": 4,
    "swimmer": 3,
}  # fmt: skip
"""Cameras of a domain or a task where they are not two."""
_USUAL_CAMERAS = {"quadruped": 2}
"""Of a domain, where it is not 0."""
_SMALLEST_REWARDS = {("cheetah", "run"): 0.25, ("walker", "run"): 0.25, ("walker", "walk"): 0.7}
"""Tasks that also come sparse, with the reward that a step has to earn: those of RE3 (Seo et al.,
arXiv 2102.09430), as its program has them."""
PAPERS_TASKS = tuple(
    f"dmc/{name}"
    for name in (
        "acrobot_swingup", "ball_in_cup_catch", "cartpole_balance", "cartpole_balance_sparse",
        "cartpole_swingup", "cartpole_swingup_sparse", "cheetah_run", "finger_spin",
        "finger_turn_easy", "finger_turn_hard", "hopper_hop", "hopper_stand", "pendulum_swingup",
        "quadruped_run", "quadruped_walk", "reacher_easy", "reacher_hard", "walker_run",
        "walker_stand", "walker_walk",
    )
)  # fmt: skip
"""The 20 tasks of the paper's DeepMind Control experiments, by name."""
GAMES_OF_ATARI_100K = tuple(
    f"{ATARI}{name}"
    for name in (
        "alien", "amidar", "assault", "asterix", "bank_heist", "battle_zone", "boxing", "breakout",
        "chopper_command", "crazy_climber", "demon_attack", "freeway", "frostbite", "gopher",
        "hero", "jamesbond", "kangaroo", "krull", "kung_fu_master", "ms_pacman", "pong",
        "private_eye", "qbert", "road_runner", "seaquest", "up_n_down",
    )
)  # fmt: skip
"""The games of the Atari 100k benchmark (Kaiser et al., arXiv 1903.00374); EnvPool has others."""
_IN_ENVPOOL = {
    *PAPERS_TASKS, "dmc/acrobot_swingup_sparse", "dmc/fish_swim", "dmc/fish_upright",
    "dmc/point_mass_easy", "dmc/point_mass_hard", "dmc/quadruped_fetch", "dmc/swimmer_swimmer6",
    "dmc/swimmer_swimmer15",
}  # fmt: skip
"""What EnvPool plays bit for bit as dm_control does. Of the others it draws starting states
otherwise, or lacks files of the model."""

TASKS: dict[str, Task] = {
    task.full_name: task
    for domain, names in _DOMAINS.items()
    for name, keys in names.items()
    for smallest in (0.0, _SMALLEST_REWARDS.get((domain, name), 0.0))
    for task in [
        Task(
            domain, name, keys,
            camera=_USUAL_CAMERAS.get(domain, 0),
            cameras=_CAMERAS.get(f"{domain}_{name}", _CAMERAS.get(domain, 2)),
            in_envpool=f"dmc/{domain}_{name}" in _IN_ENVPOOL,
            smallest_reward=smallest,
        )
    ]
}  # fmt: skip
"""All tasks by name: those of dm_control's suite, and three sparse ones."""


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
        hint = f"did you mean {' or '.join(close)}?" if close else "mudreamer-fast info lists them"
        raise ConfigError(f"there is no task {name!r}: {hint}")
    if camera is None:
        camera = task.camera
    check_camera(name, camera, task.cameras)
    return task, camera


def check_camera(name: str, camera: int, cameras: int) -> None:
    """Refuses a camera that a task does not have.

    Raises:
        ConfigError: says how many there are.
    """
    if not 0 <= camera < cameras:
        raise ConfigError(f"camera of {name} must be in 0..{cameras - 1}, got {camera}")
