"""Layouts of steps, batches and saved states, and the checks of what a caller passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mudreamer_fast._replay import Progress

Batch: TypeAlias = dict[str, NDArray[Any]]
"""Arrays of shape (B, T, *shape) by field name."""

Allocate: TypeAlias = Callable[[tuple[int, ...], Any], NDArray[Any]]
"""Returns an uninitialised array of the given shape and dtype, as `numpy.empty` does."""

MAX_UINT64 = 2**64 - 1
MOST_STEPS = 2**63
"""Over all streams: a step's handle, its number over all streams, is an unsigned 64-bit integer."""
HANDLE = "handle"
"""Key of the handles in a batch that was sampled with them."""


class FieldLike(Protocol):
    """Shape and dtype of one field, for one step of one stream."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one step, without stream or batch axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""


@dataclass(frozen=True)
class Field:
    """A `FieldLike` with plain values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Layout:
    """The checked dimensions of a replay buffer."""

    fields: dict[str, Field]
    """By name; includes `is_first`."""
    num_streams: int
    """Number of environments."""
    stream_capacity_steps: int
    """Capacity of each stream."""

    @property
    def step_bytes(self) -> int:
        """Bytes of one step of one stream, over all fields."""
        return sum(
            int(np.prod(field.shape, dtype=np.int64)) * field.dtype.itemsize
            for field in self.fields.values()
        )

    def empty(self, *leading: int, allocate: Allocate = np.empty) -> Batch:
        """Allocate an uninitialised array of shape (*leading, *shape) for each field."""
        return {
            name: allocate((*leading, *field.shape), field.dtype)
            for name, field in self.fields.items()
        }


def make_layout(
    fields: Mapping[str, FieldLike], capacity_steps: int, num_streams: int, seed: int, threads: int
) -> Layout:
    """Check the arguments of a replay buffer.

    Args:
        fields: shape and dtype of each field, for one step of one stream.
        capacity_steps: capacity over all streams.
        num_streams: number of environments.
        seed: seed of the sampler, in [0, 2^64).
        threads: threads for copying a batch.

    Raises:
        ValueError: an argument is out of range, or `is_first` is not a boolean scalar.
    """
    check_sizes(num_streams=num_streams, threads=threads)
    if capacity_steps < num_streams:
        raise ValueError(
            f"capacity_steps must be at least num_streams ({num_streams}), got {capacity_steps}"
        )
    check_uint64("seed", seed)
    plain = {
        name: Field(tuple(int(extent) for extent in field.shape), np.dtype(field.dtype))
        for name, field in fields.items()
    }
    for name, field in plain.items():
        if any(extent <= 0 for extent in field.shape):
            raise ValueError(f"{name!r} must have a shape of positive sizes, got {field.shape}")
    if HANDLE in plain:
        raise ValueError(f"no field may be called {HANDLE!r}: batches hold their handles there")
    if plain.get("is_first") != Field((), np.dtype(np.bool_)):
        raise ValueError(
            f"fields must hold 'is_first', a boolean scalar, got {plain.get('is_first')}"
        )
    return Layout(plain, num_streams, capacity_steps // num_streams)


def check_uint64(name: str, value: int) -> None:
    """Raise ValueError unless the value fits in an unsigned 64-bit integer."""
    if not 0 <= value <= MAX_UINT64:
        raise ValueError(f"{name} must be in [0, 2^64), got {value}")


def check_sizes(**sizes: int) -> None:
    """Raise ValueError unless all sizes are positive; the message names the first that is not."""
    for name, value in sizes.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


def take_handles(out: Batch, handles: bool, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Remove the array of handles from a batch that is to be filled, and check it.

    Raises:
        ValueError: the array is present although `handles` is false, missing although it is true,
            or does not fit.
    """
    array = out.pop(HANDLE, None)
    if (array is not None) != handles:
        raise ValueError(f"out must hold {HANDLE!r} if handles are asked for, and only then")
    if array is not None and not (
        isinstance(array, np.ndarray)
        and array.dtype == np.uint64
        and array.shape == shape
        and array.flags.c_contiguous
        and array.flags.writeable
    ):
        raise ValueError(f"{HANDLE!r} must be a C-contiguous, writeable array of uint64 {shape}")
    return array


def unpack_state(state: Mapping[str, Any], num_streams: int) -> tuple[Batch, int, Progress]:
    """Check a result of `ReplayBuffer.state_dict`, except for its arrays.

    Args:
        state: the saved state.
        num_streams: number of streams of the buffer that loads it.

    Returns:
        The arrays by field, the number of steps per stream in them, and the progress.

    Raises:
        ValueError: an entry is missing or out of range, or the number of streams differs.
    """
    missing = {"fields", "num_streams", "steps", "steps_added", "generator"} - state.keys()
    if missing:
        raise ValueError(f"the replay state lacks {', '.join(sorted(missing))}")
    if state["num_streams"] != num_streams:
        raise ValueError(
            f"the replay state holds {state['num_streams']} streams, the buffer {num_streams}"
        )
    for name in ("steps", "steps_added", "generator"):
        check_uint64(name, state[name])
    if state["steps_added"] > MOST_STEPS // num_streams:
        raise ValueError(f"the replay state has {state['steps_added']} steps added")
    if state["steps"] > state["steps_added"]:
        raise ValueError(
            f"the replay state holds {state['steps']} steps of {state['steps_added']} added"
        )
    progress = Progress(steps_added=state["steps_added"], generator=state["generator"])
    return dict(state["fields"]), state["steps"], progress
