"""The replay buffer in plain NumPy: slow and obvious; the oracle of the buffer's tests.

It shares no code with the buffer, so that the two do not share errors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Batch = dict[str, NDArray[Any]]
MAX_UINT64 = 2**64 - 1
HANDLE = "handle"


class SplitMix64:
    """The generator of the sampler: z = mix(state += golden gamma), modulo 2^64.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.

    Args:
        state: a seed or a saved state, in [0, 2^64).
    """

    def __init__(self, state: int) -> None:
        self.state = state

    def next(self) -> int:
        """Return the next number, uniform over [0, 2^64)."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & MAX_UINT64
        mixed = self.state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MAX_UINT64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MAX_UINT64
        return mixed ^ (mixed >> 31)

    def below(self, bound: int) -> int:
        """Return a number that is uniform over [0, bound), by rejection."""
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
        threads: checked but not used.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        capacity_steps: int,
        num_streams: int,
        seed: int,
        threads: int = 1,
    ) -> None:
        _check_positive(num_streams=num_streams, threads=threads)
        if capacity_steps < num_streams:
            raise ValueError(
                f"capacity_steps must be at least num_streams ({num_streams}), got {capacity_steps}"
            )
        _check_uint64("seed", seed)
        _check_fields(fields)
        self._streams, self._capacity = num_streams, capacity_steps // num_streams
        self._generator = SplitMix64(seed)
        self._columns = {
            name: np.empty((num_streams, self._capacity, *field.shape), field.dtype)
            for name, field in fields.items()
        }
        self._cursor = 0
        self._steps = 0
        self._steps_added = 0

    def __len__(self) -> int:
        """Steps held, over all streams."""
        return self._steps * self._streams

    @property
    def num_streams(self) -> int:
        """Number of environments."""
        return self._streams

    @property
    def capacity_steps(self) -> int:
        """Capacity over all streams."""
        return self._capacity * self._streams

    @property
    def steps_added(self) -> int:
        """Steps added so far over all streams, including overwritten ones."""
        return self._steps_added * self._streams

    @property
    def nbytes(self) -> int:
        """Bytes of the steps held."""
        return len(self) * self._step_bytes()

    @property
    def capacity_bytes(self) -> int:
        """Bytes of the steps of a full buffer."""
        return self.capacity_steps * self._step_bytes()

    def add(self, step: Mapping[str, NDArray[Any]]) -> None:
        """Store one step of every stream, overwriting the oldest if the buffer is full."""
        self._check(step, self._streams)
        for name, array in step.items():
            for stream, value in enumerate(array):
                if array.dtype.kind == "f" and not np.isfinite(value).all():
                    raise ValueError(f"{name!r} of stream {stream} must be finite, got {value}")
        self._write(step)
        self._steps_added += 1

    def can_sample(self, length: int) -> bool:
        """Return whether some stream holds `length` consecutive steps."""
        _check_positive(length=length)
        return self._steps >= length

    def sample(
        self, batch_size: int, length: int, out: Batch | None = None, handles: bool = False
    ) -> Batch:
        """Sample sequences; every window of `length` steps of one stream is equally likely."""
        _check_positive(batch_size=batch_size, length=length)
        if out is not None:
            arrays = dict(out)
            _check_handles(arrays.pop(HANDLE, None), handles, (batch_size, length))
            self._check(arrays, batch_size, length)
            for name, array in arrays.items():
                if not array.flags.writeable:
                    raise ValueError(f"{name!r} must be writeable")
        if self._steps < length:
            raise RuntimeError(
                f"no stream holds a window of {length} steps; the longest holds {self._steps}"
            )
        batch = out
        if batch is None:
            batch = {
                name: np.empty((batch_size, length, *column.shape[2:]), column.dtype)
                for name, column in self._columns.items()
            }
        if handles and out is None:
            batch[HANDLE] = np.empty((batch_size, length), np.uint64)
        starts = self._steps - length + 1
        for row in range(batch_size):
            stream, start = divmod(self._generator.below(self._streams * starts), starts)
            slots = self._slots(start, length)
            for name, column in self._columns.items():
                batch[name][row] = column[stream, slots]
            if handles:
                steps = self._steps_added - self._steps + start + np.arange(length)
                batch[HANDLE][row] = steps * self._streams + stream
        batch["is_first"][:, 0] = True
        return batch

    def batches(
        self, batch_size: int, length: int, ahead: int, handles: bool = False
    ) -> NumpyBatchQueue:
        """Create a queue of batches that are sampled `ahead` calls before they are returned."""
        return NumpyBatchQueue(self, batch_size, length, ahead, handles)

    def write_back(
        self, handle: NDArray[np.uint64], values: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.bool_]:
        """Overwrite fields of sampled steps; returns which of them were still held."""
        steps, streams = np.divmod(handle, np.uint64(self._streams))
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
        """Return a copy of the held steps, the counters and the generator's state."""
        slots = self._slots(0, self._steps)
        return {
            "fields": {name: column.take(slots, 1) for name, column in self._columns.items()},
            "num_streams": self._streams,
            "steps": self._steps,
            "steps_added": self._steps_added,
            "generator": self._generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the contents by a saved state; a smaller buffer keeps the newest steps."""
        _check_state(state, self._streams)
        contents, steps = state["fields"], state["steps"]
        self._check(contents, self._streams, steps)
        self._cursor = self._steps = 0
        for index in range(max(0, steps - self._capacity), steps):
            self._write({name: array[:, index] for name, array in contents.items()})
        self._steps_added = state["steps_added"]
        self._generator = SplitMix64(state["generator"])

    def _step_bytes(self) -> int:
        """Bytes of one step of one stream."""
        return sum(column[0, 0].nbytes for column in self._columns.values())

    def _slots(self, start: int, length: int) -> NDArray[np.int64]:
        """Return the slots of steps [start, start + length), counted from the oldest."""
        capacity = self._capacity
        oldest = self._cursor - self._steps
        return np.arange(oldest + start, oldest + start + length) % capacity

    def _write(self, step: Mapping[str, NDArray[Any]]) -> None:
        for name, column in self._columns.items():
            column[:, self._cursor] = step[name]
        capacity = self._capacity
        self._cursor = (self._cursor + 1) % capacity
        self._steps = min(self._steps + 1, capacity)

    def _check(self, arrays: Mapping[str, NDArray[Any]], *leading: int) -> None:
        """Raise ValueError unless the arrays are exactly (*leading, *shape) of every field."""
        if arrays.keys() != self._columns.keys():
            raise ValueError(
                f"expected exactly the keys {', '.join(self._columns)}, got {list(arrays)}"
            )
        for name, column in self._columns.items():
            array, shape = arrays[name], (*leading, *column.shape[2:])
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name!r} must be a numpy array, got {type(array)}")
            if array.dtype != column.dtype or array.shape != shape:
                raise ValueError(
                    f"{name!r} must be {column.dtype} {shape}, got {array.dtype} {array.shape}"
                )
            if not array.flags.c_contiguous:
                raise ValueError(f"{name!r} must be C-contiguous")


def _check_positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


def _check_uint64(name: str, value: int) -> None:
    if not 0 <= value <= MAX_UINT64:
        raise ValueError(f"{name} must be in [0, 2^64), got {value}")


def _check_fields(fields: Mapping[str, Any]) -> None:
    for name, field in fields.items():
        if any(extent <= 0 for extent in field.shape):
            raise ValueError(f"{name!r} must have a shape of positive sizes, got {field.shape}")
    if HANDLE in fields:
        raise ValueError(f"no field may be called {HANDLE!r}: batches hold their handles there")
    first = fields.get("is_first")
    if first is None or first.dtype != np.bool_ or first.shape != ():
        raise ValueError(f"fields must hold 'is_first', a boolean scalar, got {first}")


def _check_handles(array: Any, handles: bool, shape: tuple[int, ...]) -> None:
    if (array is not None) != handles:
        raise ValueError(f"out must hold {HANDLE!r} if handles are asked for, and only then")
    fits = isinstance(array, np.ndarray) and (array.dtype, array.shape) == (np.uint64, shape)
    if array is not None and not fits:
        raise ValueError(f"{HANDLE!r} must be an array of uint64 {shape}, got {array}")


def _check_state(state: Mapping[str, Any], num_streams: int) -> None:
    missing = {"fields", "num_streams", "steps", "steps_added", "generator"} - state.keys()
    if missing:
        raise ValueError(f"the replay state lacks {', '.join(sorted(missing))}")
    if state["num_streams"] != num_streams:
        raise ValueError(
            f"the replay state holds {state['num_streams']} streams, the buffer {num_streams}"
        )
    for name in ("steps", "steps_added", "generator"):
        _check_uint64(name, state[name])
    if state["steps"] > state["steps_added"]:
        raise ValueError(
            f"the replay state holds {state['steps']} steps of {state['steps_added']} added"
        )


class NumpyBatchQueue:
    """A twin of `BatchQueue`: the same order of draws, each copied immediately."""

    def __init__(
        self, replay: NumpyReplay, batch_size: int, length: int, ahead: int, handles: bool
    ) -> None:
        self._replay, self._sizes, self._handles = replay, (batch_size, length), handles
        self._ahead = ahead
        self._queue: deque[Batch] = deque()

    def next(self) -> Batch:
        """Return the oldest pending batch."""
        while len(self._queue) <= self._ahead:
            self._queue.append(self._replay.sample(*self._sizes, handles=self._handles))
        return self._queue.popleft()
