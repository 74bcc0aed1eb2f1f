"""A run's agent on its own: exported, described, loaded, acting as before."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mudreamer_fast.agent import Agent
from mudreamer_fast.cli.main import main
from mudreamer_fast.config import ConfigError
from mudreamer_fast.disk.checkpoint import CheckpointError
from mudreamer_fast.disk.weights import save_weights
from mudreamer_fast.run.card import LOAD, export_run
from mudreamer_fast.run.folder import RunFolder, write_json
from mudreamer_fast.run.metrics import METRICS_FILE
from tests import tiny_run
from tests.test_policy import SEEN, observation, same

pytest.importorskip("safetensors")

RESULT = {
    "task": "dmc/walker_walk", "eval_policy": "sample", "env_steps": 60, "updates": 3,
    "seconds": 2.0, "scores": [30.0, 50.0], "random_scores": [1.0, 3.0],
}  # fmt: skip


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_run.patch_envs(monkeypatch)
    with tiny_run.start(tiny_run.config("both"), tmp_path / "run") as run:
        tiny_run.step(run, 15)
        run.save()
    return tmp_path / "run"


def test_an_exported_agent_acts_as_it_did_and_its_card_says_what_it_is(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "walker"
    write_json(RunFolder(run_folder).result, RESULT)
    (run_folder / METRICS_FILE).write_text('{"env_steps": 60, "episode/score": 40.0}\n')
    assert main(["export", str(run_folder), str(folder)]) == 0
    told = capsys.readouterr().out.split()
    assert sorted(told) == sorted(str(path) for path in folder.iterdir())
    assert {path.name for path in folder.iterdir()} == {
        "agent.safetensors", "config.json", "made_with.json", "result.json", "curve.png",
        "README.md",
    }  # fmt: skip

    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    agent, exported = Agent.load(run_folder, "cpu"), Agent.load(folder, "cpu")
    for part in Agent.LEARNED:
        assert same(exported.state_dict()[part], agent.state_dict()[part])
    first = np.ones(2, bool)
    actions = [one.policy(2)(observation(SEEN), first) for one in (agent, exported)]
    np.testing.assert_array_equal(*actions)

    scores = []
    for place in (run_folder, folder):
        assert main(["evaluate", str(place), "--episodes", "3"]) == 0
        scores.append([line.split() for line in capsys.readouterr().out.splitlines()])
    assert scores[0][1] == scores[1][1]
    assert scores[1][2][:3] == ["random", "policy", "2.0"]

    card = (folder / "README.md").read_text()
    assert "| task | `dmc/walker_walk` |" in card
    assert "| sees | image 3 x 64 x 64, vector 3 |" in card
    assert "| does | 2 numbers in [-1, 1] |" in card
    assert f"| parameters | {sum(agent.parameter_counts().values()):,} |" in card
    assert f"| trained for | 60 simulator steps, {agent.updates} updates, " in card
    assert "evaluation at 60 simulator steps" in card
    assert "agent, sampled     40.0" in card
    assert "torch" in card
    assert LOAD.format(folder=folder) in card
    assert "](curve.png)" in card

    with pytest.raises(ConfigError, match=r"walker is taken: name a folder that is empty"):
        export_run(run_folder, folder)
    save_weights({"behaviour": {"x": torch.ones(1)}}, RunFolder(folder).weights)
    with pytest.raises(CheckpointError, match="walker holds no agent: it lacks 'world_model'"):
        Agent.load(folder)
    (folder / "agent.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"cannot read .*agent\.safetensors"):
        Agent.load(folder)


def test_a_run_that_was_not_evaluated_says_so(run_folder: Path, tmp_path: Path) -> None:
    export_run(run_folder, tmp_path / "agent")
    assert "It has not been evaluated." in (tmp_path / "agent" / "README.md").read_text()
    RunFolder(run_folder).result.write_text("{")
    with pytest.raises(CheckpointError, match=r"result\.json of the run is not JSON"):
        export_run(run_folder, tmp_path / "third")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*best"):
        export_run(run_folder, tmp_path / "other", "best")
    assert not (tmp_path / "other").exists()


def test_weights_that_cannot_be_written_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"cannot write {tmp_path}"):
        save_weights({"behaviour": {"x": torch.ones(1)}}, tmp_path)


def test_missing_safetensors_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ConfigError, match=r"pip install 'mudreamer-fast\[export\]'"):
        save_weights({}, tmp_path / "agent.safetensors")
