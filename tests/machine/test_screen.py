from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from mudreamer_fast.machine.screen import say
from tests.patience import PATIENCE_SECONDS

_TALKER = """
import sys
from mudreamer_fast.machine.screen import say
sys.stdin.readline()
for _ in range(3):
    say("a line\\n")
print("done", flush=True)
"""


def test_a_pipe_that_nobody_reads_any_more_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _TALKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    process.stderr.close()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.close()
    assert process.stdout.read() == "done\n"
    process.stdout.close()
    assert process.wait(PATIENCE_SECONDS) == 0  # 120 if the interpreter could not flush it


def test_a_program_without_standard_error_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    say("unheard\n")


def test_a_closed_stream_is_no_error() -> None:
    stream = io.StringIO()
    stream.close()
    say("unheard\n", stream)


def test_a_full_disk_loses_the_line_and_keeps_the_stream() -> None:
    with open("/dev/full", "w") as full:
        say("lost\n", full)
        assert os.fstat(full.fileno()).st_rdev == os.stat("/dev/full").st_rdev
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # for the flush at its end


def test_what_a_stream_cannot_show_is_shown_escaped() -> None:
    plain = io.TextIOWrapper(io.BytesIO(), "ascii")
    say("über/\udcff\n", plain)
    assert plain.buffer.getvalue() == b"\\xfcber/\\udcff\n"  # type: ignore[attr-defined]
