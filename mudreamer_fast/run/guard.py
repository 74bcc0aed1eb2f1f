"""What is done about updates whose losses or gradients are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

BAD_UPDATES = 20
"""Updates in a row that are not finite, after which the weights themselves are to blame."""
RETURNS = 3
"""Returns to a checkpoint after which a run is given up."""


class NotFiniteError(RuntimeError):
    """A run whose losses or gradients stay infinite or NaN, even from earlier weights."""


class FiniteGuard:
    """Counts the updates that are not finite, and acts when skipping them is not enough.

    The optimisers skip such steps themselves (`optim.ClippedAdam`), so the weights stay as they
    were before.

    Args:
        go_back: brings the weights of the last checkpoint back; told why, in a sentence.
    """

    def __init__(self, go_back: Callable[[str], None]) -> None:
        self.skipped = 0
        """Updates that were not finite, in all."""
        self._go_back = go_back
        self._in_a_row = self._returns = 0
        self._first = ""

    @property
    def doubts(self) -> bool:
        """Whether the last update was not finite: the weights may be to blame."""
        return self._in_a_row > 0

    def check(self, metrics: Mapping[str, float]) -> None:
        """Looks at the metrics of one update.

        Raises:
            NotFiniteError: going back has not helped.
        """
        broken = broken_terms(metrics)
        if not broken:
            self._in_a_row = 0
            return
        if not self._in_a_row:
            self._first = f"{broken[0]} is {metrics[broken[0]]}"
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= BAD_UPDATES:
            self.go_back(f"{self._first}, and the {BAD_UPDATES - 1} updates after were no better")

    def go_back(self, reason: str) -> None:
        """Returns to the last checkpoint, unless that was done too often.

        Args:
            reason: a sentence without its full stop.

        Raises:
            NotFiniteError: going back has not helped.
        """
        self._in_a_row = max(1, self._in_a_row)
        self._returns += 1
        if self._returns > RETURNS:
            raise NotFiniteError(
                f"{reason}, after {RETURNS} returns to earlier weights: lower the learning rates, "
                "or look at the rewards and observations"
            )
        self._go_back(reason)
        self._in_a_row = 0


def broken_terms(metrics: Mapping[str, float]) -> list[str]:
    """Names of the metrics that are not finite, in the order of the update; sums come last."""
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    return sorted(broken, key=lambda name: name.endswith("/loss"))
