"""Colours and cameras that differ between episodes, as in the Distracting Control Suite.

After Stone et al., "The Distracting Control Suite" (arXiv 2101.02722), and its program; its third
shift, of the background, is `backgrounds`. A strength of 0.1 is called easy there, 0.2 medium and
0.3 hard. A shift is drawn anew for each episode; one that moves goes on as a random walk.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mudreamer_fast.config import ConfigError, EnvConfig

Array = np.ndarray[Any, np.dtype[np.float64]]

_STREAM = 0x5417
"""Keeps the draws of shifts apart from others of the same seed."""
_FOLLOWING = (1, 2)
"""Modes of MuJoCo's cameras that move with a body (track, trackcom)."""
_ROBOT = 1
"""Body whose centre of mass, with all that hangs on it, cameras look at."""


def shifts_anything(config: EnvConfig) -> bool:
    """Whether colours or cameras are to differ between episodes."""
    return config.color_shift > 0 or config.camera_shift > 0


class Shifts:
    """The shifts of one environment of dm_control.

    Args:
        config: how strong they are, and whether they move.
        camera: the one that films the robot.
        seed: of the draws, or what the environment's starting states are drawn with.

    Raises:
        ConfigError: a camera that stands nowhere is to be shifted.
    """

    def __init__(self, config: EnvConfig, camera: int, seed: int | np.random.RandomState) -> None:
        self._parts: list[ColorShift | CameraShift] = []
        if not shifts_anything(config):
            return
        if config.camera_shift and camera < 0:
            raise ConfigError(f"{config.task} has no camera to shift")
        number = seed.randint(2**31) if isinstance(seed, np.random.RandomState) else seed
        rng = np.random.default_rng([number, _STREAM])
        if config.color_shift:
            self._parts.append(ColorShift(config.color_shift, config.moving_shifts, rng))
        if config.camera_shift:
            from_above = not config.task.startswith("dmc/reacher")
            strength, moving = config.camera_shift, config.moving_shifts
            self._parts.append(CameraShift(strength, moving, camera, from_above, rng))

    def begin(self, physics: Any) -> None:
        """Draws shifts for an episode whose first state is there."""
        for part in self._parts:
            part.begin(physics)

    def move(self, physics: Any) -> None:
        """Goes on after a simulator step."""
        for part in self._parts:
            part.move(physics)


class ColorShift:
    """Each colour of each material, within `strength` of its own.

    Args:
        strength: 1 reaches all colours.
        moving: whether colours walk within their bounds, by 0.03 `strength` a step.
        rng: of the draws.
    """

    def __init__(self, strength: float, moving: bool, rng: np.random.Generator) -> None:
        self._strength, self._rng = strength, rng
        self._step = 0.03 * strength if moving else 0.0
        self._model: Any = None

    def begin(self, physics: Any) -> None:
        """Draws colours."""
        if self._model is not physics.model:
            self._model = physics.model
            own = np.array(physics.model.mat_rgba[:, :3])
            self._low = np.clip(own - self._strength, 0.0, 1.0)
            self._high = np.clip(own + self._strength, 0.0, 1.0)
        share = self._rng.uniform(size=self._low.shape)
        self._show(self._low + share * (self._high - self._low))

    def move(self, physics: Any) -> None:
        """Takes a step of the walk."""
        if self._step:
            drawn = self._rng.standard_normal(self._low.shape)
            self._show(np.clip(self._colors + self._step * drawn, self._low, self._high))

    def _show(self, colors: Array) -> None:
        self._colors = colors
        self._model.mat_rgba[:, :3] = colors


