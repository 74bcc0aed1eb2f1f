"""A queue of batches that are copied out of a replay buffer ahead of their use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mudreamer_fast import _replay
from mudreamer_fast.replay.batch import HANDLE, Allocate, Batch, Layout


class BatchQueue:
    """Batches in the order in which they were drawn; the next `ahead` ones are pending.

    `next` draws a batch `ahead` calls before it returns it. The contents of the batches therefore
    depend only on the order of calls, and a pending batch contains no steps that are added later.
    A worker thread copies them into a fixed set of arrays that are reused in turn. The steps of
    pending batches are not overwritten before they are copied (`csrc/batch_queue.h`).

    Created by `ReplayBuffer.batches`.
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
        self._store, self._length = store, length
        self._last = -1  # the slot that `next` returned last; they are filled and returned in turn
        self._filled: set[int] = set()  # slots with other contents than their windows have
        self._queue = _replay.BatchQueue(
            store, batch_size=batch_size, length=length, outputs=self._slots, handles=all_handles
        )
        self._batches = [
            slot if handles_array is None else {**slot, HANDLE: handles_array}
            for slot, handles_array in zip(self._slots, all_handles, strict=True)
        ]

    def next(self) -> Batch:
        """Return the oldest pending batch; its arrays are valid until the next call.

        Raises:
            RuntimeError: no stream holds enough steps for a window, or the queue is closed.
        """
        self._filled.discard(self._last)
        self._last = self._queue.next()
        return self._batches[self._last]

    def hold_view(self, handed_over: bool = False) -> None:
        """Make `next` draw from the steps that are held now, until `release_view`.

        The batches of a learner in another thread are then independent of timing. Meanwhile a full
        buffer accepts `spare_steps` more steps per stream. Further calls of `add` wait; those of
        the thread that holds the view raise RuntimeError instead, as would any call of it that
        waits for the view's end.

        Args:
            handed_over: another thread calls `release_view`, so that this one may wait for it.
        """
        self._queue.hold_view(handed_over)

    def release_view(self) -> None:
        """Make `next` draw from the steps that are held when it is called, the default."""
        self._queue.release_view()

    def pending(self, with_last: bool = False) -> NDArray[np.uint64]:
        """Return the windows of the pending batches: those drawn that `next` has not returned.

        Args:
            with_last: prepend the batch that `next` returned last, if there is one.

        Returns:
            (batches, B, 2), oldest first: the stream and the first step of each window.
        """
        return self._queue.pending(with_last)

    def lost(self, with_last: bool = False) -> dict[int, Batch]:
        """Return copies of the pending batches with steps that are no longer held.

        Their windows alone do not give them back. No step may be added meanwhile.

        Args:
            with_last: as in `pending`.

        Returns:
            Batches by their index in `pending`, for `resume`.
        """
        first = self._last if with_last and self._last >= 0 else self._last + 1
        begin = self._store.steps_added - self._store.steps
        lost = {}
        for index, windows in enumerate(self.pending(with_last)):
            slot = (first + index) % len(self._slots)
            # a step is overwritten only after the batch is copied: the slot needs no waiting for
            if slot in self._filled or (windows[:, 1] < begin).any():
                lost[index] = {name: array.copy() for name, array in self._batches[slot].items()}
        return lost

    def resume(self, windows: NDArray[Any], lost: Mapping[int, Batch] | None = None) -> bool:
        """Take up pending batches, such as those of a checkpoint, before drawing new ones.

        Args:
            windows: a result of `pending`, (batches, B, 2) with at most `ahead + 1` batches, for a
                buffer with the same contents.
            lost: a result of `lost`, for a queue from which no batch has been drawn.

        Returns:
            Whether the batches are pending now; False, with nothing changed, if one of their steps
            is no longer held or their number or size does not fit.

        Raises:
            ValueError: `windows` has another number of dimensions, or its last is not 2.
            RuntimeError: the queue is closed.
        """
        windows, lost = np.array(windows, np.uint64, order="C"), lost or {}
        shape = self._slots[0]["is_first"].shape
        if any(batch["is_first"].shape != shape for batch in lost.values()):
            return False
        for index in lost:  # any steps that are held, to be replaced
            windows[index] = 0, self._store.steps_added - self._length
        if not self._queue.resume(windows):
            return False
        if lost:
            self._store.write_back(np.empty(0, np.uint64), {})  # waits until all are copied
        for index, batch in lost.items():
            for name, array in batch.items():
                self._batches[index][name][...] = array
            self._filled.add(index)
        return True

    def close(self) -> None:
        """Stop the worker thread; a waiting `next` and later ones raise."""
        self._queue.close()
