"""What a run tells while it trains: its speed, a line on standard error, averages to the log."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mudreamer_fast.collect import Episode
from mudreamer_fast.config import Config
from mudreamer_fast.evaluate import Evaluation
from mudreamer_fast.machine.memory import resident_bytes
from mudreamer_fast.machine.screen import say
from mudreamer_fast.run.metrics import MetricsLogger
from mudreamer_fast.run.trackers import open_tracker
from mudreamer_fast.run.watch import LearningWatch


class Progress:
    """The live line: overwritten in place on a terminal, a plain line now and then elsewhere.

    A screen that is gone is no reason to end a run: see `machine.screen.say`.
    """

    REDRAW_SECONDS = 0.5

    def __init__(
        self, every_seconds: float, stream: TextIO | None = None, silent: bool = False
    ) -> None:
        """Takes seconds between two lines where the stream is no terminal."""
        self._silent = silent
        self._stream = stream or sys.stderr
        self._live = self._stream is not None and self._stream.isatty()
        self._every_seconds = self.REDRAW_SECONDS if self._live else every_seconds
        self._next = 0.0
        self._width = 0

    def show(self, text: Callable[[], str]) -> None:
        """Draws the line if it is time; `text` is only called then."""
        now = time.monotonic()
        if now < self._next or self._silent:
            return
        self._next = now + self._every_seconds
        line = text()
        if self._live:
            # A line that wraps could not be drawn over.
            line = line[: shutil.get_terminal_size().columns - 1]
            say("\r" + line.ljust(self._width), self._stream)
            self._width = len(line)
        else:
            say(line + "\n", self._stream)

    def message(self, line: str) -> None:
        """Prints a line that stays, above the live one."""
        if self._silent:
            return
        if self._live and self._width:
            say("\r" + " " * self._width + "\r", self._stream)
            self._width = 0
        say(line + "\n", self._stream)

    def close(self) -> None:
        """Ends the live line, so that what follows starts on a line of its own."""
        if self._live and self._width:
            say("\n", self._stream)
            self._width = 0


def clock_text(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def span_text(seconds: float) -> str:
    """Seconds in the two units that matter: 2 d 3 h, 1 h 20 min, 12 min or 45 s."""
    if not math.isfinite(seconds):
        return "?"
    minutes = round(max(0.0, seconds) / 60)
    if minutes < 2:
        return f"{round(max(0.0, seconds))} s"
    hours, minute = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minute} min" if hours else f"{minute} min"
    days, hour = divmod(round(minutes / 60), 24)
    return f"{days} d {hour} h"


class Speed:
    """Rates of some counters over the last seconds.

    Args:
        window_seconds: span that the rates are taken over, once it has passed.
    """

    def __init__(self, window_seconds: float = 30.0) -> None:
        self._window_seconds = window_seconds
        self._marks: deque[tuple[float, tuple[float, ...]]] = deque()

    def mark(self, now: float, *counts: float) -> None:
        """Notes the counters' values at a time in seconds."""
        self._marks.append((now, counts))
        while len(self._marks) > 2 and now - self._marks[1][0] >= self._window_seconds:
            self._marks.popleft()

    def rates(self) -> tuple[float, ...]:
        """Growth of each counter per second; zeros before two marks."""
        (then, old), (now, new) = self._marks[0], self._marks[-1]
        seconds = now - then
        return tuple(
            (b - a) / seconds if seconds > 0 else 0.0 for a, b in zip(old, new, strict=True)
        )


@dataclass(frozen=True)
class Standing:
    """Where a run stands when it reports."""

    env_steps: int
    """Simulator steps taken."""
    policy_steps: int
    """Policy steps taken, over all environments."""
    learning_policy_steps: int
    """Those that updates were owed for."""
    updates: int
    """Gradient updates done."""
    skipped_updates: int
    """Those of them that were not finite and changed nothing, in this process."""
    seconds: float
    """Wall time of the run."""
    seconds_left: float
    """Wall time until max_minutes stops it; infinite without."""
    waited_seconds: float
    """Wall time that the learner waited, for steps or batches, in this process."""
    collecting_seconds: float
    """Wall time that policy and environments took, in this process."""


