"""The replay buffer in plain NumPy: slow, obvious, and the oracle of its tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mudreamer_fast.replay.batch import (
    HANDLE,
    MAX_UINT64,
    Batch,
    FieldLike,
    Layout,
    check_handles,
    check_sizes,
    make_layout,
    unpack_state,
)


class SplitMix64:
    """The sampler's generator: z = mix(state += golden gamma), modulo 2^64.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.

    Args:
        state: the seed, or a saved state, in [0, 2^64).
    """

    def __init__(self, state: int) -> None:
        self.state = state

    def next(self) -> int:
        """The next number, uniform over [0, 2^64)."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & MAX_UINT64
        mixed = self.state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MAX_UINT64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MAX_UINT64
        return mixed ^ (mixed >> 31)

    def below(self, bound: int) -> int:
        """A number uniform over [0, bound), by rejection."""
        whole_blocks = 2**64 - 2**64 % bound
        while True:
            drawn = self.next()
            if drawn < whole_blocks:
                return drawn % bound


class NumpyReplay:
    """A twin of `ReplayBuffer`: the same methods, and the same draws for the same seed.

    Args:
        fields: as in `ReplayBuffer`.
        capacity_steps: as in `ReplayBuffer`.
        num_streams: as in `ReplayBuffer`.
        seed: as in `ReplayBuffer`.
        threads: checked, but one thread does the work.
    """

    def __init__(
        self,
        fields: Mapping[str, FieldLike],
        capacity_steps: int,
        num_streams: int,
        seed: int,
        threads: int = 1,
    ) -> None:
        self._layout: Layout = make_layout(fields, capacity_steps, num_streams, seed, threads)
        self._generator = SplitMix64(seed)
        self._columns = self._layout.empty(num_streams, self._layout.stream_capacity_steps)
        self._cursor = 0
        self._steps = 0
        self._steps_added = 0

    def __len__(self) -> int:
        """Steps held, over all streams."""
        return self._steps * self._layout.num_streams

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
        return self._steps_added * self._layout.num_streams

    @property
    def nbytes(self) -> int:
        """Bytes of the steps held."""
        return len(self) * self._layout.step_bytes

    @property
    def capacity_bytes(self) -> int:
        """Bytes of the steps held once the buffer is full."""
        return self.capacity_steps * self._layout.step_bytes

    def add(self, step: Mapping[str, NDArray[Any]]) -> None:
        """Copy in one step of every stream, over the oldest one where the buffer is full."""
        self._check(step, self._layout.num_streams)
        self._append(step)
        self._steps_added += 1

    def can_sample(self, length: int) -> bool:
        """Whether some stream holds `length` steps in a row."""
        check_sizes(length=length)
        return self._steps >= length

    def sample(
        self, batch_size: int, length: int, out: Batch | None = None, handles: bool = False
    ) -> Batch:
        """Draw sequences, all windows of `length` steps of one stream being equally likely."""
        check_sizes(batch_size=batch_size, length=length)
        if out is not None:
            arrays = dict(out)
            check_handles(arrays, handles, (batch_size, length))
            self._check(arrays, batch_size, length)
            for name, array in arrays.items():
                if not array.flags.writeable:
                    raise ValueError(f"{name!r} must be writeable")
        if self._steps < length:
            raise RuntimeError(
                f"no stream holds a window of {length} steps; the longest holds {self._steps}"
            )
        batch = self._layout.empty(batch_size, length) if out is None else out
        if handles and out is None:
            batch[HANDLE] = np.empty((batch_size, length), np.uint64)
        starts = self._steps - length + 1
        for row in range(batch_size):
            stream, start = divmod(self._generator.below(self._layout.num_streams * starts), starts)
            slots = self._slots(start, length)
            for name, column in self._columns.items():
                batch[name][row] = column[stream, slots]
            if handles:
                steps = self._steps_added - self._steps + start + np.arange(length)
                batch[HANDLE][row] = steps * self._layout.num_streams + stream
        batch["is_first"][:, 0] = True
        return batch

    def batches(
        self, batch_size: int, length: int, ahead: int, handles: bool = False
    ) -> NumpyBatches:
        """Batches as `sample` draws them, drawn `ahead` calls before they are asked for."""
        return NumpyBatches(self, batch_size, length, ahead, handles)

    def write_back(
        self, handle: NDArray[np.uint64], values: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.bool_]:
        """Overwrite fields of sampled steps; says which were still held."""
        steps, streams = np.divmod(handle, np.uint64(self._layout.num_streams))
        unknown = handle[steps >= np.uint64(self._steps_added)]
        if unknown.size:
            raise IndexError(f"there is no step with the handle {unknown[0]}")
        written: NDArray[np.bool_] = steps >= np.uint64(self._steps_added - self._steps)
        for index in zip(*np.nonzero(written), strict=True):
            age = int(steps[index]) - (self._steps_added - self._steps)
            slot = self._slots(age, 1)[0]
            for name, array in values.items():
                self._columns[name][streams[index], slot] = array[index]
        return written

    def state_dict(self) -> dict[str, Any]:
        """Contents in order of age, counters and the sampler's generator; a copy of it all."""
        slots = self._slots(0, self._steps)
        return {
            "fields": {name: column.take(slots, 1) for name, column in self._columns.items()},
            "num_streams": self._layout.num_streams,
            "steps": self._steps,
            "steps_added": self._steps_added,
            "generator": self._generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; a buffer that cannot hold it all keeps the newest steps."""
        contents, steps, steps_added, generator = unpack_state(state, self._layout.num_streams)
        self._check(contents, self._layout.num_streams, steps)
        self._cursor = self._steps = 0
        for index in range(max(0, steps - self._layout.stream_capacity_steps), steps):
            self._append({name: array[:, index] for name, array in contents.items()})
        self._steps_added = steps_added
        self._generator = SplitMix64(generator)

    def _slots(self, start: int, length: int) -> NDArray[np.int64]:
        """Where steps [start, start + length) by age stand in the columns."""
        capacity = self._layout.stream_capacity_steps
        oldest = self._cursor - self._steps
        return np.arange(oldest + start, oldest + start + length) % capacity

    def _append(self, step: Mapping[str, NDArray[Any]]) -> None:
        for name, column in self._columns.items():
            column[:, self._cursor] = step[name]
        capacity = self._layout.stream_capacity_steps
        self._cursor = (self._cursor + 1) % capacity
        self._steps = min(self._steps + 1, capacity)

    def _check(self, arrays: Mapping[str, NDArray[Any]], *leading: int) -> None:
        """Raise ValueError unless the arrays are exactly (*leading, *shape) of every field."""
        if arrays.keys() != self._layout.fields.keys():
            raise ValueError(
                f"expected exactly the keys {', '.join(self._layout.fields)}, got {list(arrays)}"
            )
        for name, field in self._layout.fields.items():
            array, shape = arrays[name], (*leading, *field.shape)
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name!r} must be a numpy array, got {type(array)}")
            if array.dtype != field.dtype or array.shape != shape:
                raise ValueError(
                    f"{name!r} must be {field.dtype} {shape}, got {array.dtype} {array.shape}"
                )
            if not array.flags.c_contiguous:
                raise ValueError(f"{name!r} must be C-contiguous")


class NumpyBatches:
    """A twin of `Batches`: the same order of draws, each copied at once."""

    def __init__(
        self, replay: NumpyReplay, batch_size: int, length: int, ahead: int, handles: bool
    ) -> None:
        self._replay, self._sizes, self._handles = replay, (batch_size, length), handles
        self._ahead = ahead
        self._queue: deque[Batch] = deque()

    def next(self) -> Batch:
        """The oldest batch."""
        while len(self._queue) <= self._ahead:
            self._queue.append(self._replay.sample(*self._sizes, handles=self._handles))
        return self._queue.popleft()
