"""What is behind the robot is replaced, and nothing else."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs import backgrounds, make_env, without_layers
from mudreamer_fast.envs.backgrounds import BackgroundEnv, is_background
from mudreamer_fast.run import scoring
from mudreamer_fast.run.scoring import score, uniform_policy
from tests.envs.rollouts import assert_same, make, random_actions, roll, stacked
from tests.simulators import EACH, needs
from tests.tiny_env import IMAGE_SIZE, TinyEnv

BLUE, RED = np.array([10, 20, 30], np.uint8), np.array([200, 20, 30], np.uint8)
ROBOT = slice(0, 8)
"""Rows in which the toy shows its robot."""
STEPS = 40
LENGTHS = (5, 7)
"""Policy steps of its episodes, by environment."""


class Toy(TinyEnv):
    """A red bar before a blue wall."""

    def _next(self, is_first: Any, reward: Any) -> Any:
        step = super()._next(is_first, reward)
        image = np.empty_like(step.observation["image"])
        image[:] = BLUE[:, None, None]
        image[:, :, ROBOT] = RED[:, None, None]
        step.observation["image"] = image
        return step

    def render(self, size: int | None = None, indices: Any = None) -> Any:
        size = size or IMAGE_SIZE
        pictures = np.empty((self.num_envs, size, size, 3), np.uint8)
        pictures[:] = BLUE
        pictures[:, : ROBOT.stop * size // IMAGE_SIZE] = RED
        return pictures if indices is None else pictures[list(indices)]


@pytest.fixture
def footage(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Three videos of 4, 9 and 6 frames; every frame is of one colour of its own."""
    clips, number = [], 0
    for frames in (4, 9, 6):
        colours = np.arange(number, number + frames, dtype=np.uint8)[:, None, None, None]
        clips.append(np.broadcast_to(colours, (frames, 3, IMAGE_SIZE, IMAGE_SIZE)))
        number += frames
    monkeypatch.setattr(backgrounds, "clips", lambda config: clips)
    return clips


def toy(num_envs: int = 2, seed: int = 0, **options: Any) -> BackgroundEnv:
    config = EnvConfig(**({"background": "video", "background_videos": "v"} | options))
    return BackgroundEnv(Toy(num_envs, episode_length=LENGTHS[:num_envs]), config, seed)


def played(env: BackgroundEnv, steps: int = STEPS) -> dict[str, Any]:
    return stacked(roll(env, np.zeros((steps, env.num_envs, 2), np.float32)))


def shown(image: Any) -> Any:
    """The colour behind the robot, of one number; the robot is as it was."""
    assert (image[..., ROBOT, :] == RED[:, None, None]).all()
    behind = image[..., ROBOT.stop :, :]
    colours = behind[..., 0, 0, 0]
    assert (behind == colours[..., None, None, None]).all()
    return colours


def episodes(seen: dict[str, Any], env_index: int) -> list[list[int]]:
    """Frames of each episode of an environment."""
    found: list[list[int]] = []
    colours = shown(seen["image"])[:, env_index].tolist()
    for colour, is_first in zip(colours, seen["is_first"][:, env_index], strict=True):
        if is_first:
            found.append([])
        found[-1].append(colour)
    return found


STARTS = [0, 4, 13, 19]


def following(frame: int, pace: int) -> set[int]:
    """Frames that may come after one."""
    end = next(start for start in STARTS if start > frame)
    return {frame + pace} if frame + pace < end else set(STARTS[:-1])


@pytest.mark.usefixtures("footage")
@pytest.mark.parametrize("start", ["first", "random"])
@pytest.mark.parametrize(("advance", "pace"), [("observation", 1), ("simulator_step", 3)])
def test_a_video_plays_and_another_one_follows(start: str, advance: str, pace: int) -> None:
    env = toy(background_start=start, background_advance=advance, action_repeat=3)
    seen = played(env, 400)
    firsts = set()
    for index, length in enumerate(LENGTHS):
        found = episodes(seen, index)
        assert {len(one) for one in found[:-1]} == {length + 1}
        firsts |= {one[0] for one in found}
        for one in found:
            for frame, after in pairwise(one):
                assert after in following(frame, pace)
    assert firsts == (set(STARTS[:-1]) if start == "first" else set(range(19)))