class CameraShift:
    """A camera on a sphere around what it looks at, shifted, rolled and zoomed.

    With strength s: both angles within 90 s degrees of its own, roll within 90 s degrees of none,
    the distance from 1 - s / 2 to 1 + 1.5 s times its own.

    Args:
        strength: s.
        moving: whether it moves, by up to 0.4 s a step at a distance of 4, and rolls.
        camera: its number.
        from_above: whether it stays above the ground and before the robot, where it starts there.
        rng: of the draws.
    """

    def __init__(
        self, strength: float, moving: bool, camera: int, from_above: bool, rng: np.random.Generator
    ) -> None:
        self._strength, self._camera, self._rng = strength, camera, rng
        self._from_above = from_above
        pace = strength if moving else 0.0
        self._speed, self._speed_step = 0.4 * pace, 0.1 * pace
        self._roll_speed, self._roll_step = np.pi / 50 * pace, np.pi / 300 * pace

    def begin(self, physics: Any) -> None:
        """Draws a place and a velocity."""
        data, s, rng = physics.data, self._strength, self._rng
        self._follows = physics.model.cam_mode[self._camera] in _FOLLOWING
        self._looked_at = self._target(data)
        place = np.array(data.cam_xpos[self._camera])
        if self._follows:
            place -= data.subtree_com[_ROBOT]
        distance, around, above = own = _spherical(place)
        reach = np.array([0.0, np.pi / 2 * s, np.pi / 2 * s])
        self._low, self._high = own - reach, own + reach
        self._low[0], self._high[0] = distance * (1 - 0.5 * s), distance * (1 + 1.5 * s)
        if self._from_above:
            if -np.pi <= around <= 0:
                self._low[1], self._high[1] = max(self._low[1], -np.pi), min(self._high[1], 0.0)
            if 0 <= above <= np.pi / 2:
                self._low[2], self._high[2] = max(self._low[2], 0.0), min(self._high[2], np.pi / 2)
        around, above, distance = (rng.uniform(self._low[i], self._high[i]) for i in (1, 2, 0))
        self._place = np.array([distance, around, above])
        self._most_roll = np.pi / 2 * s
        self._roll = rng.uniform(-self._most_roll, self._most_roll)
        self._scale = own[0] / 4
        heading = rng.standard_normal(3)
        self._velocity = heading / np.linalg.norm(heading) * rng.uniform(0.0, self._speed)
        self._rolling = rng.uniform(-self._roll_speed, self._roll_speed)
        self.move(physics)

    def move(self, physics: Any) -> None:
        """Takes a step of the walk, and looks at the robot from there."""
        rng, most = self._rng, self._speed * self._scale
        self._velocity += rng.standard_normal(3) * self._speed_step * self._scale
        self._rolling += rng.standard_normal() * self._roll_step
        speed = np.linalg.norm(self._velocity)
        if speed > most:
            self._velocity *= most / speed
        self._rolling = np.clip(self._rolling, -self._roll_speed, self._roll_speed)
        before = _cartesian(self._place)
        self._place = np.clip(_spherical(before + self._velocity), self._low, self._high)
        after = _cartesian(self._place)
        self._velocity = after - before
        rolled = np.clip(self._roll + self._rolling, -self._most_roll, self._most_roll)
        self._roll, self._rolling = rolled, rolled - self._roll
        data, looked_at = physics.data, self._looked_at
        if self._follows:
            after = after + data.subtree_com[_ROBOT]
            looked_at = self._target(data)
        look = _upright if self._from_above else _shortest
        view = look(looked_at - after) @ _rotation(np.array([0.0, 0.0, 1.0]), self._roll)
        data.cam_xpos[self._camera] = after
        data.cam_xmat[self._camera] = view.ravel()

    def _target(self, data: Any) -> Array:
        """The point in the middle of the picture, as far away as the robot."""
        place = data.cam_xpos[self._camera]
        distance = np.linalg.norm(place - data.subtree_com[_ROBOT])
        axis = np.reshape(data.cam_xmat[self._camera], (3, 3))[:, 2]  # cameras look against it
        return np.asarray(place - distance * axis)


def _spherical(place: Array) -> Array:
    """Distance, angle around the vertical axis, and angle from it."""
    x, y, z = place
    return np.array([np.linalg.norm(place), np.arctan2(y, x), np.arctan2(np.hypot(x, y), z)])


def _cartesian(place: Array) -> Array:
    distance, around, above = place
    flat = distance * np.sin(above)
    return np.array([flat * np.cos(around), flat * np.sin(around), distance * np.cos(above)])


def _upright(direction: Array) -> Array:
    """Orientation of a camera that looks along a direction and keeps the horizon level."""
    x, y, z = direction
    pitch = np.arctan2(z, np.hypot(x, y)) + np.pi / 2
    turn = _rotation(np.array([0.0, 0.0, 1.0]), -np.arctan2(x, y))
    return np.asarray(turn @ _rotation(np.array([1.0, 0.0, 0.0]), pitch))


def _shortest(direction: Array) -> Array:
    """Orientation of a camera that turned from looking down by the shortest way."""
    down, direction = np.array([0.0, 0.0, -1.0]), direction / np.linalg.norm(direction)
    axis = np.cross(down, direction)
    sine, cosine = float(np.linalg.norm(axis)), float(down @ direction)
    return _rotation(axis / (sine + 1e-4), np.arctan2(sine, cosine))


def _rotation(axis: Array, angle: float) -> Array:
    """Rodrigues' formula: the rotation about an axis of length 1."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(
        np.cos(angle) * np.eye(3)
        + np.sin(angle) * cross
        + (1 - np.cos(angle)) * np.outer(axis, axis)
    )
