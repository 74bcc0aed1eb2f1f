from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mudreamer_fast.backend import load
from mudreamer_fast.backend.selfcheck import Agreement
from mudreamer_fast.backend.trial import Verdict
from mudreamer_fast.cli import doctor
from mudreamer_fast.cli.doctor import Finding
from mudreamer_fast.machine.memory import GIB
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[bool, str]]:
    """Answers of the trials by a word of their code, in place of new processes."""
    answers = {
        "renderer_name": (True, "llvmpipe"),
        '"envpool"': (True, "1.2.5"),
        '"dm_control"': (True, "1.0.38"),
    }
    monkeypatch.setattr(
        doctor, "_trial", lambda code: next(a for word, a in answers.items() if word in code)
    )
    agrees = Verdict("mlp", (Agreement("mlp", "the output", 1e-7, 5e-6),))
    same = dataclasses.replace(agrees, op=load.PERSISTENT)
    monkeypatch.setattr(load, "check_fused", lambda *asked, **how: (agrees, same))
    return answers


def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def test_every_finding_is_one_line(trials: dict[str, tuple[bool, str]]) -> None:
    found = findings()
    assert list(found) == [
        "python", "torch", "replay", "kernels", "compiler", "caches", "opengl", "envpool",
        "dm_control", "video", "reports", "disk", "locks", "clock", "memory", "shared",
        "handles",
    ]  # fmt: skip
    assert all("\n" not in finding.line() for finding in found.values())
    assert found["replay"].ok
    assert Finding("x", False, "a\nb").line() == "FAIL  x            a b"


def test_one_simulator_is_enough_and_none_is_not(trials: dict[str, tuple[bool, str]]) -> None:
    trials['"dm_control"'] = (False, "ImportError: no dm_control")
    found = findings()
    assert found["dm_control"].line() == (
        "ok    dm_control   not usable: ImportError: no dm_control"
    )
    trials['"envpool"'] = (False, "broken")
    found = findings()
    assert not found["envpool"].ok
    assert not found["dm_control"].ok


def test_kernels_that_disagree_are_told_and_not_held_against_the_machine(
    trials: dict[str, tuple[bool, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert findings()["kernels"].line() == (
        "ok    kernels      auto takes fused operations: on cpu 1 of 1 fused operations agree with "
        "the reference; persistent does, too, and is not taken as it has not been timed; "
        "nearest to its limit mlp: the output is off by 1.0e-07 of 5e-06 allowed"
    )
    hangs = [Verdict(op, (), "no answer within 240 s") for op in ("mlp", load.PERSISTENT)]
    monkeypatch.setattr(load, "check_fused", lambda *asked, **how: hangs)
    assert findings()["kernels"].line() == (
        "ok    kernels      auto takes reference operations, where fused ones fail: on cpu 0 of 1 "
        "fused operations agree with the reference; persistent is not usable: "
        "rssm_observe_persistent: no answer within 240 s; "
        "not usable: mlp: no answer within 240 s"
    )
    monkeypatch.setattr(load, "runs_on", lambda device: False)
    assert "kernels" not in findings()


def test_lack_of_disk_and_memory_is_found(
    trials: dict[str, tuple[bool, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=GIB))
    monkeypatch.setattr(doctor, "available_bytes", lambda: GIB)
    found = findings()
    assert found["disk"].line().startswith("FAIL  disk         1.0 GiB free in /")
    assert found["memory"].line().startswith("FAIL  memory       1.0 GiB available: lower")


WITHOUT = """
import sys
for name in sys.argv[1:]:
    sys.modules[name] = None
from mudreamer_fast.cli import doctor
from mudreamer_fast.cli.main import main
doctor._trial = lambda code: (True, "fine")
sys.exit(main(["doctor"]))
"""


def test_what_does_not_import_is_found_and_the_rest_is_looked_at() -> None:
    missing = ["torch", "mudreamer_fast._replay", "av"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *missing],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stderr) == (1, "")
    lines = {line[6:].split()[0]: line for line in done.stdout.splitlines()}
    assert list(lines) == [
        "python", "torch", "replay", "opengl", "envpool", "dm_control", "video", "reports", "disk",
        "locks", "clock", "memory", "shared", "handles",
    ]  # fmt: skip
    assert lines["torch"].startswith("FAIL  torch        import of torch halted")
    assert lines["torch"].endswith(": pip install torch")
    assert lines["replay"].startswith("FAIL  replay       the C++ module is missing (import of ")
    assert lines["video"] == ("ok    video        no encoder (pip install av): videos become GIFs")


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("matplotlib", "FAIL  reports      no matplotlib, tensorboard 1"),
        ("tensorboard", "ok    reports      matplotlib 1, no tensorboard"),
    ],
)
def test_curves_need_matplotlib_and_nothing_needs_tensorboard(
    missing: str, line: str, trials: dict[str, tuple[bool, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert findings()["reports"].line() == line


def test_memory_that_the_system_does_not_tell_is_no_failure(
    trials: dict[str, tuple[bool, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "available_bytes", lambda: None)
    assert findings()["memory"].line() == "ok    memory       unknown"


def test_trial_tells_the_last_line_and_survives_a_crash() -> None:
    assert doctor._trial("print('a'); print('b')") == (True, "b")
    assert doctor._trial("raise RuntimeError('no luck')") == (False, "RuntimeError: no luck")
    ok, said = doctor._trial("import os; os.abort()")
    assert not ok
    assert said == "ended with exit code -6"


def test_trial_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TRIAL_SECONDS", 0.1)
    assert doctor._trial("import time; time.sleep(60)") == (False, "no answer within 0.1 s")
