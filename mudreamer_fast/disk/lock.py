"""Locks between processes: a file that its owner has locked, until it ends, however it does."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
from pathlib import Path

_CAREFULLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Follows no symbolic link and waits for nobody, where a pipe stands in the file's place."""
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks answer."""


class LockedError(OSError):
    """A lock that is held already, by this process or by another."""


def open_locked(path: Path) -> io.FileIO:
    """Opens a file, made where it is missing, and locks it until it is closed.

    The lock is the system's (`flock`), so that a dead owner holds nothing, on another host neither
    where the network file system passes locks on. On a file system without locks the file is opened
    without one.

    Args:
        path: the file; its folder is there.

    Raises:
        LockedError: it is locked already.
        OSError: it cannot be opened or locked, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _CAREFULLY, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _irregular(path) from None
        raise
    file = io.FileIO(descriptor, "r+")
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _irregular(path)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return file
        file.close()
        if error.errno in _BUSY:
            raise LockedError(error.errno, error.strerror, str(path)) from None
        raise
    return file


def _irregular(path: Path) -> OSError:
    return OSError(errno.EINVAL, "its lock is no regular file", str(path))
