"""What a program says while it works: a screen that is gone must not end the work."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TextIO

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


def say(text: str, stream: TextIO | None = None) -> None:
    """Writes text where a user may see it, if anyone still can.

    A closed pipe or terminal is exchanged for the null device, so that nothing that is written
    later, by whomever, fails there; what does not fit a full disk is lost.

    Args:
        text: with its line ends.
        stream: None takes standard error.
    """
    target = sys.stderr if stream is None else stream
    if target is None:  # the program was started without one
        return
    encoding = target.encoding or "utf-8"
    try:
        # a file's name need not be text, nor the stream able to show all that is
        target.write(text.encode(encoding, "backslashreplace").decode(encoding))
        target.flush()
    except OSError as error:
        if error.errno in _GONE:
            silence(target)
    except ValueError:  # a stream that was closed
        pass


def silence(stream: TextIO) -> None:
    """Has a stream write to the null device from now on."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)
