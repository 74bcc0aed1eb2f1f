"""How much a run may keep, in memory and on disk."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from mudreamer_fast.config import ConfigError

GIB = 1 << 30

RESERVED_BYTES = GIB
"""Left free by the replay buffer, in memory and on disk, for everything else."""


def available_bytes() -> int | None:
    """Memory that a process can still take: MemAvailable, or less where a cgroup limits it.

    None where the system does not say.
    """
    amounts = []
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        match = None
    if match:
        amounts.append(int(match[1]) * 1024)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            amounts.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such controller, or the word "max"
            continue
    return max(0, min(amounts)) if amounts else None


def resident_bytes() -> int:
    """Memory that this process occupies now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class FieldLike(Protocol):
    """Shape and dtype of one stored field."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one step."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements."""


def replay_bytes(fields: Mapping[str, FieldLike], steps: int) -> int:
    """Bytes that a number of replay steps take."""
    return steps * sum(math.prod(field.shape) * field.dtype.itemsize for field in fields.values())


def disk_bytes(folder: Path) -> int:
    """What a folder may come to hold: the free bytes of its disk, and those of its own files."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    own = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return shutil.disk_usage(there).free + own


def check_replay_room(
    fields: Mapping[str, FieldLike],
    capacity_steps: int,
    needed_steps: int,
    available: int | None,
    kind: Literal["memory", "disk"] = "memory",
) -> None:
    """Refuses a replay buffer that would not fit where it is kept by the end of the run.

    Args:
        fields: what is stored of a step.
        capacity_steps: steps that the buffer may hold.
        needed_steps: steps that the run will write.
        available: bytes that can be taken, from `available_bytes` or `disk_bytes`.
        kind: of what.

    Raises:
        ConfigError: says what is needed, what there is, and which capacity would fit.
    """
    if available is None:
        return
    needed = replay_bytes(fields, min(capacity_steps, needed_steps))
    bytes_per_step = replay_bytes(fields, 1)
    room = max(0, available - RESERVED_BYTES)
    if needed > room:
        raise ConfigError(
            f"replay.capacity_steps {capacity_steps} needs {needed / GIB:.1f} GiB "
            f"of {kind} ({bytes_per_step} bytes a step), {available / GIB:.1f} GiB are available "
            f"and {RESERVED_BYTES / GIB:.0f} stays for the rest: "
            f"{room // bytes_per_step} steps would fit"
        )
