"""Environments of dm_control's composer, by their function's name."""

from __future__ import annotations

import numpy as np
import pytest

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs.dmc_simulator import DmcSimulator
from tests.simulators import needs

pytestmark = needs("dm_control")

TOY = "dmc:tests.envs.composer_toy:"


def simulator(name: str, seed: int = 3) -> DmcSimulator:
    return DmcSimulator(EnvConfig(f"{TOY}{name}", "both", action_repeat=2), seed)


def episode(made: DmcSimulator, steps: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Vectors and images of an episode's first steps under full power."""
    made.reset()
    vectors, images = [made.vector()], [made.image((64, 64)).copy()]
    for _ in range(steps):
        step = made.step(np.ones(made.action_size, np.float32))
        vectors.append(made.vector())
        images.append(made.image((64, 64)).copy())
        assert not step.is_last
        # two simulator steps, each rewarded by the place it leads to
        assert vectors[-2][0] < step.reward / 2 < vectors[-1][0]
    return vectors, images


def test_a_composers_environment_is_seen_anew_where_its_model_is_built_anew() -> None:
    made = simulator("push")
    assert (made.action_size, made.vector_size) == (1, 1)  # its own picture is no number
    first, second = episode(made), episode(made)
    np.testing.assert_array_equal(first[0], second[0])  # the same force on the same mass
    for images in (first[1], second[1]):
        assert images[0].shape == (64, 64, 3)
        assert not np.array_equal(images[0], images[-1])  # the box moves
    assert not np.array_equal(first[1][0], second[1][0])  # and has another look
    again = episode(simulator("push"))
    np.testing.assert_array_equal(again[1], first[1])
    made.close()


@pytest.mark.parametrize("name", ["push_by_seed", "push_by_anything"])
def test_a_function_may_call_its_seed_otherwise(name: str) -> None:
    made = simulator(name)
    made.reset()
    assert made.vector().shape == (1,)
    made.close()


def test_a_function_that_takes_no_seed_is_refused_in_one_line() -> None:
    message = (
        "push_without_a_seed must take a seed as an argument named random or random_state or seed, "
        "and takes strength"
    )
    with pytest.raises(ConfigError, match=message):
        simulator("push_without_a_seed")


def test_actions_without_bounds_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="takes actions without bounds: give its motors a ctrlra"):
        simulator("push_without_bounds")


def test_what_is_no_environment_of_dm_controls_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="must make an environment of dm_control"):
        simulator("no_environment")
