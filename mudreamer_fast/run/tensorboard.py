"""Scalars as TensorBoard event files."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO


class TensorBoardWriter:
    """Scalars as TensorBoard events, written in the caller's thread.

    TensorBoard's own writer fails in a thread of its own, with a traceback on the terminal, when
    the disk is full; here the error comes to the caller.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        """Starts an event file; ImportError without the tensorboard package.

        Args:
            folder: where TensorBoard looks for it.
            resume_step: later steps of older files count no more.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        seconds, fraction = divmod(time.time_ns(), 10**9)
        owner = f"{socket.gethostname()}.{os.getpid()}"
        # Readers take files in the order of their names, which is that of time by these zeros.
        name = f"events.out.tfevents.{seconds:010d}.{owner}.{fraction:09d}"
        self._file: BinaryIO = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if resume_step is not None:
            self._write(session_log=SessionLog(status=SessionLog.START), step=resume_step + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one event with all of `values`."""
        summary = self._summary()
        for name, value in values.items():
            summary.value.add(tag=name, simple_value=value)
        self._write(step=step, summary=summary)

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._file.close()
