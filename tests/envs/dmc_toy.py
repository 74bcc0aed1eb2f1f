"""An environment of dm_control of which every byte is known: what it shows is where it is."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from dm_control.mujoco import Physics
from dm_control.rl import control

from tests.envs.gym_toy import ending, pixel, reward

WALL = """
<mujoco>
  <visual>
    <headlight ambient="0 0 0" diffuse="0 0 0" specular="0 0 0"/>
  </visual>
  <asset>
    <material name="glowing" emission="1" specular="0" shininess="0" rgba="1 1 1 1"/>
  </asset>
  <worldbody>
    <camera name="front" pos="0 0 1"/>
    <geom type="plane" size="9 9 1" material="glowing"/>
    <body pos="0 0 5">
      <joint name="rail" type="slide" axis="1 0 0"/>
      <geom type="sphere" size="0.1"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="rail" ctrllimited="true" ctrlrange="-2 2"/>
    <motor joint="rail" ctrllimited="true" ctrlrange="0 10"/>
  </actuator>
</mujoco>
"""
"""A wall that fills the picture and shines by itself; the motors' rail is behind the camera."""


class Known(control.Task):
    """Its vector is seed, episode, step and the action (2,) that led here."""

    def __init__(self, seed: int) -> None:
        self._seed, self._episode, self._step = seed, -1, 0
        self._led_here = np.zeros(2)

    def initialize_episode(self, physics: Any) -> None:
        self._episode, self._step = self._episode + 1, 0
        self._led_here = np.zeros(2)
        self._paint(physics)

    def before_step(self, action: Any, physics: Any) -> None:
        self._step, self._led_here = self._step + 1, np.array(action)

    def after_step(self, physics: Any) -> None:
        self._paint(physics)

    def action_spec(self, physics: Any) -> Any:
        from dm_control.suite.base import mujoco

        return mujoco.action_spec(physics)

    def get_observation(self, physics: Any) -> Any:
        here = [self._seed, self._episode, self._step, *self._led_here]
        return OrderedDict(state=np.array(here))

    def get_reward(self, physics: Any) -> float:
        return reward(self._seed, self._episode, self._step)

    def get_termination(self, physics: Any) -> float | None:
        length, for_good = ending(self._episode)
        return float(not for_good) if self._step == length else None

    def _paint(self, physics: Any) -> None:
        physics.model.mat_rgba[0, :3] = pixel(self._seed, self._episode, self._step) / 255


def known(seed: int) -> Any:
    return control.Environment(Physics.from_xml_string(WALL), Known(seed), control_timestep=0.002)
