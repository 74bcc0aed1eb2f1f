from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from mudreamer_fast.cli.main import main
from mudreamer_fast.config import ConfigError
from mudreamer_fast.envs import VectorEnv
from mudreamer_fast.run import made_with
from mudreamer_fast.train import train
from tests import tiny_run


class DmcEnv:
    """Stands in for one that dm_control simulates: its class says so."""


class EnvPoolEnv:
    """Likewise for EnvPool."""


DMC, ENVPOOL = cast(VectorEnv, DmcEnv()), cast(VectorEnv, EnvPoolEnv())


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    installed = {"envpool": "1.2.5", "dm_control": "1.0.38", "mujoco": "3.6.0", "torch": "2.13.0"}
    monkeypatch.setattr(
        made_with,
        "_versions",
        lambda packages: {name: installed[name] for name in packages if name in installed},
    )
    return installed


def recorded(path: Path, env: VectorEnv) -> Path:
    content = {"simulator": made_with.simulator(env), "libraries": made_with._libraries()}
    path.write_text(json.dumps(content))
    return path


def test_the_same_simulator_needs_no_word(
    tmp_path: Path, versions: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for before, now in ((DMC, DMC), (ENVPOOL, DMC), (DMC, ENVPOOL)):
        made_with.check(recorded(tmp_path / "made_with.json", before), now, allowed=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("before", "now"), [(DMC, DMC), (ENVPOOL, DMC)])
def test_another_simulator_is_refused_unless_it_is_allowed(
    tmp_path: Path,
    versions: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    before: VectorEnv,
    now: VectorEnv,
) -> None:
    path = recorded(tmp_path / "made_with.json", before)
    versions["mujoco"] = "3.7.0"
    with pytest.raises(
        ConfigError, match=r"here is dm_control 1\.0\.38 with mujoco 3\.7\.0: .* --allow"
    ):
        made_with.check(path, now, allowed=False)
    assert capsys.readouterr().err == ""
    made_with.check(path, now, allowed=True)
    assert capsys.readouterr().err.startswith("warning: the run was made with ")


def test_other_libraries_are_told_of(
    tmp_path: Path, versions: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = recorded(tmp_path / "made_with.json", DMC)
    versions["torch"] = "2.14.0"
    versions["triton"] = "3.9.0"
    made_with.check(path, DMC, allowed=False)
    assert capsys.readouterr().err == (
        "made with torch 2.13.0 (here 2.14.0), triton none (here 3.9.0): "
        "results may differ by rounding\n"
    )


@pytest.mark.parametrize("content", [None, "", "[]", '{"simulator": 3}', '{"simulator": {}}'])
def test_a_run_of_which_nothing_is_known_goes_on(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "made_with.json"
    if content is not None:
        path.write_text(content)
    made_with.check(path, DMC, allowed=False)
    said = capsys.readouterr().err
    assert said == "" if content is None else "cannot be read" in said


def test_a_run_refuses_another_simulator_at_resume_and_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    config = tiny_run.config(eval_every_env_steps=0, eval_episodes=1)
    train(config, folder)
    path = folder / "made_with.json"
    content: dict[str, Any] = json.loads(path.read_text())
    assert content["operations"] == "reference"
    assert content["libraries"]["torch"]
    content["simulator"] = {"envpool": "0.1"}
    path.write_text(json.dumps(content))
    capsys.readouterr()
    steps = ["--train.env-steps", "10000"]
    for command in (["evaluate", str(folder)], ["train", "--resume", str(folder), *steps]):
        assert main(command) == 2
        assert "error: the run was made with envpool 0.1, and here is" in capsys.readouterr().err
    assert json.loads(path.read_text()) == content
    assert main(["evaluate", str(folder), "--allow-other-simulator"]) == 0
    assert "warning: the run was made with envpool 0.1" in capsys.readouterr().err


def test_a_library_that_is_not_there_has_no_version() -> None:
    assert set(made_with._versions(("numpy", "no-such-package"))) == {"numpy"}
