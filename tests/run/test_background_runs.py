"""Runs before videos, from the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mudreamer_fast.cli.main import main
from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.train import train
from tests import tiny_run
from tests.envs.test_footage import film
from tests.tiny_run import start, step


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for name, first in (("train/a", 20), ("train/b", 100), ("eval/c", 180)):
        film(tmp_path / "videos" / f"{name}.mp4", first=first)
    return tmp_path / "videos"


def config(videos: Path, **train: Any) -> Config:
    env = {
        "task": "gym:tests.envs.gym_toy:Toy",
        "backend": "sync",
        "background": "video",
        "background_videos": str(videos),
    }
    return tiny_run.config("pixels", env, **({"env_steps": 60, "eval_every_env_steps": 0} | train))


def test_a_run_goes_on_where_its_videos_have_moved(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, settings = tmp_path / "run", config(videos)
    assert main(["train", *tiny_run.options(settings, folder)]) == 0
    assert main(["evaluate", str(folder)]) == 0
    before = capsys.readouterr().out
    moved = videos.rename(tmp_path / "moved")
    assert main(["evaluate", str(folder)]) == 2
    assert "--background-videos" in capsys.readouterr().err
    assert main(["evaluate", str(folder), "--background-videos", str(moved)]) == 0
    assert capsys.readouterr().out == before  # the same frames behind the same robots
    more = ["--train.env-steps", "80", "--env.background-videos", str(moved)]
    assert main(["train", "--resume", str(folder), *more]) == 0
    drawn = dataclasses.replace(settings.env, background_videos=None)
    with pytest.raises(ConfigError, match="keeps its settings of env"):
        train(dataclasses.replace(settings, env=drawn), folder, resume=True)


def test_training_sees_its_own_videos_and_no_others(tmp_path: Path, videos: Path) -> None:
    with start(config(videos), tmp_path / "run") as run:
        step(run, 30)
        images = run.replay.state_dict()["fields"]["image"]
    assert ((images >= 95) & (images <= 145)).all(2).any(), "a video for training"
    assert not ((images >= 175) & (images <= 225)).all(2).any(), "the video for evaluation"


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_backgrounds_are_brought_back_by_an_exact_resume(
    tmp_path: Path, videos: Path, storage: str
) -> None:
    exact = config(videos, env_steps=10**5, exact_resume=True)
    replay = dataclasses.replace(exact.replay, storage=storage)  # type: ignore[arg-type]
    exact = dataclasses.replace(exact, replay=replay)
    contents = []
    for folder, stops in (("whole", (20,)), ("parts", (13, 7))):
        resume = False
        for steps in stops:
            with start(exact, tmp_path / folder, resume) as run:
                run.take_up()
                step(run, steps)
                run.save()
                held = run.replay.state_dict()
            resume = True
        contents.append((held, checkpoint.load(tmp_path / folder / "checkpoint")["agent"]))
    (whole, agent), (parts, other) = contents
    np.testing.assert_equal(parts, whole)
    for name, weight in agent["world_model"].items():
        np.testing.assert_array_equal(weight, other["world_model"][name], err_msg=name)
