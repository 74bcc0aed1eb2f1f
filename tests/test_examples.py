"""The scripts in examples/ run, each as its user would run it."""

from __future__ import annotations

import json
import logging
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., list[str]]
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Runs a script in an empty folder; gives the lines that it printed."""
    monkeypatch.chdir(tmp_path)

    def run_script(name: str, *words: str) -> list[str]:
        monkeypatch.setattr("sys.argv", [name, *words])
        logging.disable()  # PyTorch logs thousands of records while it traces
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    yield run_script
    logging.disable(logging.NOTSET)


def test_an_agent_trains_in_an_own_environment_acts_and_is_exported(run: Run) -> None:
    *_, trained, played = run("own_environment.py", "corridor")
    assert int(trained.split()[0]) > 5
    assert played.endswith("of episodes of [8, 8, 8, 8]")
    actions = [json.loads(line) for line in run("export_policy.py", "corridor")]
    assert [len(step) for step in actions] == [3] * 5
    assert len({tuple(step) for step in actions}) == 5


def test_the_replay_buffer_serves_alone(run: Run) -> None:
    first, second = run("replay_buffer.py")
    assert first.startswith("100 (4, 6, 3) [")
    assert second == "(4, 6)"


def test_the_operations_serve_alone(run: Run) -> None:
    shapes = run("operations.py")
    assert shapes[:2] == ["torch.Size([16, 64])", "torch.Size([768, 384])"]
    assert shapes[2].startswith("tensor([1.")
