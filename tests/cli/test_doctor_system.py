"""What the doctor finds out about the system beneath the program."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from mudreamer_fast.cli import doctor
from mudreamer_fast.machine.handles import LEAST_HANDLES


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_file_system_in_order_is_said_to_be(tmp_path: Path) -> None:
    assert [finding.line() for finding in doctor._files()] == [
        f"ok    locks        there are locks in {tmp_path}",
        "ok    clock        files are dated by it",
    ]
    assert list(tmp_path.iterdir()) == []


def test_missing_locks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock, clock = doctor._files()
    assert lock.line() == (
        f"ok    locks        none in {tmp_path} (No locks available): "
        "a replay on disk needs another folder"
    )
    assert clock.detail == "files are dated by it"


@pytest.mark.parametrize(
    ("shift", "detail"),
    [(3600, "3600 s behind the clock"), (-40, "40 s ahead of the clock"), (2, "by it")],
)
def test_a_file_system_with_another_clock_is_told(
    shift: float, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.fstat

    class Shifted:
        def __init__(self, descriptor: int) -> None:
            self._stat = stat(descriptor)
            self.st_mtime = now - shift

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stat, name)

    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(os, "fstat", Shifted)
    _, clock = doctor._files()
    assert clock.line() == f"ok    clock        files are dated {detail}"


def test_a_folder_that_cannot_be_written_to_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(options["dir"]))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    (finding,) = doctor._files()
    assert finding.line() == (
        f"FAIL  files        cannot write to {tmp_path} (Permission denied): give train --run-dir"
    )


@pytest.mark.parametrize(
    ("limit", "line"),
    [
        (1024, "ok    handles      up to 1024 open files"),
        (LEAST_HANDLES, f"ok    handles      up to {LEAST_HANDLES} open files"),
        (
            32,
            "FAIL  handles      up to 32 open files, and a run needs 64: ulimit -n 1024",
        ),
        (resource.RLIM_INFINITY, "ok    handles      any number of open files"),
    ],
)
def test_the_limit_of_open_files_is_told(
    limit: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (min(16, limit), limit))
    assert doctor._handles().line() == line


def test_shared_memory_that_multiprocessing_cannot_use_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage("."))
    free = 5 << 20
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(free, 0, free))
    assert doctor._shared(str(tmp_path)).line() == (
        f"ok    shared       5.0 MiB free in {tmp_path}"
    )
    (tmp_path / "file").touch()
    assert doctor._shared(f"{tmp_path}/file").line() == (
        f"ok    shared       not usable: cannot write to {tmp_path}/file: "
        "gym tasks need --env.backend sync"
    )
    free = 1 << 16
    assert doctor._shared(str(tmp_path)).line() == (
        f"ok    shared       0.1 MiB free in {tmp_path}: gym tasks need --env.backend sync"
    )
    monkeypatch.undo()
    assert doctor._shared("/no/such/folder").line() == (
        "ok    shared       not usable: /no/such/folder: No such file or directory: "
        "gym tasks need --env.backend sync"
    )


def test_caches_that_cannot_be_written_to_are_told_with_their_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "new" / "triton"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert doctor._caches().line() == f"ok    caches       {tmp_path}/new/triton, {tmp_path}"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(file / "inductor"))
    assert doctor._caches().line() == (
        f"ok    caches       cannot write to {file}/inductor: set TORCHINDUCTOR_CACHE_DIR"
    )
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setenv("TRITON_HOME", str(file))
    assert (
        f"cannot write to {file}/.triton/cache: set TRITON_CACHE_DIR; " in doctor._caches().detail
    )
    assert not (tmp_path / "new").exists(), "nothing is made"


@pytest.mark.parametrize(
    ("there", "variable", "detail"),
    [
        ({"gcc", "clang"}, None, "/bin/gcc"),
        ({"clang"}, None, "/bin/clang"),
        ({"gcc", "cc-9"}, "cc-9", "/bin/cc-9"),
        (set(), None, "not usable: neither gcc nor clang is there: install gcc"),
        ({"gcc"}, "cc-9", "not usable: CC names cc-9, which is not there: install gcc"),
    ],
)
def test_the_compiler_that_triton_takes_is_named(
    there: set[str], variable: str | None, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    if variable:
        monkeypatch.setenv("CC", variable)
    Path("Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda kind: ".")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    finding = doctor._compiler()
    assert finding.ok, "there are other operations"
    assert finding.detail.startswith(detail)
    Path("Python.h").unlink()
    if there and "not usable" not in detail:
        assert doctor._compiler().detail.startswith("not usable: Python.h is missing")
