from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs import make_env
from mudreamer_fast.envs.dmc_simulator import DmcSimulator
from mudreamer_fast.envs.shifts import CameraShift, ColorShift
from tests.simulators import needs

pytestmark = [needs("dm_control")]
CHEETAH = EnvConfig("dmc/cheetah_run", action_repeat=2, backend="dm_control", render_profile="flat")


def changed(config: EnvConfig = CHEETAH, **changes: Any) -> EnvConfig:
    return dataclasses.replace(config, **changes)


def play(config: EnvConfig, seed: int = 3, steps: int = 6) -> dict[str, np.ndarray]:
    """Colours, camera, pictures, states and rewards of two short episodes, in one row a step."""
    simulator = DmcSimulator(config, seed)
    rows: list[tuple[Any, ...]] = []
    random = np.random.default_rng(0)
    for _ in range(2):
        simulator.reset()
        reward = 0.0
        for step in range(steps):
            data, model = simulator.physics.data, simulator.physics.model
            camera = np.concatenate([data.cam_xpos[0] - data.subtree_com[1], data.cam_xmat[0]])
            colors = np.array(model.mat_rgba[:, :3])
            rows.append((colors, camera, simulator.image((32, 32)), simulator.vector(), reward))
            if step < steps - 1:
                action = random.uniform(-1, 1, simulator.action_size).astype(np.float32)
                reward = simulator.step(action).reward
    simulator.close()
    names = ("colors", "camera", "image", "state", "reward")
    return {
        name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


RECORDED = {
    "dmc/cheetah_run": (
        [-0.112519, -3.561623, 0.576769],
        [[0.963225, 0.268309, -0.014445], [-0.011437, -0.012771, -0.999853],
         [-0.268454, 0.963248, -0.009233]],
    ),
    "dmc/reacher_easy": (
        [0.313802, -0.031703, 0.761711],
        [[0.888183, 0.255483, 0.381815], [-0.260871, 0.964561, -0.038574],
         [-0.378154, -0.065346, 0.923392]],
    ),
    "dmc/ball_in_cup_catch": (
        [-0.010377, -1.47417, 0.377989],
        [[0.963205, 0.268664, -0.007413], [-0.014903, 0.02585, -0.999555],
         [-0.268353, 0.962887, 0.028903]],
    ),
}  # fmt: skip
"""Places and orientations of a camera, hard and moving, after 20 steps from one sequence of draws,
as the program geyang/gym-distracting-control has them at 83a3c87."""


@pytest.mark.parametrize("task", RECORDED)
def test_a_camera_stands_where_the_suites_own_program_puts_it(task: str) -> None:
    position, matrix = RECORDED[task]
    simulator = DmcSimulator(EnvConfig(task, action_repeat=1, render_profile="flat"), 1)
    from_above = "reacher" not in task
    shift = CameraShift(0.3, True, 0, from_above, np.random.default_rng(7))
    simulator.reset()
    shift.begin(simulator.physics)
    for _ in range(20):
        simulator.step(np.zeros(simulator.action_size, np.float32))
        shift.move(simulator.physics)
    np.testing.assert_allclose(simulator.physics.data.cam_xpos[0], position, atol=1e-6)
    np.testing.assert_allclose(simulator.physics.data.cam_xmat[0], np.ravel(matrix), atol=1e-6)
    simulator.close()


def test_shifts_change_what_is_seen_and_nothing_else() -> None:
    plain = play(CHEETAH)
    shifted = play(changed(color_shift=0.2, camera_shift=0.2, moving_shifts=True))
    assert (plain["colors"] == plain["colors"][0]).all()
    for name in ("state", "reward"):
        np.testing.assert_array_equal(plain[name], shifted[name], err_msg=name)
    for name in ("colors", "camera", "image"):
        assert not np.array_equal(plain[name][0], shifted[name][0]), name


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("strength", [0.1, 0.3])
def test_colors_keep_to_their_bounds_and_move_if_asked(strength: float, moving: bool) -> None:
    own = play(CHEETAH)["colors"][0]
    colors = play(changed(color_shift=strength, moving_shifts=moving))["colors"]
    assert np.abs(colors - own).max() <= strength + 1e-6
    assert np.abs(colors - own).max() > strength / 2
    assert colors.min() >= 0
    assert colors.max() <= 1
    first, second = colors[:6], colors[6:]
    assert not np.array_equal(first[0], second[0])
    for episode in (first, second):
        assert np.array_equal(episode[0], episode[-1]) != moving


@pytest.mark.parametrize("moving", [False, True])
def test_the_camera_keeps_to_its_bounds_and_looks_at_the_robot(moving: bool) -> None:
    strength = 0.3
    plain = play(CHEETAH)["camera"]
    own = np.linalg.norm(plain[0, :3])
    camera = play(changed(camera_shift=strength, moving_shifts=moving))["camera"]
    places, views = camera[:, :3], camera[:, 3:].reshape(-1, 3, 3)
    distance = np.linalg.norm(places, axis=1)
    assert (distance >= own * (1 - strength / 2) - 1e-6).all()
    assert (distance <= own * (1 + 1.5 * strength) + 1e-6).all()
    cosine = (places / distance[:, None]) @ (plain[0, :3] / own)
    assert (np.arccos(cosine) <= np.hypot(1, 1) * np.pi / 2 * strength).all()
    assert (places[:, 2] >= 0).all()
    np.testing.assert_allclose(
        views @ views.transpose(0, 2, 1), np.broadcast_to(np.eye(3), views.shape), atol=1e-9
    )
    # What its own camera had in the middle of the picture is there still: the camera looks at it.
    own_views = plain[:, 3:].reshape(-1, 3, 3)
    middle = plain[:, :3] - np.linalg.norm(plain[:, :3], axis=1)[:, None] * own_views[:, :, 2]
    towards = middle - places
    towards /= np.linalg.norm(towards, axis=1)[:, None]
    np.testing.assert_allclose(-views[:, :, 2], towards, atol=1e-6)
    assert not np.array_equal(places[0], places[6])
    still = np.allclose(places[0], places[5], atol=1e-9)
    assert still != moving


def test_draws_follow_the_seed_and_differ_between_environments() -> None:
    config = changed(color_shift=0.3, camera_shift=0.3, moving_shifts=True)
    one, again, other = play(config, 3), play(config, 3), play(config, 4)
    for name in ("colors", "camera", "image"):
        np.testing.assert_array_equal(one[name], again[name], err_msg=name)
        assert not np.array_equal(one[name], other[name]), name
    env = make_env(changed(config, backend="auto", image_size=64), 2, 3)
    images = env.reset().observation["image"]
    assert not np.array_equal(images[0], images[1])
    env.close()


def test_parts_draw_from_one_generator_that_a_random_state_may_seed() -> None:
    config = changed(color_shift=0.3)
    simulators = [DmcSimulator(config, np.random.RandomState(seed)) for seed in (1, 1, 2)]
    colors = []
    for simulator in simulators:
        simulator.reset()
        colors.append(np.array(simulator.physics.model.mat_rgba))
        simulator.close()
    assert np.array_equal(colors[0], colors[1])
    assert not np.array_equal(colors[0], colors[2])


def test_colors_of_a_new_model_are_shifted_from_its_own() -> None:
    shift = ColorShift(0.1, False, np.random.default_rng(0))
    for task in ("dmc/cheetah_run", "dmc/walker_walk"):
        simulator = DmcSimulator(EnvConfig(task, render_profile="flat"), 0)
        own = np.array(simulator.physics.model.mat_rgba[:, :3])
        shift.begin(simulator.physics)
        shifted = simulator.physics.model.mat_rgba[:, :3]
        assert 0 < np.abs(shifted - own).max() <= 0.1 + 1e-6
        simulator.close()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed(color_shift=0.1, backend="envpool"), "shifted on dm_control alone"),
        (changed(camera_shift=0.1, observation="vector"), "need images, got observation 'vector'"),
        (EnvConfig("gym:CartPole-v1", color_shift=0.1), "shifted on dm_control alone, got gym:Car"),
    ],
)
def test_what_cannot_be_shifted_is_one_line(config: EnvConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_env(config, 1, 0)


@pytest.mark.parametrize("name", ["color_shift", "camera_shift"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_strength_is_a_share(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be"):
        EnvConfig(**{name: value})
