"""Limits that the system sets to this process, for as long as a test takes."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
from collections.abc import Iterator
from pathlib import Path


def open_files() -> set[int]:
    """The descriptors of this process."""
    listed = map(int, os.listdir("/proc/self/fd"))
    return {number for number in listed if is_open(number)}  # the one that listed them is not


def is_open(descriptor: int) -> bool:
    """Whether this process has a descriptor."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def few_files(spare: int) -> Iterator[None]:
    """Lets this process open so many files more; children that begin meanwhile have the limit."""
    used = open_files()
    # the limit is on a descriptor's number, and the lowest that is free is taken
    free = (number for number in itertools.count() if number not in used)
    limit = next(itertools.islice(free, spare, None))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def little_memory(spare_bytes: int) -> Iterator[None]:
    """Lets this process have so many bytes of address space more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + spare_bytes
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
