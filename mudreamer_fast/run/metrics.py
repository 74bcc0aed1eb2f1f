"""The metrics of a run as JSON lines, and their averages between two lines."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mudreamer_fast.machine.screen import say
from mudreamer_fast.run.tensorboard import TensorBoardWriter
from mudreamer_fast.run.trackers import Tracker

METRICS_FILE = "metrics.jsonl"


class MetricsLogger:
    """Averages scalars between two log lines and writes them, never stopping the run.

    Each line of `metrics.jsonl` is one object with `env_steps`, `seconds` and the metrics. A line
    that cannot be written (disk full) is lost with one warning; the next one is tried again.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        resume_env_steps: int | None = None,
        resume_seconds: float = math.inf,
        tensorboard: bool = True,
        warn: Callable[[str], None] | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        """Opens the log.

        Args:
            folder: run folder.
            resume_env_steps: step of the checkpoint resumed from: later lines, which the resumed
                run will write anew, are dropped. None starts a new log.
            resume_seconds: wall time of the run at that checkpoint: what was written later at its
                very step is dropped too.
            tensorboard: also write TensorBoard events, where the package is installed.
            warn: shows one line to the user; standard error by default.
            tracker: where the scalars go as well.
        """
        self._folder = Path(folder)
        self._path = self._folder / METRICS_FILE
        self._warn = warn or (lambda message: say(message + "\n"))
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._failing = self._tracker_failing = False
        self._tracker = tracker
        self._torn = False
        self._resume_env_steps = resume_env_steps
        self._board: TensorBoardWriter | None = None
        self._folder.mkdir(parents=True, exist_ok=True)
        if resume_env_steps is not None:
            drop_lines_after(self._path, resume_env_steps, resume_seconds)
        self._wants_board = tensorboard and self._has_tensorboard()

    def add(self, values: Mapping[str, float]) -> None:
        """Takes scalars into the averages of the next line."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
            self._counts[name] = self._counts.get(name, 0) + 1

    def averages(self) -> dict[str, float]:
        """Means of what was added since the last flush."""
        return {name: self._sums[name] / self._counts[name] for name in self._sums}

    def flush(self, env_steps: int, seconds: float, values: Mapping[str, float]) -> None:
        """Writes the averages and `values` as one line, and starts new averages."""
        line = {**self.averages(), **values}
        self._sums.clear()
        self._counts.clear()
        self.write(env_steps, seconds, line)

    def write(self, env_steps: int, seconds: float, values: Mapping[str, Any]) -> None:
        """Writes one line at once; values are numbers or, in the JSON file only, lists."""
        row = {"env_steps": env_steps, "seconds": round(seconds, 3), **values}
        self._attempt(lambda: self._append(row))
        scalars = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        if self._wants_board and scalars:
            self._attempt(lambda: self._append_to_board(env_steps, scalars))
        if scalars:
            self._track(lambda tracker: tracker.log(env_steps, scalars))

    def close(self) -> None:
        """Closes the TensorBoard file and the run of the tracker."""
        self._track(lambda tracker: tracker.close())
        self._tracker = None
        if self._board is not None:
            self._attempt(self._board.close)
            self._board = None

    def _append(self, row: Mapping[str, Any]) -> None:
        # NaN is no JSON; the curve and other readers take null.
        clean = {k: None if _not_finite(v) else v for k, v in row.items()}
        # A line cut short by a full disk is closed off, so that it spoils no other.
        text = ("\n" if self._torn else "") + json.dumps(clean) + "\n"
        self._torn = True
        with self._path.open("a") as file:
            file.write(text)
        self._torn = False

    def _has_tensorboard(self) -> bool:
        installed = importlib.util.find_spec("tensorboard") is not None
        if not installed:
            self._warn("note: tensorboard is not installed; metrics go to metrics.jsonl only")
        return installed

    def _append_to_board(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._board is None:
            self._board = TensorBoardWriter(self._folder / "tensorboard", self._resume_env_steps)
        try:
            self._board.add(step, scalars)
        except OSError:
            # An event cut short ends a file for its readers: the next one goes to a new file.
            board, self._board = self._board, None
            self._resume_env_steps = None
            with contextlib.suppress(OSError):
                board.close()
            raise

    def _track(self, act: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            act(self._tracker)
        except Exception as error:  # a service out of reach; its library has no common base
            if not self._tracker_failing:
                reason = " ".join(str(error).split()) or type(error).__name__
                self._warn(f"warning: the tracker took no metrics ({reason}); training goes on")
            self._tracker_failing = True
        else:
            self._tracker_failing = False

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._failing:
                reason = error.strerror or str(error)
                self._warn(f"warning: cannot write metrics ({reason}); training goes on")
            self._failing = True
        else:
            self._failing = False


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def is_number(value: Any) -> bool:
    """Whether a value read from a file is a finite number that a float can hold."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) < 2**63


def read_lines(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Objects of a metrics file in order; a line torn by a crash is passed over."""
    try:
        text = Path(path).read_text(errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and is_number(row.get("env_steps")):
            yield row


def drop_lines_after(path: Path, env_steps: int, seconds: float = math.inf) -> None:
    """Keeps the lines of a metrics file up to a moment of the run, by an atomic replacement.

    Args:
        path: the file; none is made where it is missing.
        env_steps: of the last lines to keep.
        seconds: wall time of the last line to keep at that step.
    """
    if not path.exists():
        return

    def kept(row: Mapping[str, Any]) -> bool:
        if row["env_steps"] != env_steps or not is_number(row.get("seconds")):
            return bool(row["env_steps"] <= env_steps)
        return bool(row["seconds"] <= round(seconds, 3))  # to which lines are rounded

    lines = [json.dumps(row) for row in read_lines(path) if kept(row)]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in lines))
    os.replace(temporary, path)
