"""One owner of a run folder at a time."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from pathlib import Path

from mudreamer_fast.config import ConfigError
from mudreamer_fast.disk.lock import LockedError, open_locked

LOCK_FILE = "lock"


class RunLock:
    """Holds a run folder for this process, until it is closed or the process ends, however it does.

    Args:
        folder: made where missing.

    Raises:
        ConfigError: another process holds it.
        OSError: it cannot be locked; see `disk.lock.open_locked`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / LOCK_FILE
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._file = self._open()
        owner = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name in it
            self._file.truncate(0)
            self._file.write(owner)

    def close(self) -> None:
        """Lets go of the folder, and removes it where it was made here and holds nothing.

        A second call does nothing.
        """
        if self._file.closed:
            return
        with contextlib.suppress(OSError):
            if self._made and os.listdir(self._folder) == [LOCK_FILE]:
                self._path.unlink()
                for path in self._made:
                    path.rmdir()
        self._file.close()

    def _open(self) -> io.FileIO:
        """The locked file that stands at the path."""
        while True:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                file = open_locked(self._path)
            except FileNotFoundError:  # another process has just removed the empty folder
                continue
            except LockedError:
                raise ConfigError(
                    f"{self._folder} is in use by {self._owner() or 'another process'}: "
                    "stop it first, or name another folder"
                ) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._path)):
                    return file
            file.close()  # another process has just removed it: the lock is on nothing

    def _owner(self) -> str:
        """What the owner has written into the lock."""
        with contextlib.suppress(OSError):
            return self._path.read_text(errors="replace").strip()
        return ""

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
