"""The updates of a run: those that are owed, and what becomes of those that are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from torch import Tensor

from mudreamer_fast.learner import Learner, Update
from mudreamer_fast.machine.late import LateValues
from mudreamer_fast.run.guard import FiniteGuard
from mudreamer_fast.run.pace import Pace
from mudreamer_fast.run.reporter import Reporter
from mudreamer_fast.run.saving import Saver


class Lessons:
    """Has a learner do the updates that a run's pace asks for.

    Args:
        learner: does them.
        pace: says how many are owed.
        saver: brings earlier weights back where the present ones lead nowhere.
        reporter: is told what they gave.
    """

    def __init__(self, learner: Learner, pace: Pace, saver: Saver, reporter: Reporter) -> None:
        self._learner, self._pace = learner, pace
        self._saver, self._reporter = saver, reporter
        self._guard = FiniteGuard(self._bring_back)
        self._undone = 0

    @property
    def skipped(self) -> int:
        """Updates that were not finite and changed nothing, in this process."""
        return self._guard.skipped

    @property
    def doubts(self) -> bool:
        """Whether the last update was not finite: the weights may be to blame."""
        return self._guard.doubts

    def start(self, update: Update) -> None:
        """Have `update` called as often as the steps taken so far have earned."""
        self._take(self._reporter.line_is_due)

        def counted(batch: Mapping[str, Tensor]) -> LateValues:
            metrics = update(batch)
            self._undone -= 1
            return metrics

        self._undone = self._pace.take_updates()
        self._learner.start(counted, self._undone)
        if not self._learner.in_background:
            self._take(self._reporter.line_is_due)

    def finish(self) -> None:
        """Wait for the updates under way; those that a stop or an error left undone are still owed.

        Raises:
            NotFiniteError: they stay infinite or NaN, even from earlier weights.
        """
        self._take(last=True)

    def _take(self, last: bool) -> None:
        """Take what the updates under way give; that of the last one only where it is wanted now.

        Else it is told and judged an update late, and the host does not wait for the device.
        """
        try:
            done = self._learner.finish(last)
        finally:
            self._pace.give_back(self._undone)
            self._undone = 0
        for metrics in done:
            self._reporter.update(metrics)
            self._guard.check(metrics)

    def save(self) -> None:
        """Makes a checkpoint and waits until it is written."""
        self.save_meanwhile()
        self._saver.finish()

    def save_meanwhile(self) -> None:
        """Makes a checkpoint of what the updates under way lead to, unless that raises doubts.

        It is written while the run goes on.
        """
        self.finish()
        self._learner.pause()
        if self.doubts:
            self._reporter.message("warning: no checkpoint, as the last update was not finite")
        else:
            self._saver.save()

    def rescue(self) -> None:
        """Saves what was learned, whatever has ended the run; what cannot be saved is told."""
        with suppress(Exception):  # the updates under way may be what failed
            self.finish()
        try:
            self.save()
        except Exception as error:
            self._reporter.message(f"warning: not saved: {str(error) or type(error).__name__}")

    def go_back(self, reason: str) -> None:
        """Return to the weights of the last checkpoint.

        Args:
            reason: a sentence without its full stop.

        Raises:
            NotFiniteError: it has been done too often.
        """
        self.finish()
        self._guard.go_back(reason)

    def _bring_back(self, reason: str) -> None:
        self._saver.go_back(reason)
        self._learner.catch_up()
