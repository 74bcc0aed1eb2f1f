"""Every setting of environment and replay changes a run."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.run.trainer import Trainer
from tests import tiny_run
from tests.envs import (
    test_atari_env,
    test_backends_agree,
    test_backgrounds,
    test_envpool_env,
    test_footage,
    test_shifts,
    test_simulators,
    test_tasks,
)
from tests.envs.rollouts import make
from tests.simulators import EACH, needs
from tests.tiny_run import start, step

PATIENCE_SECONDS = 60


@pytest.fixture
def made_envs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The tiny environment in place of the simulators; number and seed of each one made."""
    return tiny_run.patch_envs(monkeypatch)


@pytest.mark.parametrize(
    ("backend", "observation", "shown"),
    [
        pytest.param("envpool", "vector", {"vector"}, marks=needs("envpool")),
        pytest.param("envpool", "pixels", {"image"}, marks=needs("envpool")),
        pytest.param("envpool", "both", {"image", "vector"}, marks=needs("envpool")),
        pytest.param("dm_control", "vector", {"vector"}, marks=needs("dm_control")),
        pytest.param("dm_control", "pixels", {"image"}, marks=needs("dm_control")),
    ],
)
def test_environment_is_the_simulator_asked_for_and_shows_what_is_asked_for(
    backend: str, observation: str, shown: set[str]
) -> None:
    env = make("pendulum_swingup", observation=observation, backend=backend)
    assert type(env) is test_simulators.BACKENDS[backend]
    assert set(env.observation_spec) == set(env.reset().observation) == shown
    env.close()


@pytest.mark.parametrize("backend", EACH)
def test_image_size_is_that_of_the_images(backend: str) -> None:
    env = make("pendulum_swingup", observation="pixels", backend=backend, image_size=84)
    assert env.observation_spec["image"].shape == (3, 84, 84)
    image = env.reset().observation["image"]
    assert image.shape == (1, 3, 84, 84)
    np.testing.assert_array_equal(image[0].transpose(1, 2, 0), env.render(84)[0])
    env.close()
    with pytest.raises(ConfigError, match="image_size must be one of 64, 84, 96, 128, got 32"):
        EnvConfig(image_size=32)


