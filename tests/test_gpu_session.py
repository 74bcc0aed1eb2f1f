"""The script for a machine with a GPU, with a stand-in for Python: which steps it runs, and when.

What the steps do is shown by `DRY_RUN=1 bench/gpu_session.sh`, which takes minutes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/usr/bin/env bash
if [[ $* == "-m bench.surroundings"* ]]; then echo named; exit; fi
echo "$*" >>"$ASKED"
if [[ ${HANGS:-} && $* == *$HANGS* ]]; then sleep 1000; fi
if [[ ${FAILS:-} && $* == *$FAILS* ]]; then exit 3; fi
"""
PARTS = (
    "first", "tests", "barriers", "memcheck", "racecheck", "initcheck", "synccheck", "bench",
    "compiled", "profile",
)  # fmt: skip


class Session:
    def __init__(self, folder: Path) -> None:
        self.asked, self.results = folder / "asked", folder / "results"
        python = folder / "python"
        python.write_text(PYTHON)
        python.chmod(0o755)
        sanitizer = folder / "compute-sanitizer"
        sanitizer.write_text('#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift 2; done\n"$@"\n')
        sanitizer.chmod(0o755)
        self.environment = os.environ | {
            "PYTHON": str(python), "ASKED": str(self.asked), "RESULTS": str(self.results),
            "PATH": f"{folder}:{os.environ['PATH']}",
        }  # fmt: skip

    def run(self, *parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
        self.asked.write_text("")
        command = [str(ROOT / "bench" / "gpu_session.sh"), *parts]
        every = self.environment | environment
        return subprocess.run(command, env=every, capture_output=True, text=True, check=False)

    def commands(self) -> list[str]:
        return self.asked.read_text().splitlines()

    def steps(self) -> list[tuple[str, str]]:
        lines = (self.results / "named-steps.tsv").read_text().splitlines()
        return [(name, code) for name, code, _ in (line.split("\t") for line in lines)]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


def test_session_runs_every_part_once(session: Session) -> None:
    ended = session.run()
    assert ended.returncode == 0, ended.stderr
    steps = session.steps()
    assert tuple(dict.fromkeys(name.split("/")[0] for name, _ in steps)) == PARTS
    assert {code for _, code in steps} == {"0"}
    assert len(set(steps)) == len(steps) == len(session.commands())
    words = [word for command in session.commands() for word in command.split()]
    named = [word for word in words if word.startswith(("tests/", "bench/"))]
    assert [word for word in named if not (ROOT / word).exists()] == []
    again = session.run()
    assert again.returncode == 0
    assert session.commands() == []


def test_session_goes_on_after_a_failure_and_repeats_that_alone(session: Session) -> None:
    ended = session.run("bench", FAILS="bench_categorical")
    assert ended.returncode == 1
    assert ended.stderr == "failed: bench/categorical (3)\n"
    failed = [name for name, code in session.steps() if code != "0"]
    assert failed == ["bench/categorical"]
    assert len(session.commands()) == len(session.steps()) > 1
    assert session.run("bench").returncode == 0
    assert ["bench_categorical" in command for command in session.commands()] == [True]


def test_session_ends_a_step_that_hangs(session: Session) -> None:
    ended = session.run("first", HANGS="profile_update", STEP_SECONDS="1")
    assert ended.returncode == 1
    assert session.steps() == [("first/first", "124")]


def test_session_refuses_a_part_that_it_does_not_know(session: Session) -> None:
    ended = session.run("first", "everything")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: parts are first, tests, barriers, ")
    assert session.commands() == []


def test_session_ends_where_there_is_no_gpu(session: Session, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/usr/bin/env bash\necho 'error: no GPU' >&2\nexit 1\n")
    ended = session.run("first")
    assert ended.returncode == 1
    assert ended.stderr == "error: no GPU\n"
