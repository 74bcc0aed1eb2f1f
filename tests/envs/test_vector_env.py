from __future__ import annotations

import numpy as np
import pytest

from mudreamer_fast.envs import ActionSpec
from mudreamer_fast.envs.vector_env import (
    MAX_RENDER_SIZE,
    check_action,
    check_render,
    check_seed,
    observation_specs,
)

CONTINUOUS = ActionSpec(2, continuous=True)
DISCRETE = ActionSpec(3, continuous=False)


def test_check_action_accepts_the_bounds_and_rounding_beyond_them() -> None:
    check_action(np.array([[-1, 1], [1.00001, 0]], np.float32), 2, CONTINUOUS)
    check_action(np.eye(3, dtype=np.float32), 3, DISCRETE)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ([[0.0, 0.0]], "got list"),
        (np.zeros((3, 2), np.float32), r"shape \(2, 2\), got float32 of shape \(3, 2\)"),
        (np.zeros((2, 3), np.float32), r"shape \(2, 2\), got float32 of shape \(2, 3\)"),
        (np.zeros(4, np.float32), "shape"),
        (np.zeros((2, 2)), "got float64"),
        (np.array([[0, np.nan], [0, 0]], np.float32), "got values from nan"),
        (np.array([[0, np.inf], [0, 0]], np.float32), "to inf"),
        (np.array([[0, -1.1], [0, 0]], np.float32), r"got values from -1\.1"),
    ],
)
def test_check_action_refuses_what_no_simulator_should_see(action: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_action(action, 2, CONTINUOUS)  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [[0, 0, 0], [1, 1, 0], [0.5, 0.5, 0], [2, -1, 0], [np.nan, 1, 0]])
def test_check_action_refuses_what_is_not_one_hot(row: list[float]) -> None:
    with pytest.raises(ValueError, match="one-hot"):
        check_action(np.array([row], np.float32), 1, DISCRETE)


def test_check_render_refuses_sizes_and_indices_beyond_the_buffers() -> None:
    check_render(MAX_RENDER_SIZE, [0, 1, 1], 2)
    for size, indices in [(0, [0]), (MAX_RENDER_SIZE + 1, [0]), (64, [2]), (64, [-1])]:
        with pytest.raises(ValueError, match="must be in"):
            check_render(size, indices, 2)


def test_check_seed_refuses_what_does_not_fit_int32() -> None:
    check_seed(2**31 - 3, 3)
    for seed, num_envs in [(-1, 1), (2**31 - 2, 3), (0, 0)]:
        with pytest.raises(ValueError, match=r"(seed|num_envs) must be"):
            check_seed(seed, num_envs)


def test_observation_specs_hold_what_is_seen_and_no_more() -> None:
    assert set(observation_specs(True, (64, 64), 0)) == {"image"}
    assert set(observation_specs(False, (64, 64), 5)) == {"vector"}
    both = observation_specs(True, (64, 64), 5)
    assert both["image"].shape == (3, 64, 64)
    assert both["image"].dtype == np.uint8
    assert both["vector"].shape == (5,)
    assert both["vector"].dtype == np.float32