def test_noise_is_new_in_every_image_and_a_colour_in_every_episode() -> None:
    noise = played(toy(background="noise", background_videos=None))["image"]
    behind = noise[..., ROBOT.stop :, :].reshape(2 * (STEPS + 1), -1)
    assert len(np.unique(behind, axis=0)) == len(behind)
    assert 126 < behind.mean() < 129
    assert set(np.unique(behind)) == set(range(256))
    seen = played(toy(background="color", background_videos=None))
    behind = seen["image"][..., ROBOT.stop :, :]
    colours = behind[..., 0, 0]
    assert (behind == colours[..., None, None]).all()
    for index in range(2):
        begun = np.flatnonzero(seen["is_first"][:, index])
        of_episodes = np.split(colours[:, index], begun[1:])
        assert all((one == one[0]).all() for one in of_episodes)
        assert len({tuple(one[0]) for one in of_episodes}) == len(of_episodes)


@pytest.mark.usefixtures("footage")
@pytest.mark.parametrize("kind", ["video", "noise", "color"])
def test_environment_i_of_a_seed_is_the_first_of_another(kind: str) -> None:
    videos = "v" if kind == "video" else None
    both = played(toy(2, seed=3, background=kind, background_videos=videos))["image"]
    again = played(toy(2, seed=3, background=kind, background_videos=videos))["image"]
    np.testing.assert_array_equal(both, again)
    config = EnvConfig(background=kind, background_videos=videos)  # type: ignore[arg-type]
    alone = BackgroundEnv(Toy(1, episode_length=LENGTHS[1]), config, seed=4)
    np.testing.assert_array_equal(both[:, 1:], played(alone)["image"])
    other = played(toy(2, seed=7, background=kind, background_videos=videos))["image"]
    assert (other != both).any()


@pytest.mark.parametrize("kind", ["video", "noise", "color"])
def test_images_that_are_not_square_have_backgrounds(kind: str) -> None:
    config = EnvConfig("atari/pong", action_repeat=4, image_width=128, background=kind)  # type: ignore[arg-type]
    plain = make_env(dataclasses.replace(config, background="none"), 1, 3)
    env = make_env(config, 1, 3)
    image = env.reset().observation["image"]
    assert image.shape == (1, 3, 64, 128)
    behind = is_background(plain.reset().observation["image"], 1)[:, None]
    np.testing.assert_array_equal(image, np.where(behind, env.backgrounds, plain._frames))  # type: ignore[attr-defined]
    assert env.render(96).shape == (1, 96, 96, 3)


@pytest.mark.usefixtures("footage")
def test_a_film_shows_what_the_agent_sees() -> None:
    env = toy()
    played(env, 3)
    step = env.step(np.zeros((2, 2), np.float32))
    for indices in (None, [1]):
        pictures = env.render(IMAGE_SIZE, indices)
        expected = step.observation["image"][indices or [0, 1]]
        np.testing.assert_array_equal(pictures.transpose(0, 3, 1, 2), expected)
    large = env.render(3 * IMAGE_SIZE)
    np.testing.assert_array_equal(large[:, 1::3, 1::3], env.render())


def test_the_papers_rule_and_the_chroma_key() -> None:
    colours = np.array(
        [[0, 0, 1], [1, 0, 1], [0, 1, 1], [0, 255, 0], [60, 255, 60], [64, 255, 0], [0, 90, 50]],
        np.uint8,
    )
    image = colours[None].repeat(2, 0)
    blue, chroma = (is_background(image, -1, mask) for mask in ("blue", "chroma"))
    assert blue[1].tolist() == [True, False, False, False, False, False, False]
    assert chroma[1].tolist() == [False, False, False, True, True, False, False]
    np.testing.assert_array_equal(is_background(np.moveaxis(image, -1, 1), 1), blue)


@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize("mask", ["blue", "chroma"])
def test_simulators_keep_their_robot_and_lose_the_rest(backend: str, mask: str) -> None:
    options: dict[str, Any] = {"observation": "both", "backend": backend, "render_profile": "light"}
    env = make("finger_spin", 2, background="color", background_mask=mask, **options)
    plain = make("finger_spin", 2, **options)
    actions = random_actions(plain, 5)
    with_it, without = (stacked(roll(one, actions)) for one in (env, plain))
    behind = with_it["image"] == with_it["image"][:1, :, :, :1, :1]  # a corner shows the wall
    behind = behind.all(2)
    kept = with_it["image"].transpose(0, 1, 3, 4, 2)[~behind]
    np.testing.assert_array_equal(kept, without["image"].transpose(0, 1, 3, 4, 2)[~behind])
    assert 0.02 < (~behind).mean() < 0.15
    blue_of_the_robot = (kept[:, 2] > kept[:, 0]) & (kept[:, 2] > kept[:, 1])
    assert bool(blue_of_the_robot.any()) == (mask == "chroma")  # its tip and the target
    for images in (with_it, without):
        del images["image"]
    assert_same(with_it, without)
    assert type(without_layers(env)) is type(plain)
    env.close()
    plain.close()


