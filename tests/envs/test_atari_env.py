"""Atari's games: what is seen and earned, beside the Arcade Learning Environment's own package."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mudreamer_fast.collect import random_policy
from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs import EnvError, VectorStep, make_env
from mudreamer_fast.envs.tasks import GAMES_OF_ATARI_100K
from mudreamer_fast.run import scoring
from mudreamer_fast.train import train
from tests import tiny_run
from tests.simulators import needs

pytestmark = needs("envpool")


def config(game: str = "pong", **changed: Any) -> EnvConfig:
    return EnvConfig(**({"task": f"atari/{game}", "action_repeat": 4} | changed))


def play(config: EnvConfig, steps: int, num_envs: int = 1, seed: int = 0) -> list[VectorStep]:
    """Steps of the random policy, the first one included."""
    env = make_env(config, num_envs, seed)
    policy = random_policy(env.action_spec, num_envs, 1)
    found = [env.reset()]
    for _ in range(steps):
        found.append(env.step(policy(found[-1].observation, found[-1].is_first, None)[0]))
    env.close()
    return found


def by_area(size: int, into: int) -> np.ndarray:
    """Weights (into, size) of pixels in larger ones."""
    edges = np.arange(into + 1) * size / into
    low = np.maximum(edges[:-1, None], np.arange(size))
    high = np.minimum(edges[1:, None], np.arange(size) + 1)
    return (high - low).clip(0) * into / size


@pytest.mark.parametrize("game", ["pong", "breakout", "ms_pacman", "boxing", "seaquest"])
def test_frames_and_rewards_are_those_of_the_arcade_learning_environment(game: str) -> None:
    ale_py = pytest.importorskip("ale_py")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    console = ale_py.ALEInterface()
    console.setInt("random_seed", 0)
    console.setFloat("repeat_action_probability", 0.0)
    console.loadROM(ale_py.roms.get_rom_path(game))
    console.reset_game()
    buttons = console.getMinimalActionSet()
    console.act(0)  # the one frame in which nothing is done
    env = make_env(config(game, atari_noops=1), 1, seed=0)
    assert env.action_spec.size == len(buttons)
    env.reset()
    rng, rewards = np.random.default_rng(0), []
    height, width = by_area(210, 64), by_area(160, 64)
    for choice in rng.integers(0, len(buttons), 60):
        step = env.step(np.eye(len(buttons), dtype=np.float32)[None, choice])
        earned, screens = 0, []
        for _ in range(4):
            earned += console.act(buttons[choice])
            screens.append(console.getScreenRGB())
        larger = np.maximum(*screens[-2:]).transpose(2, 0, 1)
        # EnvPool rounds to whole numbers
        assert abs(height @ larger @ width.T - step.observation["image"][0]).max() <= 0.501
        rewards.append((float(step.reward[0]), float(earned)))
    env.close()
    assert all(ours == theirs for ours, theirs in rewards)


def test_a_game_follows_the_protocol_over_the_ends_of_episodes() -> None:
    steps = play(config("breakout"), 400, num_envs=2)
    assert steps[0].is_first.all()
    ends = 0
    for before, after in pairwise(steps):
        assert (after.is_first == before.is_last).all()
        assert (after.reward[after.is_first] == 0).all()
        assert not (after.is_last & after.is_first).any()
        assert (after.is_terminal == after.is_last).all()
        ends += int(after.is_last.sum())
    assert ends >= 2
    image = steps[0].observation["image"]
    assert image.shape == (2, 3, 64, 64)
    assert image.dtype == np.uint8


def test_environment_i_of_a_seed_is_environment_0_of_the_seed_plus_i() -> None:
    together = play(config("breakout", atari_sticky=0.25), 60, num_envs=3, seed=5)
    env = make_env(config("breakout", atari_sticky=0.25), 1, seed=7)
    alone = [env.reset()]
    policy = random_policy(env.action_spec, 3, 1)
    for step in together[:-1]:
        action = policy(step.observation, step.is_first, None)[0]
        alone.append(env.step(action[2:]))
    for one, of_three in zip(alone, together, strict=True):
        assert (one.observation["image"][0] == of_three.observation["image"][2]).all()
        assert one.reward[0] == of_three.reward[2]


def test_what_was_handed_out_does_not_change_afterwards() -> None:
    env = make_env(config(), 1, seed=0)
    first = env.reset()
    image = first.observation["image"].copy()
    right = np.eye(env.action_spec.size, dtype=np.float32)[None, 2]
    for _ in range(20):
        env.step(right)
    assert (first.observation["image"] == image).all()


def test_frames_without_action_and_sticky_actions_are_drawn() -> None:
    def last(seed: int, **changed: Any) -> np.ndarray:
        return play(config(**changed), 40, seed=seed)[-1].observation["image"]

    assert (last(0, atari_noops=1) == last(1, atari_noops=1)).all()
    assert (last(0, atari_noops=30) != last(1, atari_noops=30)).any()
    sticky = {"atari_noops": 1, "atari_sticky": 0.25}
    assert (last(0, **sticky) != last(1, **sticky)).any()
    assert (last(0, **sticky) == last(0, **sticky)).all()


def test_a_lost_life_is_an_end_to_learn_from_where_asked_for() -> None:
    plain, asked = (play(config("breakout", atari_life_loss=on), 300) for on in (False, True))
    for one, other in zip(plain, asked, strict=True):
        assert (one.observation["image"] == other.observation["image"]).all()
        assert (one.is_last == other.is_last).all()
    games = sum(int(step.is_last.sum()) for step in plain)
    assert sum(int(step.is_terminal.sum()) for step in plain) == games >= 1
    # A game of breakout has five lives; the last game is not over.
    assert 5 * games <= sum(int(step.is_terminal.sum()) for step in asked) < 5 * (games + 1)


def test_a_game_whose_time_is_up_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mudreamer_fast.envs.atari_env.EPISODE_FRAMES", 40)
    steps = play(config(), 12)
    assert [int(step.is_last[0]) for step in steps].index(1) == 10
    assert not any(step.is_terminal.any() for step in steps)
    assert steps[11].is_first.all()


def test_signs_of_rewards_are_learned_from_and_rewards_count() -> None:
    signs = config("ms_pacman", atari_sign_rewards=True)
    learned = {float(step.reward[0]) for step in play(signs, 200)}
    earned = {float(step.reward[0]) for step in play(config("ms_pacman"), 200)}
    assert learned == {0.0, 1.0}
    assert max(earned) >= 10.0
    found = scoring.score(signs, scoring.uniform_policy(0), episodes=1, seed=0)
    assert found.scores[0] >= 60.0  # dots are worth 10


def test_a_game_is_trained_in_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whoever never presses the button that serves the ball plays on until his time is up
    monkeypatch.setattr("mudreamer_fast.envs.atari_env.EPISODE_FRAMES", 400)
    game = {"task": "atari/breakout", "action_repeat": 4, "atari_life_loss": True}
    train(tiny_run.config("pixels", env=game, env_steps=400, eval_episodes=1), tmp_path / "run")
    longer = tiny_run.config("pixels", env=game, env_steps=600, eval_episodes=1)
    train(longer, tmp_path / "run", resume=True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["task"], result["env_steps"]) == ("atari/breakout", 600)
    assert result["updates"] > 20
    made_with = json.loads((tmp_path / "run" / "made_with.json").read_text())
    assert made_with["simulator"].keys() == {"envpool"}


def test_pictures_are_what_was_seen_enlarged() -> None:
    env = make_env(config(), 2, seed=0)
    image = env.reset().observation["image"]
    pictures = env.render(128, [1])
    assert pictures.shape == (1, 128, 128, 3)
    assert (pictures[0, ::2, 1::2] == image[1].transpose(1, 2, 0)).all()


def test_an_image_that_is_not_square_shows_the_whole_screen() -> None:
    square, wide = (
        make_env(config(image_size=64, image_width=width), 1, seed=0).reset().observation["image"]
        for width in (None, 128)
    )
    assert wide.shape == (1, 3, 64, 128)
    halves = wide.reshape(1, 3, 64, 64, 2).astype(float).mean(-1)
    assert np.abs(halves - square).max() <= 1


@pytest.mark.parametrize("game", GAMES_OF_ATARI_100K)
def test_every_game_of_atari_100k_is_there(game: str) -> None:
    step = play(EnvConfig(game, action_repeat=4), 20)[-1]
    assert step.observation["image"].std() > 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"game": "pongg"}, "no game 'atari/pongg': did you mean atari/pong"),
        ({"observation": "vector"}, "atari/pong shows images alone, got observation 'vector'"),
        ({"camera": 1}, "atari/pong has no cameras"),
        ({"background": "color", "background_mask": "chroma"}, "no sky and floor"),
        ({"backend": "dm_control"}, "backend of atari/pong must be auto or envpool"),
        ({"color_shift": 0.1}, "shifted on dm_control alone, got atari/pong"),
    ],
)
def test_what_a_game_does_not_have_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_env(config(**changed), 1, seed=0)


def test_a_closed_game_says_so() -> None:
    env = make_env(config(), 1, seed=0)
    env.close()
    env.close()
    with pytest.raises(EnvError, match="this atari/pong environment is closed"):
        env.reset()
