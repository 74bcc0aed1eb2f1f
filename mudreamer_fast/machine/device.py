"""Where a run computes: device, CPU threads, arithmetic."""

from __future__ import annotations

import os
import re
import subprocess

import torch

from mudreamer_fast.config import ConfigError, Precision


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


def settle_arithmetic(threads: int | None, precision: Precision) -> None:
    """Settle PyTorch's CPU threads, None for its own choice, and how a GPU multiplies.

    It takes TF32 where operands may have fewer bits than float32; those of bfloat16, which updates
    alone have, are `backend.precision`'s.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    tf32 = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32  # convolutions, which use it unless told otherwise


def overlaps(setting: str, device: torch.device) -> bool:
    """Whether to act and learn at once: on, off, or auto, where there is something to gain by it.

    That is on a GPU, or where PyTorch's threads leave a core to the environments.
    """
    if setting == "auto":
        return device.type == "cuda" or torch.get_num_threads() < usable_cores()
    return setting == "on"


def busy_with_others(device: torch.device) -> str:
    """What else this machine is doing, as far as it shows: nothing, where measurements are sound.

    Ask before work begins that shows in these figures itself.
    """
    said = []
    load, cores = os.getloadavg()[0], usable_cores()
    if load > cores / 2:
        said.append(f"a load average of {load:.1f} on {cores} cores")
    if device.type == "cuda":
        others = _processes_on(device) - {os.getpid()}
        if others:
            said.append(f"{len(others)} other processes on the GPU")
    return " and ".join(said)


def _processes_on(device: torch.device) -> set[int]:
    """Processes that compute on a GPU; none where the driver's tool does not say."""
    command = [
        "nvidia-smi", f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}",
        "--query-compute-apps=pid", "--format=csv,noheader",
    ]  # fmt: skip
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return {int(line) for line in said.stdout.split() if line.isdecimal()}


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))