class Reporter:
    """Takes what happens in a run and tells it: to the screen now, to the log every so often.

    Args:
        config: the run's settings.
        folder: run folder.
        resumed_at: environment steps and seconds of the run when the checkpoint that it goes on
            from was made; None for a new run.
        policy_entropy: the lowest and the highest that the policy can have, nats.
        silent: tell the log alone.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        resumed_at: tuple[int, float] | None,
        policy_entropy: tuple[float, float],
        silent: bool = False,
    ) -> None:
        self.config, self._folder = config, folder
        self.progress = Progress(config.train.log_every_seconds, silent=silent)
        env_steps, seconds = resumed_at or (None, math.inf)
        tracker = None if silent else open_tracker(config, folder)
        warn = self.progress.message
        self.logger = MetricsLogger(folder, env_steps, seconds, warn=warn, tracker=tracker)
        self.last_score: float | None = None
        self._watch = LearningWatch(config.model, policy_entropy)
        self._speed = Speed()
        self._next_log = time.monotonic() + config.train.log_every_seconds

    def message(self, line: str) -> None:
        """Shows a line that stays."""
        self.progress.message(line)

    def introduce(self, on: str, why: str = "") -> None:
        """Says where a run lies, what it runs on and why, and how much it learns from a step."""
        ratio = self.config.train.train_ratio
        self.message(f"run folder {self._folder}")
        self.message(f"{self.config.env.task} on {on}")
        if why:
            self.message(f"backend {self.config.train.backend}: {why}")
        self.message(
            f"train ratio {ratio:g}: {ratio:g} replayed steps per policy step, "
            f"{ratio / self.config.env.action_repeat:g} per environment step; "
            f"{self.config.updates_per_policy_step:g} updates per policy step"
        )

    def episode(self, episode: Episode, env_steps: int, seconds: float) -> None:
        """Notes a finished training episode."""
        self.last_score = episode.score
        values = {"score": episode.score, "length_steps": episode.length_steps}
        self._told("episode", {**episode.facts, **values}, env_steps, seconds)

    def scores(self, name: str, evaluation: Evaluation, env_steps: int, seconds: float) -> None:
        """Notes the returns of an evaluation of the agent, or of the random policy."""
        scores = evaluation.scores
        values = {"score": sum(scores) / len(scores), "scores": list(scores)}
        self._told(name, {**evaluation.mean_facts, **values}, env_steps, seconds)

    def _told(self, name: str, values: Mapping[str, Any], env_steps: int, seconds: float) -> None:
        values = {f"{name}/{part}": value for part, value in values.items()}
        self.logger.write(env_steps, seconds, values)

    def update(self, metrics: Mapping[str, float]) -> None:
        """Notes what an update gave; a number that is not finite would spoil the average."""
        self.logger.add({name: value for name, value in metrics.items() if math.isfinite(value)})

    @property
    def line_is_due(self) -> bool:
        """Whether `tick` is about to write a line of averages."""
        return time.monotonic() >= self._next_log

    def waited(self, for_batches: float, for_steps: float, of: float) -> None:
        """Says what share of the time the learner waited; all in seconds."""
        share = 100 / of
        self.message(
            f"the learner waited {(for_batches + for_steps) * share:.1f}% of the time: "
            f"{for_batches * share:.2f}% for batches, "
            f"{for_steps * share:.1f}% for steps to be taken"
        )

    def tick(self, standing: Standing) -> None:
        """Draws the progress line and writes a line of averages, each when it is time."""
        now = time.monotonic()
        self._speed.mark(
            now,
            standing.env_steps,
            standing.updates,
            standing.waited_seconds,
            standing.collecting_seconds,
        )
        self.progress.show(lambda: self._line(standing))
        if not self.line_is_due:
            return
        self._next_log = now + self.config.train.log_every_seconds
        for warning in self._watch.check(self.logger.averages(), standing.updates):
            self.message(warning)
            self.logger.write(standing.env_steps, standing.seconds, {"warning": warning})
        env_rate, update_rate, waiting_share, collecting_share = self._speed.rates()
        values = {
            "run/policy_steps": standing.policy_steps,
            "run/updates": standing.updates,
            "run/skipped_updates": standing.skipped_updates,
            "run/train_ratio": self._ratio(standing),
            "speed/env_steps_per_second": env_rate,
            "speed/updates_per_second": update_rate,
            "speed/waiting_share": waiting_share,
            "speed/collecting_share": collecting_share,
            "machine/resident_bytes": resident_bytes(),
        }
        self.logger.flush(standing.env_steps, standing.seconds, values)

    def close(self) -> None:
        """Closes the log, and ends the live line."""
        self.progress.close()
        self.logger.close()

    def _ratio(self, standing: Standing) -> float:
        """Replayed steps per policy step, as achieved since learning began."""
        replay = self.config.replay
        replayed = standing.updates * replay.batch_size * replay.batch_length
        return replayed / max(1, standing.learning_policy_steps)

    def _line(self, standing: Standing) -> str:
        train = self.config.train
        env_rate, update_rate, *_ = self._speed.rates()
        steps_left = train.env_steps - standing.env_steps
        left = min(steps_left / env_rate if env_rate else math.inf, standing.seconds_left)
        parts = [
            f"{standing.env_steps:,}/{train.env_steps:,} env steps",
            f"{standing.policy_steps:,} policy steps",
            f"{env_rate:.0f} env steps/s",
        ]
        if standing.learning_policy_steps:
            parts += [
                f"{update_rate:.1f} updates/s",
                f"ratio {self._ratio(standing):.1f}/{train.train_ratio:g}",
            ]
        else:
            parts.append("prefill")
        if self.last_score is not None:
            parts.append(f"return {self.last_score:.1f}")
        parts += [f"{clock_text(standing.seconds)} gone", f"{clock_text(left)} to go"]
        return "  ".join(parts)