@pytest.mark.parametrize("backend", EACH)
def test_image_width_is_that_of_the_images(backend: str) -> None:
    seen = {}
    for width in (None, 96):
        env = make(
            "pendulum_swingup", observation="pixels", backend=backend, image_width=width,
            render_profile="flat",
        )  # fmt: skip
        seen[width] = env.reset().observation["image"][0]
        assert seen[width].shape == env.observation_spec["image"].shape
        assert env.render().shape == (1, 64, 64, 3)
        env.close()
    assert seen[96].shape == (3, 64, 96)
    # a wider image shows more to both sides of the same height
    difference = np.abs(seen[96][..., 16:80].astype(int) - seen[None])
    assert np.mean(difference > 8) < 0.01
    with pytest.raises(ConfigError, match="image_width must be one of 64, 84, 96, 128, got 1"):
        EnvConfig(image_width=1)


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("repeat", [1, 3])
def test_action_repeat_counts_in_the_steps_of_a_run(tmp_path: Path, repeat: int) -> None:
    with start(tiny_run.config(env={"action_repeat": repeat}, env_steps=120), tmp_path) as run:
        while not run.pace.finished:
            run.count(run.collector.collect(1))
        assert (run.pace.env_steps, run.counters.policy_steps) == (120, 120 // repeat)


@pytest.mark.parametrize("number", [1, 3])
def test_num_envs_act_side_by_side(
    tmp_path: Path, made_envs: list[tuple[int, int]], number: int
) -> None:
    with start(tiny_run.config(env={"num_envs": number}), tmp_path) as run:
        run.count(run.collector.collect(1))
        assert run.counters.policy_steps == number
        assert len(run.replay) == 2 * number
        run.evaluator.score_random_policy()
    assert [made for made, _ in made_envs] == [number] * 2


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("capacity", [40, 60])
def test_capacity_is_how_many_steps_are_kept(tmp_path: Path, capacity: int) -> None:
    with start(tiny_run.config(replay={"capacity_steps": capacity}), tmp_path) as run:
        for _ in range(40):
            run.count(run.collector.collect(1))
        assert (len(run.replay), run.replay.steps_added) == (capacity, 82)


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("sizes", [(3, 5), (4, 7)])
def test_batches_are_of_the_sizes_asked_for(tmp_path: Path, sizes: tuple[int, int]) -> None:
    replay = {"batch_size": sizes[0], "batch_length": sizes[1]}
    with start(tiny_run.config(replay=replay, train_ratio=5.0), tmp_path) as run:
        step(run, 20)
        assert run.batches.next()["vector"].shape == (*sizes, 3)
        # Larger batches make for fewer updates.
        owed = run.counters.learning_policy_steps * 5.0 / (sizes[0] * sizes[1])
        assert run.agent.updates + run.counters.update_credit == pytest.approx(owed)


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("ahead", [0, 3])
def test_batches_ahead_are_pending(tmp_path: Path, ahead: int) -> None:
    with start(tiny_run.config(replay={"batches_ahead": ahead}), tmp_path) as run:
        step(run, 12)
        run.batches.next()
        assert len(run.batches.pending()) == ahead


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("threads", [1, 3])
def test_gather_threads_copy_a_batch(tmp_path: Path, threads: int) -> None:
    tasks = Path("/proc/self/task")
    with start(tiny_run.config(replay={"gather_threads": threads}), tmp_path) as run:
        for _ in range(20):
            run.count(run.collector.collect(1))
        copier = threading.Thread(target=sample_until, args=(run, done := threading.Event()))
        before = len(list(tasks.iterdir()))
        copier.start()
        most, until = 0, time.monotonic() + (PATIENCE_SECONDS if threads > 1 else 1)
        while most < threads and time.monotonic() < until:
            most = max(most, len(list(tasks.iterdir())) - before)
        done.set()
        copier.join()
    assert most == threads


def sample_until(run: Trainer, done: threading.Event) -> None:
    """Draws batches of some 8 MB, each worth several threads."""
    while not done.is_set():
        run.replay.sample(20_000, 16)


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_storage_is_where_the_replay_lies(tmp_path: Path, storage: str) -> None:
    with start(tiny_run.config(replay={"storage": storage}), tmp_path) as run:
        step(run, 12)
        run.save()
        assert any((tmp_path / "replay").glob("segment-*")) == (storage == "disk")
    saved = checkpoint.load(tmp_path / "checkpoint")
    assert ("replay" in saved) == (storage == "memory")


@pytest.mark.usefixtures("made_envs")
def test_flushes_come_as_often_as_they_are_asked_for(tmp_path: Path) -> None:
    often, never = (
        tiny_run.config(replay={"storage": "disk", "flush_every_seconds": seconds})
        for seconds in (0.01, 1e6)
    )
    with start(never, tmp_path / "never") as one, start(often, tmp_path / "often") as other:
        for run in (one, other):
            run.count(run.collector.collect(1))
        until = time.monotonic() + PATIENCE_SECONDS
        while not any((tmp_path / "often" / "replay").glob("segment-*")):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert not any((tmp_path / "never" / "replay").glob("segment-*"))


SHOWN = {
    "env.task": test_tasks.test_every_task_is_made_by_envpool_with_dm_controls_vector,
    "env.observation": (test_environment_is_the_simulator_asked_for_and_shows_what_is_asked_for),
    "env.action_repeat": (
        test_simulators.test_a_policy_step_is_its_simulator_steps_with_rewards_added,
        test_action_repeat_counts_in_the_steps_of_a_run,
    ),
    "env.num_envs": test_num_envs_act_side_by_side,
    "env.image_size": test_image_size_is_that_of_the_images,
    "env.image_width": test_image_width_is_that_of_the_images,
    "env.camera": test_simulators.test_images_are_of_the_present_state_and_the_camera_asked_for,
    "env.backend": (test_environment_is_the_simulator_asked_for_and_shows_what_is_asked_for),
    "env.render_profile": (
        test_backends_agree.test_profiles_change_what_is_seen,
        test_backends_agree.test_backends_draw_the_same_in_every_profile,
    ),
    "env.background": (
        test_backgrounds.test_a_video_plays_and_another_one_follows,
        test_backgrounds.test_noise_is_new_in_every_image_and_a_colour_in_every_episode,
    ),
    "env.background_videos": (
        test_footage.test_settings_say_which_videos_and_how_much_of_them,
        test_footage.test_without_videos_clips_are_drawn_that_move_and_differ,
    ),
    "env.background_set": test_footage.test_settings_say_which_videos_and_how_much_of_them,
    "env.background_mask": test_backgrounds.test_simulators_keep_their_robot_and_lose_the_rest,
    "env.background_start": test_backgrounds.test_a_video_plays_and_another_one_follows,
    "env.background_advance": test_backgrounds.test_a_video_plays_and_another_one_follows,
    "env.color_shift": test_shifts.test_shifts_change_what_is_seen_and_nothing_else,
    "env.camera_shift": test_shifts.test_shifts_change_what_is_seen_and_nothing_else,
    "env.moving_shifts": test_shifts.test_colors_keep_to_their_bounds_and_move_if_asked,
    "env.background_grey": test_footage.test_grey_is_the_luminance_in_every_channel,
    "env.background_max_videos": test_footage.test_settings_say_which_videos_and_how_much_of_them,
    "env.background_max_frames": test_footage.test_settings_say_which_videos_and_how_much_of_them,
    "env.atari_noops": test_atari_env.test_frames_without_action_and_sticky_actions_are_drawn,
    "env.atari_sticky": test_atari_env.test_frames_without_action_and_sticky_actions_are_drawn,
    "env.atari_life_loss": (
        test_atari_env.test_a_lost_life_is_an_end_to_learn_from_where_asked_for
    ),
    "env.atari_sign_rewards": (
        test_atari_env.test_signs_of_rewards_are_learned_from_and_rewards_count
    ),
    "env.simulator_threads": (
        test_envpool_env.test_envpool_env_gives_the_same_on_any_number_of_threads
    ),
    "replay.capacity_steps": test_capacity_is_how_many_steps_are_kept,
    "replay.batch_size": test_batches_are_of_the_sizes_asked_for,
    "replay.batch_length": test_batches_are_of_the_sizes_asked_for,
    "replay.gather_threads": test_gather_threads_copy_a_batch,
    "replay.batches_ahead": test_batches_ahead_are_pending,
    "replay.storage": test_storage_is_where_the_replay_lies,
    "replay.flush_every_seconds": test_flushes_come_as_often_as_they_are_asked_for,
}
"""The test that shows two values of a setting to make for other runs."""
