from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mudreamer_fast
from mudreamer_fast.cli import doctor
from mudreamer_fast.envs.interpreter import python_command
from tests.envs.rollouts import make
from tests.simulators import needs

SHADOWS = ("__future__", "dataclasses", "json", "numpy", "signal", "threading", "mudreamer_fast")


@pytest.fixture(name="trap", params=["", "absolute"])
def _trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A current folder, on this process's own path, whose modules leave a mark when they run."""
    mark = tmp_path / "ran"
    for name in SHADOWS:
        text = f"open({str(mark)!r}, 'a').write({name!r})\nraise RuntimeError('not this one')\n"
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [request.param and str(tmp_path), *sys.path])
    return mark


def test_a_new_interpreter_runs_nothing_of_the_current_folder(trap: Path) -> None:
    program = "import sys, dataclasses, json, mudreamer_fast\nfrom mudreamer_fast.envs import tasks"
    tell = f"{program}\nprint(mudreamer_fast.__file__, tasks.__file__, *sys.argv[1:])"
    done = subprocess.run(python_command(tell, "1", "two"), capture_output=True, text=True)
    package = Path(str(mudreamer_fast.__file__))
    told = [str(package), str(package.parent / "envs" / "tasks.py"), "1", "two"]
    assert (done.stderr, done.stdout.split()) == ("", told)
    assert not trap.exists()


@needs("dm_control")
def test_workers_of_dm_control_run_nothing_of_the_current_folder(trap: Path) -> None:
    env = make("cartpole_balance", backend="dm_control")
    env.reset()
    assert env.step(np.zeros((1, 1), np.float32)).reward.all()
    env.close()
    assert not trap.exists()


def test_trials_of_doctor_run_nothing_of_the_current_folder(trap: Path) -> None:
    assert doctor._trial("import dataclasses\nprint('as ever')") == (True, "as ever")
    assert not trap.exists()


def test_what_the_current_folder_gives_the_package_is_still_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = Path(str(mudreamer_fast.__file__)).parents[1]
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    ok, said = doctor._trial("import mudreamer_fast, sys\nprint(mudreamer_fast.__file__)")
    assert (ok, said) == (True, mudreamer_fast.__file__)


def test_a_current_folder_that_was_removed_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert doctor._trial("import dataclasses\nprint('as ever')") == (True, "as ever")
