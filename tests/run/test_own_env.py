"""A run on an environment of the user's, from Python and back on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mudreamer_fast.cli.main import main
from mudreamer_fast.config import ConfigError
from mudreamer_fast.envs import factories
from mudreamer_fast.run.folder import RunFolder, default_run_dir, read_config
from mudreamer_fast.train import train
from tests import tiny_run
from tests.envs import gym_toy

ENV = {"backend": "sync", "action_repeat": 1, "num_envs": 2}


def config(**train: Any) -> Any:
    options = {"env_steps": 70, "eval_every_env_steps": 0, "eval_episodes": 2} | train
    return tiny_run.config("both", ENV, **options)


def test_a_function_trains_is_found_again_by_its_name_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(config(), tmp_path / "run", env=gym_toy.Toy)
    assert result.updates > 0
    assert result.evaluation is not None
    assert result.evaluation.lengths_steps == [3, 3]
    stored = read_config(RunFolder(tmp_path / "run").config)
    assert stored.env.task == "gym:tests.envs.gym_toy:Toy"
    assert (tmp_path / "run" / "evaluation.mp4").exists()
    assert default_run_dir(stored, "quick").name.startswith("gym_tests.envs.gym_toy_Toy-quick-seed")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "3"]) == 0
    assert "agent, sampled" in capsys.readouterr().out
    more = train(config(env_steps=90), tmp_path / "run", resume=True, env=gym_toy.Toy)
    assert (more.env_steps, more.updates > result.updates) == (90, True)
    with pytest.raises(ConfigError, match="keeps its settings of env"):
        train(config(env_steps=99), tmp_path / "run", resume=True, env=gym_toy.discrete_toy)


def test_an_environment_that_fails_ends_the_run_in_one_line_and_what_was_learned_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies(gym_toy.Toy):
        def step(self, action: Any) -> Any:
            if self.episode == 4:
                raise ValueError("out of fuel")
            return super().step(action)

    with pytest.raises(RuntimeError, match="failed: step raised ValueError: out of fuel"):
        train(config(), tmp_path / "run", env=Dies)
    assert any((tmp_path / "run" / "checkpoint").iterdir())
    monkeypatch.setattr(factories, "_handed_over", {})  # as in another process
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "go on in Python, with env=" in capsys.readouterr().err


def test_a_run_whose_folder_is_not_named_is_given_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    folders: list[Path] = []

    class Noted(Exception):
        pass

    def note(config: Any, folder: Path, *rest: Any) -> Any:
        folders.append(folder)
        raise Noted

    monkeypatch.setattr("mudreamer_fast.train.Trainer", note)
    with pytest.raises(Noted):
        train(config(), env=gym_toy.Toy)
    (folder,) = folders
    assert folder.parent == Path("runs")
    assert folder.name.startswith("gym_tests.envs.gym_toy_Toy-own-seed0-")
