"""Where and of what a measurement was made: device, driver, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import torch

from bench.commit import commit

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where benchmarks run."""
GPU = DEVICE.type == "cuda"
SHORT = bool(os.environ.get("BENCH_SHORT"))
"""Whether benchmarks are to take the least of all, once each: to show that they work."""

Size = TypeVar("Size")


def sized(gpu: Size, cpu: Size, short: Size) -> Size:
    """A size for the machine at hand, or the least."""
    return short if SHORT else gpu if GPU else cpu


def surroundings() -> dict[str, str]:
    """Device, driver, versions and commit; a processor has no driver and no CUDA."""
    found = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": installed("triton"),
        "commit": commit(),
    }
    if DEVICE.type == "cuda":
        found |= {"cuda": str(torch.version.cuda), "driver": driver()}
    return found


def installed(package: str) -> str:
    """A package's version, or that it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def driver() -> str:
    """The version of NVIDIA's driver, as far as it can be found."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    return said.strip().split("\n")[0] or "unknown"


def session_name(dry: bool) -> str:
    """What the files of a session begin with: date, device and commit."""
    device = re.sub(r"[^a-z0-9]+", "-", surroundings()["device"].lower()).strip("-")
    return f"{date.today()}-{'dry-' if dry else ''}{device}-{commit()}"


if __name__ == "__main__":
    without_gpu = sys.argv[1:] == ["--dry"]
    if DEVICE.type == "cpu" and not without_gpu:
        sys.exit("error: PyTorch finds no CUDA GPU here; DRY_RUN=1 shows that the script works")
    print(session_name(without_gpu))
