"""A task of dm_control's composer that is built anew for every episode."""

from __future__ import annotations

from typing import Any

import numpy as np
from dm_control import composer
from dm_control.composer.observation import observable


class Push(composer.Task):
    """A box to push along a rail; its colour and size are drawn for every episode."""

    def __init__(self, bounded: bool = True) -> None:
        self._arena = composer.Arena()
        world = self._arena.mjcf_model.worldbody
        self._camera = world.add("camera", name="front", pos=[0, -2, 1], xyaxes=[1, 0, 0, 0, 1, 2])
        box = world.add("body", name="box")
        self._rail = box.add("joint", type="slide", axis=[1, 0, 0], name="rail")
        self._geom = box.add("geom", type="box", size=[0.2] * 3, mass=1)
        motors = self._arena.mjcf_model.actuator
        bounds = {"ctrlrange": [-2, 6], "ctrllimited": True} if bounded else {}
        motors.add("motor", joint=self._rail, **bounds)
        self._shown = {
            "place": observable.MJCFFeature("qpos", self._rail),
            "picture": observable.MJCFCamera(self._camera, height=8, width=8),
        }
        for shown in self._shown.values():
            shown.enabled = True
        self.set_timesteps(control_timestep=0.05, physics_timestep=0.005)

    @property
    def root_entity(self) -> Any:
        return self._arena

    @property
    def task_observables(self) -> Any:
        return self._shown

    def initialize_episode_mjcf(self, random_state: np.random.RandomState) -> None:
        self._geom.size = random_state.uniform(0.2, 0.6, 3)
        self._geom.rgba = [*random_state.uniform(size=3), 1]

    def get_reward(self, physics: Any) -> float:
        return float(physics.bind(self._rail).qpos[0])


def push(random_state: Any) -> Any:
    """As dm_control's own examples call their seed."""
    return composer.Environment(Push(), time_limit=2.0, random_state=random_state)


def push_by_seed(seed: Any) -> Any:
    return push(seed)


def push_by_anything(**options: Any) -> Any:
    return push(options["random"])


def push_without_a_seed(strength: float = 1.0) -> Any:
    return push(0)


def push_without_bounds(random_state: Any) -> Any:
    return composer.Environment(Push(bounded=False), random_state=random_state)


def no_environment(seed: Any) -> int:
    return 3
