"""The allocator's settings reach the program, once, and nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from mudreamer_fast.machine.allocator import SETTINGS, keep_freed_memory
from tests.patience import PATIENCE_SECONDS

SHOW = "import os, sys; print(os.getpid(), os.environ.get('MALLOC_TOP_PAD_'), *sys.argv[1:])"
PROGRAM = (
    f"from mudreamer_fast.machine.allocator import keep_freed_memory; keep_freed_memory(); {SHOW}"
)

pytestmark = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="not glibc"
)


def run(*arguments: str, **extra: str) -> tuple[int, list[str]]:
    """Pid of the process that was started, and the words that the program printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | extra
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.pid, out.split()


def test_program_starts_again_with_its_arguments_in_the_same_process() -> None:
    pid, words = run("-c", PROGRAM, "train", "two words", "")
    assert words == [str(pid), SETTINGS["MALLOC_TOP_PAD_"], "train", "two", "words"]


def test_own_settings_are_left_alone() -> None:
    _, words = run("-c", PROGRAM, MALLOC_ARENA_MAX="2")
    assert words[1:] == ["None"]


def fail(name: str) -> str:
    raise ValueError("unrecognized configuration name")


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (sys, "executable", ""),
        (sys, "orig_argv", ["python"]),
        (os, "confstr", lambda name: None),
        (os, "confstr", fail),
    ],
    ids=["no-interpreter", "no-program", "no-c-library", "another-c-library"],
)
def test_program_that_cannot_start_again_goes_on(
    owner: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda path, words, environment: started.append(words))
    for variable in filter(lambda word: word.startswith("MALLOC_"), list(os.environ)):
        monkeypatch.delenv(variable)
    monkeypatch.setattr(sys, "orig_argv", ["python", "program.py"])
    keep_freed_memory()
    assert started == [[sys.executable, "program.py"]]
    monkeypatch.setattr(owner, name, value)
    keep_freed_memory()
    assert len(started) == 1


def test_any_program_runs_under_the_settings() -> None:
    _, words = run("-m", "mudreamer_fast.machine.allocator", "-c", SHOW, "one")
    assert words[1:] == [SETTINGS["MALLOC_TOP_PAD_"], "one"]


def test_a_program_that_cannot_be_given_them_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mudreamer_fast.machine.allocator", "-c", SHOW],
        env=os.environ | {"MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no glibc here")
    assert not done.stdout


def test_what_is_freed_between_blocks_in_use_goes_back_to_the_system() -> None:
    program = """
from pathlib import Path
from mudreamer_fast.machine.allocator import give_back_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

blocks = [b"x" * 1_000_000 for _ in range(100)]
full = resident()
del blocks[:-1]
freed = resident()
give_back_freed_memory()
print(full - freed, freed - resident())
"""
    _, (before, returned) = run("-c", program, **SETTINGS)
    assert int(before) < 5_000_000, "the settings keep what is freed"
    assert int(returned) > 90_000_000
