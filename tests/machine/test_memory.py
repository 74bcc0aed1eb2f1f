from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mudreamer_fast.config import ConfigError
from mudreamer_fast.machine.memory import (
    GIB,
    RESERVED_BYTES,
    available_bytes,
    check_replay_room,
    disk_bytes,
    resident_bytes,
)
from tests import tiny


def test_available_memory_is_what_the_system_has() -> None:
    available = available_bytes()
    assert available is not None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available <= total
    assert 10**7 < resident_bytes() < total


FILES = {
    "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n",
    "/sys/fs/cgroup/memory.max": "4000000\n",
    "/sys/fs/cgroup/memory.current": "1000000\n",
}


@pytest.mark.parametrize(
    ("files", "available"),
    [
        (FILES, 3_000_000),
        (FILES | {"/sys/fs/cgroup/memory.max": "max\n"}, 5000 * 1024),
        (FILES | {"/sys/fs/cgroup/memory.current": "4000001\n"}, 0),
        ({}, None),
    ],
    ids=["a-group's-limit", "no-limit", "over-the-limit", "nothing-told"],
)
def test_available_memory_is_the_least_that_the_system_tells(
    files: dict[str, str], available: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    assert available_bytes() == available
    assert resident_bytes() == 0


def test_replay_that_would_not_fit_is_refused_with_the_capacity_that_would() -> None:
    fields = {"image": tiny.IMAGE, "vector": tiny.VECTOR}
    step_bytes = 3 * 64 * 64 + 4 * 3
    available = RESERVED_BYTES + 1000 * step_bytes
    check_replay_room(fields, 1000, 10**9, available)
    check_replay_room(fields, 10**9, 1000, available)  # never filled
    check_replay_room(fields, 10**9, 10**9, None)
    with pytest.raises(ConfigError, match=r"capacity_steps 1001 needs.* 1000 steps would fit") as e:
        check_replay_room(fields, 1001, 10**9, available)
    assert "\n" not in str(e.value)
    with pytest.raises(ConfigError, match=r"\b0 steps would fit"):
        check_replay_room(fields, 5, 5, GIB // 2)


def test_a_folders_room_is_the_free_disk_and_what_it_holds(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    missing = tmp_path / "not" / "there"
    assert disk_bytes(missing) == pytest.approx(free, rel=0.01)
    (tmp_path / "held").write_bytes(b"")
    os.truncate(tmp_path / "held", 10**13)
    assert disk_bytes(tmp_path) == pytest.approx(free + 10**13, rel=0.01)