@needs("envpool", "dm_control")
@pytest.mark.parametrize("profile", ["reference", "light"])
@pytest.mark.parametrize("task", ["ball_in_cup_catch", "cheetah_run", "fish_swim"])
def test_chroma_is_drawn_alike_by_both_simulators(task: str, profile: str) -> None:
    from tests.envs.parity import play_both

    left, right = play_both(
        f"dmc/{task}", 6, profile, (0, 6), background="noise", background_mask="chroma"
    )
    for one, other in zip(left, right, strict=True):
        if one.image is not None:
            np.testing.assert_array_equal(one.image, other.image)
            assert is_background(one.image, -1, "chroma").mean() > 0.5


@needs("dm_control")
@pytest.mark.parametrize("task", ["walker_walk", "quadruped_walk", "finger_spin", "reacher_easy"])
def test_chroma_takes_what_a_segmentation_calls_sky_and_floor(task: str) -> None:
    from mudreamer_fast.envs.dmc_simulator import DmcSimulator

    config = EnvConfig(
        f"dmc/{task}", render_profile="flat", background="noise", background_mask="chroma"
    )
    simulator = DmcSimulator(config, seed=1)
    simulator.reset()
    picture = np.array(simulator.image((64, 64)))
    ids = simulator.physics.render(64, 64, camera_id=simulator._camera_id, segmentation=True)
    names = {"floor", "ground"}
    geoms = [
        index
        for index in range(simulator.physics.model.ngeom)
        if simulator.physics.model.id2name(index, "geom") in names
    ]
    expected = (ids[..., 0] == -1) | ((ids[..., 1] == 5) & np.isin(ids[..., 0], geoms))
    found = is_background(picture, -1, "chroma")
    assert 0.5 < expected.mean() < 0.99
    assert (found != expected).mean() < 0.002


def test_scores_are_played_before_videos_that_training_never_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets = []

    def make(config: EnvConfig, num_envs: int, seed: int) -> TinyEnv:
        sets.append(config.background_set)
        return TinyEnv(num_envs, seed=seed)

    monkeypatch.setattr(scoring, "make_env", make)
    score(EnvConfig(background="video"), uniform_policy(0), episodes=1, seed=0)
    assert sets == ["evaluation"]


def test_a_run_is_told_once_that_its_videos_are_drawn() -> None:
    options: dict[str, Any] = {"background_videos": None}
    notices = toy(1, **options).take_notices()
    assert len(notices) == 1
    assert "--env.background-videos" in notices[0]
    assert toy(1, background_set="evaluation", **options).take_notices() == []
    assert toy(1, background="noise", **options).take_notices() == []


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="background_videos needs background video, got noise"):
        EnvConfig(background="noise", background_videos="videos")
    with pytest.raises(ConfigError, match="background_max_frames must be at least 2, got 1"):
        EnvConfig(background_max_frames=1)
    with pytest.raises(ConfigError, match="background_max_videos must be positive, got 0"):
        EnvConfig(background_max_videos=0)
    vectors = TinyEnv(1, "vector")
    with pytest.raises(ConfigError, match="background noise needs images, got observation 'vect"):
        BackgroundEnv(vectors, EnvConfig(observation="vector", background="noise"), 0)
    chroma = EnvConfig("gym:CartPole-v1", background="noise", background_mask="chroma")
    with pytest.raises(ConfigError, match="has no sky and floor to draw in green"):
        make_env(chroma, 1, 0)


def test_environments_are_closed_where_the_videos_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TinyEnv(1)
    monkeypatch.setattr("mudreamer_fast.envs._make_plain_env", lambda *arguments: made)
    with pytest.raises(ConfigError, match="does not exist"):
        make_env(EnvConfig(background="video", background_videos=str(tmp_path / "no")), 1, 0)
    assert made.closed
