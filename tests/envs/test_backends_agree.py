"""EnvPool and dm_control from the same state with the same actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs.dmc_simulator import DmcSimulator
from mudreamer_fast.envs.envpool_env import EnvPoolEnv
from tests.envs.rollouts import random_actions, roll

OBSERVATION_TOLERANCE = 1e-6
"""Rounding to float32 of states that agree to 1e-15, read back from the float32 observation."""
REWARD_TOLERANCE = 1e-6
"""EnvPool's rewards are float32."""


def set_cartpole(physics: Any, vector: np.ndarray[Any, Any]) -> None:
    position, cosine, sine, *velocity = vector
    physics.data.qpos[:] = position, np.arctan2(sine, cosine)
    physics.data.qvel[:] = velocity


def set_reacher(physics: Any, vector: np.ndarray[Any, Any]) -> None:
    physics.data.qpos[:], to_target, physics.data.qvel[:] = vector[:2], vector[2:4], vector[4:]
    physics.forward()
    finger = physics.named.data.geom_xpos["finger", :2]
    physics.named.model.geom_pos["target", :2] = finger + to_target


def set_pendulum(physics: Any, vector: np.ndarray[Any, Any]) -> None:
    physics.data.qpos[:] = np.arctan2(vector[1], vector[0])
    physics.data.qvel[:] = vector[2]


@pytest.mark.parametrize(
    ("task", "set_state", "profile"),
    [
        ("cartpole_swingup", set_cartpole, "reference"),
        ("cartpole_swingup", set_cartpole, "light"),
        ("cartpole_swingup", set_cartpole, "flat"),
        ("reacher_easy", set_reacher, "light"),
        ("pendulum_swingup", set_pendulum, "flat"),
    ],
)
def test_backends_give_the_same_steps_rewards_and_pixels(
    task: str, set_state: Any, profile: Any
) -> None:
    config = EnvConfig(task=f"dmc/{task}", observation="both", render_profile=profile)
    env = EnvPoolEnv(config, 1, seed=3)
    actions = random_actions(env, 12)
    first, *steps = roll(env, actions)
    # after EnvPool's last picture: dm_control takes its context in this thread for current
    simulator = DmcSimulator(config, seed=0)
    simulator.reset()
    with simulator.physics.reset_context():
        set_state(simulator.physics, first.observation["vector"][0].astype(float))
    for action, step in zip(actions, steps, strict=True):
        other = simulator.step(action[0])
        np.testing.assert_allclose(
            step.observation["vector"][0], simulator.vector(), atol=OBSERVATION_TOLERANCE
        )
        np.testing.assert_allclose(step.reward[0], other.reward, atol=REWARD_TOLERANCE)
        image = step.observation["image"][0].transpose(1, 2, 0).astype(int)
        difference = np.abs(image - simulator.image(64))
        # one rounding of a colour in a thousand: the states differ in their last bits
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3
    simulator.close()


def test_profiles_change_what_is_seen() -> None:
    images = []
    for profile in ("reference", "light", "flat"):
        config = EnvConfig(task="dmc/walker_walk", render_profile=profile)  # type: ignore[arg-type]
        images.append(EnvPoolEnv(config, 1, seed=0).reset().observation["image"].astype(int))
    reference, light, flat = images
    for left, right in ((reference, light), (reference, flat), (light, flat)):
        assert (left != right).mean() > 0.02
    # the light profile is the cheap one that looks like the reference
    assert np.abs(reference - light).mean() < np.abs(reference - flat).mean()
