"""What this machine offers a run: device, threads, memory, random generators, stop signals."""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import signal
import threading
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, Protocol

import numpy as np
import torch

from mudreamer_fast.config import ConfigError

GIB = 1 << 30
RESERVED_BYTES = GIB
"""Left free by the replay buffer, in memory and on disk, for everything else."""


def resolve_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: another name, or a GPU that is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    available = torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and not available):
        return torch.device("cpu")
    if not available:
        raise ConfigError(f"device {name} was asked for, but PyTorch finds no CUDA GPU here")
    device = torch.device("cuda" if name == "auto" else name)
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(f"device {name} was asked for, but there are {count} GPUs, from cuda:0")
    return torch.device("cuda", device.index or 0)


def threads_beside_acting(threads: int | None, overlap: str, device: torch.device) -> int | None:
    """CPU threads for PyTorch, None for its own choice: `threads`, where a number is asked for.

    Where overlap is on they leave a core to the environments: threads that wait for one another at
    every operation lose more than a core when one of them has to share it.
    """
    spare = usable_cores() - 1
    if threads is not None or overlap != "on" or device.type != "cpu":
        return threads
    return spare if 1 <= spare < torch.get_num_threads() else None


def settle_arithmetic(threads: int | None, tf32: bool) -> None:
    """Settle PyTorch's CPU threads, None for its own choice, and how a GPU multiplies."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32  # convolutions, which use it unless told otherwise


def overlaps(setting: str, device: torch.device) -> bool:
    """Whether to act and learn at once: on, off, or auto, where there is something to gain by it.

    That is on a GPU, or where PyTorch's threads leave a core to the environments.
    """
    if setting == "auto":
        return device.type == "cuda" or torch.get_num_threads() < usable_cores()
    return setting == "on"


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_bytes() -> int | None:
    """Memory that a process can still take: MemAvailable, or less where a cgroup limits it.

    None where the system does not say.
    """
    found = []
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        match = None
    if match:
        found.append(int(match[1]) * 1024)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such controller, or the word "max"
            continue
    return max(0, min(found)) if found else None


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


def seed_everything(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)


class SeedUse(IntEnum):
    """Everything that a run's seed is used for; each draws from a seed of its own."""

    COLLECT = 0
    """The environments that the replay is collected in."""
    REPLAY = 1
    """Which sequences are sampled."""
    PREFILL = 2
    """The random actions of the prefill."""
    ACT = 3
    """The agent's latents and actions in these environments."""
    EVALUATION = 4
    """The environments of evaluations: the same episodes for every policy."""
    RANDOM_POLICY = 5
    """The actions of the random policy that the agent is compared with."""
    EVALUATION_POLICY = 6
    """The agent's latents and actions in evaluations."""
    WEIGHTS = 7
    """The weights at the start."""
    LEARN = 8
    """The latents and actions of updates."""
    GLOBAL = 9
    """The global generators of Python, NumPy and PyTorch, which libraries may draw from."""


def derived_seed(seed: int, use: SeedUse, number: int = 0) -> int:
    """A seed below 2^30 for one use of a run's seed, so that uses and neighbouring runs differ.

    Args:
        seed: the run's.
        use: what for.
        number: tells several of one use apart.
    """
    return int(np.random.SeedSequence([seed, use, number]).generate_state(1)[0]) >> 2


def generator_states() -> dict[str, Any]:
    """States of the global generators, for a checkpoint."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_generator_states(states: dict[str, Any]) -> None:
    """Takes back what `generator_states` gave; GPU states only where the GPUs are as many."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


class Stopped(Exception):
    """Raised inside a long call, such as an evaluation, when a stop was asked for."""


class StopSignals:
    """Turns the first Ctrl-C (or SIGTERM) into a request to stop; the second ends at once.

    After the first, the system's own handling is put back, so that the second needs no Python
    code to run and works in the middle of a long native call.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for other in self.SIGNALS:
            signal.signal(other, signal.SIG_DFL)

    def raise_if_received(self) -> None:
        """Raises Stopped once a stop was asked for."""
        if self.received is not None:
            raise Stopped
