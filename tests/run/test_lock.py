from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mudreamer_fast.config import ConfigError
from mudreamer_fast.run.lock import LOCK_FILE, RunLock
from tests.patience import PATIENCE_SECONDS

_OWNER = """
import sys
from pathlib import Path
from mudreamer_fast.run.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def owner(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_has_one_owner_and_the_other_is_told_which(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = owner(folder)
    with other:
        with pytest.raises(ConfigError, match=rf"in use by process {other.pid} on "):
            RunLock(folder)
        other.kill()
        other.wait(PATIENCE_SECONDS)
        with RunLock(folder) as lock:  # a dead owner holds nothing
            (folder / LOCK_FILE).unlink()
            assert lock._owner() == ""  # nor one whose file is gone


def test_a_folder_that_stays_empty_goes_again(tmp_path: Path) -> None:
    with RunLock(tmp_path / "runs" / "run"):
        assert (tmp_path / "runs" / "run" / LOCK_FILE).exists()
    assert list(tmp_path.iterdir()) == []
    with RunLock(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    assert (tmp_path / "run" / "config.json").exists()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(precious)
    with pytest.raises(OSError, match="its lock is no regular file"):
        RunLock(tmp_path / "run")
    assert precious.read_text() == "text"


def test_a_lock_removed_while_it_is_waited_for_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    real, opened = os.open, []

    def open_and_lose(path: Path, *arguments: int) -> int:
        file = real(path, *arguments)
        opened.append(file)
        if len(opened) == 1:
            os.unlink(path)
        return file

    monkeypatch.setattr(os, "open", open_and_lose)
    with RunLock(folder):
        assert len(opened) == 2
        with pytest.raises(ConfigError, match="in use"):
            RunLock(folder)


def test_a_folder_that_is_removed_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real, calls = tmp_path / "run", os.open, []

    def remove_first(path: Path, *arguments: int) -> int:
        calls.append(path)
        if len(calls) == 1:
            folder.rmdir()
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", remove_first)
    with RunLock(folder) as lock:
        assert len(calls) == 2
        lock.close()
        lock.close()


def test_a_file_system_without_locks_is_no_hindrance_and_another_error_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        def flock(*_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    refuse(errno.ENOLCK)
    with RunLock(tmp_path):
        pass
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        RunLock(tmp_path)
