"""Batches copied out of a replay buffer ahead of whoever learns from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mudreamer_fast import _replay
from mudreamer_fast.replay.batch import HANDLE, Allocate, Batch, Layout


class BatchQueue:
    """Batches in the order in which they are drawn, the next ones already on their way.

    A batch is drawn inside `next`, `ahead` calls before it is handed out: what the batches hold
    depends on the order of calls alone, and a step added since is in none of those under way. A
    thread copies them meanwhile, into arrays that go round; nobody overwrites the steps they need.

    Made by `ReplayBuffer.batches`.
    """

    def __init__(
        self,
        store: _replay.ReplayStore,
        layout: Layout,
        batch_size: int,
        length: int,
        ahead: int,
        handles: bool,
        allocate: Allocate,
    ) -> None:
        self._slots = [
            layout.empty(batch_size, length, allocate=allocate) for _ in range(ahead + 1)
        ]
        all_handles = [
            allocate((batch_size, length), np.uint64) if handles else None for _ in self._slots
        ]
        self._queue = _replay.BatchQueue(
            store, batch_size=batch_size, length=length, outputs=self._slots, handles=all_handles
        )
        self._batches = [
            slot if handles_array is None else {**slot, HANDLE: handles_array}
            for slot, handles_array in zip(self._slots, all_handles, strict=True)
        ]

    def next(self) -> Batch:
        """The oldest batch; its arrays are the caller's until the next call.

        Raises:
            RuntimeError: too few steps are held for a window, or this is closed.
        """
        return self._batches[self._queue.next()]

    def hold_view(self) -> None:
        """Have `next` draw from what is held now, whatever is added until `release_view`.

        With it a learner in a thread of its own gets the same batches however fast it is. A full
        buffer takes `spare_steps` steps of each stream meanwhile; further ones wait.
        """
        self._queue.hold_view()

    def release_view(self) -> None:
        """Have `next` draw from what is held when it is called, as before `hold_view`."""
        self._queue.release_view()

    def pending(self, with_last: bool = False) -> NDArray[np.uint64]:
        """The windows of the batches that are drawn and not handed out yet.

        Args:
            with_last: have the batch that `next` gave last before them, if there is one.

        Returns:
            (batches, B, 2), oldest first: each window's stream and first step.
        """
        return self._queue.pending(with_last)

    def resume(self, windows: NDArray[Any]) -> bool:
        """Go on with what `pending` said once, in a buffer with the same contents, before all else.

        Args:
            windows: (batches, B, 2), at most `ahead + 1` batches.

        Returns:
            Whether they are drawn; not where a step is no longer held.
        """
        return self._queue.resume(np.ascontiguousarray(windows, np.uint64))

    def close(self) -> None:
        """End the thread; a `next` that waits raises, and so do later ones."""
        self._queue.close()
