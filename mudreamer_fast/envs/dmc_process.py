"""A worker process seen from its parent: started, asked, and ended."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from mudreamer_fast.config import ConfigError
from mudreamer_fast.envs.dmc_worker import Failure
from mudreamer_fast.envs.interpreter import python_command

START_SECONDS = 300.0
"""How long a worker may take over its first answer, for which it loads its simulator."""
ANSWER_SECONDS = 60.0
"""How long it may take over any other before it counts as hung."""
CLOSE_SECONDS = 5.0
"""How long it may take to end before it is killed."""

_WAIT_SECONDS = 1.0

_PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
import sys
from mudreamer_fast.envs.dmc_worker import main
main(*map(int, sys.argv[1:]))
"""
"""What asks a whole job to stop asks its workers too; what follows is the parent's business."""


class WorkerCrash(Exception):
    """A worker that has died or hangs; the message says in one line what became of it."""


class WorkerProcess:
    """One environment in a process of its own.

    A fresh interpreter rather than a fork: neither PyTorch's threads nor OpenGL survive a fork. It
    is in a session of its own, so that a terminal's signals do not reach it.

    Args:
        memory: descriptor of the memory that holds the images of all environments.
        setup: what the worker makes its simulator of.

    Raises:
        OSError: the system refuses a process, or files.
    """

    def __init__(self, memory: int, *setup: Any) -> None:
        self._connection: Connection[Any, Any]
        self._connection, theirs = Pipe()
        descriptors = theirs.fileno(), memory
        try:
            self.process = subprocess.Popen(
                python_command(_PROGRAM, str(os.getpid()), *map(str, descriptors)),
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,
            )
        except OSError:
            self._connection.close()
            raise
        finally:
            theirs.close()
        self._patience_seconds = START_SECONDS
        self.send(*setup)

    def send(self, *message: Any) -> None:
        """Sends a command; where the worker is gone, `receive` says so."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def receive(self) -> Any:
        """The answer to the oldest command that has none yet.

        Raises:
            WorkerCrash: the worker has failed or died, or does not answer in time.
            ConfigError: the user's settings are to blame.
        """
        try:
            if not self._answers():
                raise WorkerCrash(f"no answer within {self._patience_seconds:g} s")
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise WorkerCrash(f"its process ended with code {self.end()}") from None
        if isinstance(answer, Failure):
            raise (ConfigError if answer.is_config_error else WorkerCrash)(answer.text)
        self._patience_seconds = ANSWER_SECONDS
        return answer

    def _answers(self) -> bool:
        # many short waits: time in which the whole job was suspended counts as one of them
        wait = min(_WAIT_SECONDS, self._patience_seconds)
        waits = math.ceil(self._patience_seconds / wait)
        return any(self._connection.poll(wait) for _ in range(waits))

    def hang_up(self) -> None:
        """Closes the connection, which has the worker end."""
        self._connection.close()

    def end(self, grace_seconds: float | None = None) -> int | None:
        """Ends the worker, by force where it does not end itself.

        Args:
            grace_seconds: how long it may take; None takes `CLOSE_SECONDS`.

        Returns:
            Its exit code; None where not even force ends it, as when a driver holds it.
        """
        self.hang_up()
        try:
            return self.process.wait(CLOSE_SECONDS if grace_seconds is None else grace_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(CLOSE_SECONDS)
        return None
