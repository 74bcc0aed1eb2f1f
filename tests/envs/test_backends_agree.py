"""EnvPool and dm_control from the same state with the same actions."""

from __future__ import annotations

import numpy as np
import pytest

from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs.envpool_env import EnvPoolEnv
from mudreamer_fast.envs.tasks import PAPERS_TASKS, TASKS
from tests.envs.parity import EPISODE_STEPS, Shown, play_both
from tests.simulators import needs

pytestmark = needs("envpool", "dm_control")

VECTOR_ROUNDING = 2.0**-23
"""The states agree to 1e-15, so that their float32 may lie one rounding apart."""
QUADRUPED_DRIFT = 1e-7
"""Of the quadruped's first quaternion NumPy adds the squares in another order than EnvPool: one
rounding, which grows to 1e-8 over an episode."""
REWARD_TOLERANCE = 2.0**-23
"""Two rewards of up to 1, of which EnvPool has rounded parts to float32 before dm_control does."""


def assert_same_frames(left: list[Shown], right: list[Shown]) -> None:
    for number, (one, other) in enumerate(zip(left, right, strict=True)):
        if one.image is not None:
            assert one.image.std() > 5, "something is to be seen"
            np.testing.assert_array_equal(one.image, other.image, err_msg=f"step {number}")


@pytest.mark.parametrize("task", PAPERS_TASKS)
def test_backends_play_the_same_episode_of_every_task(task: str) -> None:
    frame_steps = {*range(0, EPISODE_STEPS + 1, 10), EPISODE_STEPS + 1}
    left, right = play_both(task, EPISODE_STEPS + 1, "flat", frame_steps)
    drift = QUADRUPED_DRIFT if "quadruped" in task else 0
    for number, (one, other) in enumerate(zip(left, right, strict=True)):
        np.testing.assert_allclose(
            one.vector, other.vector, rtol=VECTOR_ROUNDING, atol=drift, err_msg=f"step {number}"
        )
        assert one.reward == pytest.approx(other.reward, abs=REWARD_TOLERANCE), number
        assert one[2:5] == other[2:5], number
    assert_same_frames(left, right)
    assert [n for n, one in enumerate(left) if one.is_first] == [0, EPISODE_STEPS + 1]
    assert [n for n, one in enumerate(left) if one.is_last] == [EPISODE_STEPS]
    assert sum(one.reward for one in left) > 0, "rewards of 0 would be no comparison"


@pytest.mark.parametrize(
    "task",
    [
        name
        for name, task in TASKS.items()
        if task.in_envpool and name not in PAPERS_TASKS and not task.smallest_reward
    ],
)
def test_backends_play_alike_what_the_paper_does_not(task: str) -> None:
    left, right = play_both(task, 40, "flat", (0, 20, 40))
    drift = QUADRUPED_DRIFT if "quadruped" in task else 0
    for number, (one, other) in enumerate(zip(left, right, strict=True)):
        np.testing.assert_allclose(
            one.vector, other.vector, rtol=VECTOR_ROUNDING, atol=drift, err_msg=f"step {number}"
        )
        assert one.reward == pytest.approx(other.reward, abs=REWARD_TOLERANCE), number
        assert one[2:5] == other[2:5], number
    assert_same_frames(left, right)
    assert (left[0].vector != left[-1].vector).any()


@pytest.mark.parametrize("profile", ["reference", "light"])
@pytest.mark.parametrize(
    "task", ["cartpole_swingup", "finger_turn_easy", "hopper_hop", "quadruped_walk", "reacher_easy"]
)
def test_backends_draw_the_same_in_every_profile(task: str, profile: str) -> None:
    frame_steps = (0, 7, 20)
    assert_same_frames(*play_both(f"dmc/{task}", 20, profile, frame_steps))


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
