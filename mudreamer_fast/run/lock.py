"""One owner of a run folder at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType

from mudreamer_fast.config import ConfigError

LOCK_FILE = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks answer; there a run goes on without one."""


class RunLock:
    """Holds a run folder for this process, until it is closed or the process ends, however it does.

    The lock is the system's (`flock`), so that a dead owner holds nothing, on another host neither
    where the network file system passes locks on.

    Args:
        folder: made where missing.

    Raises:
        ConfigError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / LOCK_FILE
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._file = self._open()
        owner = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name in it
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, owner, 0)

    def close(self) -> None:
        """Lets go of the folder, and removes it where it was made here and holds nothing.

        A second call does nothing.
        """
        if self._file < 0:
            return
        with contextlib.suppress(OSError):
            if self._made and os.listdir(self._folder) == [LOCK_FILE]:
                self._path.unlink()
                for path in self._made:
                    path.rmdir()
        os.close(self._file)
        self._file = -1

    def _open(self) -> int:
        """The locked file that stands at the path."""
        while True:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            except FileNotFoundError:  # another process has just removed the empty folder
                continue
            try:
                self._lock(file)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file), os.stat(self._path)):
                        return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)  # another process has just removed it: the lock is on nothing

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(file, 1000, 0).decode(errors="replace").strip()
            raise ConfigError(
                f"{self._folder} is in use by {owner or 'another process'}: "
                "stop it first, or name another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
