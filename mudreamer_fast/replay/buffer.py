"""The replay buffer: a typed interface to the C++ store."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mudreamer_fast._replay import Progress, ReplayStore
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
    """Stores the newest steps of all environment streams and samples sequences uniformly.

    All streams share one ring, which uses memory only as it fills. Batches are copied by several
    threads without holding the GIL or a lock. Every method may be called from any thread
    (`csrc/replay_store.h` documents the locking contract). Arrays must have the exact dtype and
    shape and be C-contiguous; they are never converted. A call that raises changes nothing.

    With a folder the steps are also stored on disk and survive a crash up to the last flush. The
    constructor recovers the folder's steps; `problems` reports damage (`replay/storage.py`).

    Args:
        fields: shape and dtype of each field, for one step of one stream; must include `is_first`,
            a boolean scalar.
        capacity_steps: capacity over all streams, divided equally among them (rounded down).
        num_streams: number of environments.
        seed: seed of the sampler, in [0, 2^64).
        threads: threads for copying a batch.
        folder: folder for the steps on disk; None keeps them in memory only.
        flush_every_seconds: interval of flushes in the background; None flushes only in `flush`.
        spare_steps: steps per stream that a full buffer accepts during `BatchQueue.hold_view`.

    Raises:
        ValueError: an argument is out of range or a field cannot be stored.
        MemoryError: the address space cannot be reserved.
        StorageError: the folder cannot be used, is in use, or contains other fields or streams.
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
            try:
                self._problems = self._storage.recover(self._store)
            except BaseException:
                self._storage.close()
                raise
            if flush_every_seconds is not None:
                self._flusher = Flusher(self._storage, self._store, flush_every_seconds)
        self._end = weakref.finalize(self, _end, self._flusher, self._storage)

    def __len__(self) -> int:
        """Steps held, over all streams."""
        return self._store.steps * self._layout.num_streams

    @property
    def num_streams(self) -> int:
        """Number of environments."""
        return self._layout.num_streams

    @property
    def capacity_steps(self) -> int:
        """Capacity over all streams."""
        return self._layout.stream_capacity_steps * self._layout.num_streams

    @property
    def steps_added(self) -> int:
        """Steps added so far over all streams, including overwritten ones."""
        return self._store.steps_added * self._layout.num_streams

    @property
    def nbytes(self) -> int:
        """Bytes of the steps held."""
        return len(self) * self._layout.step_bytes

    @property
    def capacity_bytes(self) -> int:
        """Bytes of the steps of a full buffer."""
        return self.capacity_steps * self._layout.step_bytes

    def add(self, step: Mapping[str, NDArray[Any]]) -> None:
        """Store one step of every stream, overwriting the oldest if the buffer is full.

        Args:
            step: an array (num_streams, *shape) for each field.

        Raises:
            ValueError: a key, dtype, shape or memory layout does not match the fields.
            NonFiniteError: a floating-point field holds a number that is not finite.
            RuntimeError: this thread holds a view whose steps would be overwritten
                (`BatchQueue.hold_view`).
        """
        self._store.add(step if isinstance(step, dict) else dict(step))

    def can_sample(self, length: int) -> bool:
        """Return whether some stream holds `length` consecutive steps.

        Raises:
            ValueError: the length is not positive.
        """
        check_sizes(length=length)
        return self._store.steps >= length

    def sample(
        self, batch_size: int, length: int, out: Batch | None = None, handles: bool = False
    ) -> Batch:
        """Sample sequences; every window of `length` steps of one stream is equally likely.

        A window may cross the end of an episode. In the batch `is_first` is set on the first step
        of each window; on the other steps it has the stored value.

        Args:
            batch_size: B, number of sequences.
            length: T, steps in each sequence.
            out: an array (B, T, *shape) for each field to write to; they must not share memory.
                None allocates new arrays, which takes several times as long as the copy.
            handles: include a "handle" (B, T) uint64, which identifies steps to `write_back`.

        Returns:
            `out` if it was passed, else the new arrays.

        Raises:
            ValueError: a size is not positive, or `out` does not fit.
            RuntimeError: no stream holds `length` steps.
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
        """Create a queue of batches, sampled as by `sample` and copied ahead of their use.

        Args:
            batch_size: B, sequences in each batch.
            length: T, steps in each sequence.
            ahead: K, pending batches while one is in use; with 0 every call waits for its copy.
            handles: as in `sample`.
            allocate: allocates the arrays of the K + 1 batches, such as pinned ones.

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
        """Overwrite fields of sampled steps, such as latents, with updated values.

        Waits until all pending batches are copied. Writes to memory only: files of full segments
        keep the original values.

        Args:
            handle: handles of the steps from `sample` or `batches`, of any shape.
            values: an array (*handle.shape, *shape) for each field to overwrite. For a repeated
                handle the last values count.

        Returns:
            Whether each step was written, in the shape of `handle`. Values of steps that are no
            longer held are ignored.

        Raises:
            ValueError: an array does not fit.
            IndexError: a handle identifies a step that was never added; nothing is written.
        """
        if not isinstance(handle, np.ndarray) or handle.dtype != np.uint64:
            kind = getattr(handle, "dtype", type(handle).__name__)
            raise ValueError(f"handle must be an array of uint64, got {kind}")
        return self._store.write_back(np.ascontiguousarray(handle), dict(values))

    def state_dict(self, allocate: Allocate = np.empty) -> dict[str, Any]:
        """Return a copy of the held steps, the counters and the state of the sampler's generator.

        Args:
            allocate: allocates the arrays of the copy; memory-mapped files avoid a second replay
                in memory.

        Returns:
            `fields` (an array (num_streams, steps, *shape) for each, oldest step first),
            `num_streams`, `steps` and `steps_added` per stream, and `generator`.
        """
        while True:
            steps = self._store.steps
            contents = self._layout.empty(self._layout.num_streams, steps, allocate=allocate)
            progress = self._store.snapshot(steps, contents)
            if progress is not None:  # None: another thread added a step in between
                break
        return {
            "fields": contents,
            "num_streams": self._layout.num_streams,
            "steps": steps,
            "steps_added": progress.steps_added,
            "generator": progress.generator,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the contents by a saved state; a smaller buffer keeps the newest steps.

        Args:
            state: a result of `state_dict` of a buffer with the same fields and streams.

        Raises:
            ValueError: an entry is missing or does not fit this buffer.
        """
        contents, steps, progress = unpack_state(state, self._layout.num_streams)
        with self._replacing():
            self._store.restore(steps, contents, progress)

    def copy_from(self, other: ReplayBuffer) -> None:
        """Replace the contents by those of another buffer; a smaller one keeps the newest steps.

        Args:
            other: a buffer of the same fields and streams, in memory or in a folder; unchanged.

        Raises:
            ValueError: its fields or streams are others.
        """
        if (self._layout.fields, self.num_streams) != (other._layout.fields, other.num_streams):
            raise ValueError("a buffer can only copy one of the same fields and streams")
        with self._replacing():
            self._store.copy_from(other._store)

    @property
    def generator(self) -> int:
        """State of the sampler's generator, which draws the windows."""
        return self._store.generator

    @contextmanager
    def refilling(self, generator: int) -> Iterator[None]:
        """Empty the buffer, for its steps to be added again.

        Meanwhile nothing is written: all steps stay in memory, and a folder keeps what it holds,
        for good if an exception comes.

        Args:
            generator: what the sampler's generator goes on from.
        """
        with self._replacing():
            nothing = self._layout.empty(self._layout.num_streams, 0)
            self._store.restore(0, nothing, Progress(steps_added=0, generator=generator))
            try:
                yield
            except BaseException:
                if self._storage is not None:
                    self._storage.give_up()
                raise

    def flush(self) -> None:
        """Write all held steps that are not on disk yet to the folder, if there is one.

        Raises:
            StorageError: the folder cannot be written, or this is a forked process; its previous
                contents are intact.
        """
        if self._storage is not None:
            self._storage.flush(self._store)

    def problems(self) -> list[str]:
        """Return, and clear, the messages about damage and failed flushes of the folder."""
        problems, self._problems = self._problems, []
        while self._flusher is not None and self._flusher.problems:
            problems.append(self._flusher.problems.pop(0))
        return problems

    def close(self) -> None:
        """Flush and release the folder; a second call, or one in a forked process, does nothing.

        Raises:
            StorageError: as for `flush`; the folder is released nevertheless.
        """
        if self._end.alive:
            try:
                if self._storage is not None and self._storage.in_own_process:
                    self.flush()
            finally:
                self._end()

    def _replacing(self) -> AbstractContextManager[None]:
        return nullcontext() if self._storage is None else self._storage.replacing()

    def _require(self, length: int) -> None:
        """Raise RuntimeError, before a batch is allocated, if no stream holds `length` steps."""
        steps = self._store.steps
        if steps < length:
            raise RuntimeError(
                f"no stream holds a window of {length} steps; the longest holds {steps}"
            )


def _end(flusher: Flusher | None, storage: Storage | None) -> None:
    if storage is None:
        return
    if flusher is not None and storage.in_own_process:
        flusher.stop()
    storage.close()
