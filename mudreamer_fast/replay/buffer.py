"""The replay buffer: a typed face of the C++ module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mudreamer_fast._replay import Replay
from mudreamer_fast.replay.batch import (
    Allocate,
    Batch,
    FieldLike,
    check_sizes,
    make_layout,
    unpack_state,
)


class ReplayBuffer:
    """The newest steps of every environment stream, and uniform draws of sequences from them.

    Storage is one ring per stream and field; memory is taken only as it fills. Copies run on
    several threads without the GIL, and every method may be called from any thread. Arrays are
    refused rather than converted: dtype and shape must be exact and memory C-contiguous. A call
    that raises has changed nothing.

    Args:
        fields: shape and dtype of each field, for one step of one stream; must hold `is_first`, a
            boolean scalar.
        capacity_steps: steps kept over all streams, the same number for each (rounded down).
        num_streams: environments stored side by side.
        seed: seed of the sampler, in [0, 2^64).
        threads: threads that copy a batch.

    Raises:
        ValueError: an argument is out of range or a field cannot be stored.
        RuntimeError: the system refuses the address space.
    """

    def __init__(
        self,
        fields: Mapping[str, FieldLike],
        capacity_steps: int,
        num_streams: int,
        seed: int,
        threads: int = 1,
    ) -> None:
        self._layout = make_layout(fields, capacity_steps, num_streams, seed, threads)
        self._store = Replay(
            [(name, field.dtype, field.shape) for name, field in self._layout.fields.items()],
            num_streams,
            self._layout.stream_capacity_steps,
            seed,
            threads,
        )

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
        self._store.append(step if isinstance(step, dict) else dict(step))

    def can_sample(self, length: int) -> bool:
        """Whether some stream holds `length` steps in a row.

        Raises:
            ValueError: the length is not positive.
        """
        check_sizes(length=length)
        return self._store.steps >= length

    def sample(self, batch_size: int, length: int, out: Batch | None = None) -> Batch:
        """Draw sequences, all windows of `length` steps of one stream being equally likely.

        A window may run over the end of an episode. Its first step is marked `is_first` in the
        batch, whatever the stored mark; marks further in are the stored ones.

        Args:
            batch_size: B, sequences to draw.
            length: T, steps in each.
            out: arrays (B, T, *shape) to write to, for each field; they must not share memory.
                New ones are made where there are none, which costs several times the copy.

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
        self._store.sample(batch_size, length, out)
        return out

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
            marks = self._store.snapshot(steps, contents)
            if marks is not None:  # else another thread added a step in between
                break
        return {
            "fields": contents,
            "num_streams": self._layout.num_streams,
            "steps": steps,
            "steps_added": marks[0],
            "generator": marks[1],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; a buffer that cannot hold it all keeps the newest steps.

        Args:
            state: what `state_dict` returned, of a buffer with the same fields and streams.

        Raises:
            ValueError: an entry is missing or does not fit this buffer.
        """
        contents, steps, steps_added, generator = unpack_state(state, self._layout.num_streams)
        self._store.restore(steps, contents, steps_added, generator)

    def _require(self, length: int) -> None:
        """Refuse before a batch is allocated that could not be filled."""
        steps = self._store.steps
        if steps < length:
            raise RuntimeError(
                f"no stream holds a window of {length} steps; the longest holds {steps}"
            )
