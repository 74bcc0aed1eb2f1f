"""Memory that is kept: arrays as large as the last update's need not be fetched from the system.

glibc returns large freed blocks to the system, which clears every page before it lends it again.
On the CPU, at size S, that is up to a third of an update. Its settings are read when a program
starts; so a program that wants them starts once more.

    python -m mudreamer_fast.machine.allocator -m pytest bench    # any program, with the settings
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",  # large blocks from the heap, not each from the system
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),  # what is freed at the heap's end stays there
    "MALLOC_TOP_PAD_": str(1 << 28),  # the heap grows in large steps
}
"""Environment variables of glibc's allocator."""


def keep_freed_memory(arguments: Sequence[str] | None = None) -> None:
    """Starts this program once more under `SETTINGS`; returns where that is done or not possible.

    A variable that the user has set is a choice of their own, and leaves everything as it is.

    Args:
        arguments: those of the Python interpreter; None takes this process's own.
    """
    if not _has_glibc() or any(name.startswith("MALLOC_") for name in os.environ):
        return
    if not sys.executable or not sys.orig_argv[1:]:
        return
    words = sys.orig_argv[1:] if arguments is None else arguments
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *words], os.environ | SETTINGS)


def give_back_freed_memory() -> None:
    """Returns what is free now to the system, in holes between what is in use too.

    What comes and goes among the arrays of the updates, as the simulators of an evaluation do,
    leaves its blocks in other places each time. Without this the program grows with each of them,
    more and more slowly. What is needed again is fetched again, once. Does nothing without glibc.
    """
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, ValueError, OSError):  # another system, or another C library
        return False


if __name__ == "__main__":
    keep_freed_memory(sys.argv[1:])
    sys.exit("error: no glibc here, or the environment has MALLOC_ settings of its own")
