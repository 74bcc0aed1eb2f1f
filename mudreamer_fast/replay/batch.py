"""What a step, a batch and a saved replay are made of."""

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
"""Makes an uninitialised array of a shape and dtype, as `numpy.empty` does."""

MAX_UINT64 = 2**64 - 1
HANDLE = "handle"
"""Name under which a batch holds the handles of its steps, where they are asked for."""


class FieldLike(Protocol):
    """Anything that says the shape and the dtype of one field, for one step of one stream."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one step, without stream or batch axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type, exact."""


@dataclass(frozen=True)
class Field:
    """A field with its shape and dtype made plain."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Layout:
    """The checked arguments of a replay buffer."""

    fields: dict[str, Field]
    """By name; `is_first` is among them."""
    num_streams: int
    """Environments that are stored side by side."""
    stream_capacity_steps: int
    """Steps that each stream can hold."""

    @property
    def step_bytes(self) -> int:
        """Bytes of one step of one stream, over all fields."""
        return sum(
            int(np.prod(field.shape, dtype=np.int64)) * field.dtype.itemsize
            for field in self.fields.values()
        )

    def empty(self, *leading: int, allocate: Allocate = np.empty) -> Batch:
        """Uninitialised arrays of shape (*leading, *shape), one for each field."""
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
        capacity_steps: steps kept over all streams.
        num_streams: environments stored side by side.
        seed: seed of the sampler, in [0, 2^64).
        threads: threads that copy a batch.

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
    """Raise ValueError unless the number fits in 64 bits."""
    if not 0 <= value <= MAX_UINT64:
        raise ValueError(f"{name} must be in [0, 2^64), got {value}")


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for the first of the named sizes that is not positive."""
    for name, value in sizes.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


def take_handles(out: Batch, handles: bool, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Take the handles' array out of a batch that is to be filled.

    Raises:
        ValueError: it is there without being asked for, or the other way round, or does not fit.
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
    """Check what a replay's `state_dict` returned, but for the arrays themselves.

    Args:
        state: the saved state.
        num_streams: streams of the buffer that it is loaded into.

    Returns:
        The arrays by field, the steps that each stream holds in them, and the progress.

    Raises:
        ValueError: an entry is missing, out of range, or of another number of streams.
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
    if state["steps"] > state["steps_added"]:
        raise ValueError(
            f"the replay state holds {state['steps']} steps of {state['steps_added']} added"
        )
    progress = Progress(steps_added=state["steps_added"], generator=state["generator"])
    return dict(state["fields"]), state["steps"], progress
