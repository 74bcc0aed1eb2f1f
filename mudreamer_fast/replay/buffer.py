"""The replay buffer: a typed face of the C++ module."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mudreamer_fast._replay import ReplayStore
from mudreamer_fast.replay.batch import (
    HANDLE,
    Allocate,
    Batch,
    FieldLike,
    check_sizes,
    make_layout,
    take_handles,
    unpack_state,
)
from mudreamer_fast.replay.batch_queue import BatchQueue
from mudreamer_fast.replay.storage import Flusher, Storage


class ReplayBuffer:
    """The newest steps of every environment stream, and uniform draws of sequences from them.

    Storage is one ring for all streams; memory is taken only as it fills. Copies run on several
    threads without the GIL or any lock, and every method may be called from any thread
    (`csrc/replay_store.h` has the locking contract). Arrays are refused rather than converted:
    dtype and shape must be exact and memory C-contiguous. A call that raises has changed nothing.

    With a folder the steps are on disk as well, and survive a crash up to the last flush: what is
    there is taken over, and `problems` says what was damaged (`replay/storage.py`).

    Args:
        fields: shape and dtype of each field, for one step of one stream; must hold `is_first`, a
            boolean scalar.
        capacity_steps: steps kept over all streams, the same number for each (rounded down).
        num_streams: environments stored side by side.
        seed: seed of the sampler, in [0, 2^64).
        threads: threads that copy a batch.
        folder: where the steps are kept on disk; None keeps them in memory alone.
        flush_every_seconds: between two flushes in the background; None leaves them to `flush`.
        spare_steps: of each stream, that a full buffer takes while `BatchQueue.hold_view` holds.

    Raises:
        ValueError: an argument is out of range or a field cannot be stored.
        RuntimeError: the system refuses the address space.
        StorageError: the folder cannot be used, is in use, or holds other fields.
    """

    def __init__(
        self,
        fields: Mapping[str, FieldLike],
        capacity_steps: int,
        num_streams: int,
        seed: int,
        threads: int = 1,
        folder: str | os.PathLike[str] | None = None,
        flush_every_seconds: float | None = None,
        spare_steps: int = 1,
    ) -> None:
        self._layout = make_layout(fields, capacity_steps, num_streams, seed, threads)
        check_sizes(spare_steps=spare_steps)
        if flush_every_seconds is not None and flush_every_seconds <= 0:
            raise ValueError(f"flush_every_seconds must be positive, got {flush_every_seconds}")
        self._storage = None if folder is None else Storage(folder, self._layout)
        self._store = ReplayStore(
            [(name, field.dtype, field.shape) for name, field in self._layout.fields.items()],
            streams=num_streams,
            stream_capacity_steps=self._layout.stream_capacity_steps,
            seed=seed,
            threads=threads,
            spare_steps=spare_steps,
            segment_steps=None if self._storage is None else self._storage.segment_steps,
        )
        self._problems: list[str] = []
        self._flusher: Flusher | None = None
        if self._storage is not None:
            self._problems = self._storage.recover(self._store)
            if flush_every_seconds is not None:
                self._flusher = Flusher(self._storage, self._store, flush_every_seconds)
        self._end = weakref.finalize(self, _end, self._flusher, self._storage)

    def __len__(self) -> int:
        """Steps held, over all streams."""
        return self._store.steps * self._layout.num_streams

    @property
    def num_streams(self) -> int:
        """Environments stored side by side."""
        return self._layout.num_streams

    @property
    def capacity_steps(self) -> int:
        """Steps that can be held, over all streams."""
        return self._layout.stream_capacity_steps * self._layout.num_streams

    @property
    def steps_added(self) -> int:
        """Steps added so far over all streams, those overwritten since among them."""
        return self._store.steps_added * self._layout.num_streams

    @property
    def nbytes(self) -> int:
        """Bytes of the steps held."""
        return len(self) * self._layout.step_bytes

    @property
    def capacity_bytes(self) -> int:
        """Bytes of the steps held once the buffer is full."""
        return self.capacity_steps * self._layout.step_bytes

    def add(self, step: Mapping[str, NDArray[Any]]) -> None:
        """Copy in one step of every stream, over the oldest one where the buffer is full.

        Args:
            step: for each field an array (num_streams, *shape).

        Raises:
            ValueError: a key, dtype, shape or memory layout is not the declared one.
        """
        self._store.add(step if isinstance(step, dict) else dict(step))

    def can_sample(self, length: int) -> bool:
        """Whether some stream holds `length` steps in a row.

        Raises:
            ValueError: the length is not positive.
        """
        check_sizes(length=length)
        return self._store.steps >= length

    def sample(
        self, batch_size: int, length: int, out: Batch | None = None, handles: bool = False
    ) -> Batch:
        """Draw sequences, all windows of `length` steps of one stream being equally likely.

        A window may run over the end of an episode. Its first step is marked `is_first` in the
        batch, whatever the stored mark; marks further in are the stored ones.

        Args:
            batch_size: B, sequences to draw.
            length: T, steps in each.
            out: arrays (B, T, *shape) to write to, for each field; they must not share memory.
                New ones are made where there are none, which costs several times the copy.
            handles: give a "handle" (B, T) uint64 too, which names each step to `write_back`.

        Returns:
            `out`, or the new arrays.

        Raises:
            ValueError: a size is not positive, or `out` does not fit.
            RuntimeError: no stream holds that many steps yet.
        """
        check_sizes(batch_size=batch_size, length=length)
        if out is None:
            self._require(length)
            out = self._layout.empty(batch_size, length)
            if handles:
                out[HANDLE] = np.empty((batch_size, length), np.uint64)
        arrays = dict(out)
        handles_array = take_handles(arrays, handles, (batch_size, length))
        self._store.sample(
            batch_size=batch_size, length=length, outputs=arrays, handles=handles_array
        )
        return out

    def batches(
        self,
        batch_size: int,
        length: int,
        ahead: int,
        handles: bool = False,
        allocate: Allocate = np.empty,
    ) -> BatchQueue:
        """Batches as `sample` draws them, `ahead` of them copied before they are asked for.

        Args:
            batch_size: B, sequences in each.
            length: T, steps in each sequence.
            ahead: K, batches under way while one is in use; 0 has every call wait for its copy.
            handles: as in `sample`.
            allocate: makes the arrays of the K + 1 batches, such as pinned ones.

        Raises:
            ValueError: a size is not positive, or `ahead` is negative.
        """
        check_sizes(batch_size=batch_size, length=length)
        if ahead < 0:
            raise ValueError(f"ahead must not be negative, got {ahead}")
        return BatchQueue(self._store, self._layout, batch_size, length, ahead, handles, allocate)

    def write_back(
        self, handle: NDArray[np.uint64], values: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.bool_]:
        """Overwrite fields of sampled steps, such as latents that are known better now.

        Waits until all batches under way are copied. Only memory is written: a folder keeps the
        values that it was first given, once the segment they are in is full.

        Args:
            handle: of the steps, any shape, from `sample` or `batches`.
            values: for some of the fields an array (*handle.shape, *shape). Where a handle comes
                twice the later values stay.

        Returns:
            Which of them were written, in the shape of `handle`. A stale one, whose step has been
            overwritten since, is refused: its values are dropped.

        Raises:
            ValueError: an array does not fit.
            IndexError: a handle that was never given; nothing is written.
        """
        if not isinstance(handle, np.ndarray) or handle.dtype != np.uint64:
            kind = getattr(handle, "dtype", type(handle).__name__)
            raise ValueError(f"handle must be an array of uint64, got {kind}")
        return self._store.write_back(np.ascontiguousarray(handle), dict(values))

    def state_dict(self, allocate: Allocate = np.empty) -> dict[str, Any]:
        """Contents in order of age, counters and the sampler's generator; a copy of it all.

        Args:
            allocate: makes the arrays that the contents are copied to, such as files that are
                mapped, where a second replay in memory would be too much.

        Returns:
            `fields` (for each an array (num_streams, steps, *shape), oldest first), `num_streams`,
            `steps` and `steps_added` of each stream, and `generator`.
        """
        while True:
            steps = self._store.steps
            contents = self._layout.empty(self._layout.num_streams, steps, allocate=allocate)
            progress = self._store.snapshot(steps, contents)
            if progress is not None:  # else another thread added a step in between
                break
        return {
            "fields": contents,
            "num_streams": self._layout.num_streams,
            "steps": steps,
            "steps_added": progress.steps_added,
            "generator": progress.generator,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; a buffer that cannot hold it all keeps the newest steps.

        Args:
            state: what `state_dict` returned, of a buffer with the same fields and streams.

        Raises:
            ValueError: an entry is missing or does not fit this buffer.
        """
        contents, steps, progress = unpack_state(state, self._layout.num_streams)
        self._store.restore(steps, contents, progress)
        if self._storage is not None:
            self._storage.invalidate()

    def flush(self) -> None:
        """Bring the folder up to date; nothing to do without one.

        Raises:
            StorageError: it cannot be written; what it held before is intact.
        """
        if self._storage is not None:
            self._storage.flush(self._store)

    def problems(self) -> list[str]:
        """Lines on what went wrong with the folder since this was last asked."""
        problems, self._problems = self._problems, []
        while self._flusher is not None and self._flusher.problems:
            problems.append(self._flusher.problems.pop(0))
        return problems

    def close(self) -> None:
        """Flush, and let others have the folder; a second call does nothing.

        Raises:
            StorageError: as `flush`; the folder is let go all the same.
        """
        if self._end.alive:
            try:
                self.flush()
            finally:
                self._end()

    def _require(self, length: int) -> None:
        """Refuse before a batch is allocated that could not be filled."""
        steps = self._store.steps
        if steps < length:
            raise RuntimeError(
                f"no stream holds a window of {length} steps; the longest holds {steps}"
            )


def _end(flusher: Flusher | None, storage: Storage | None) -> None:
    if flusher is not None:
        flusher.stop()
    if storage is not None:
        storage.close()
