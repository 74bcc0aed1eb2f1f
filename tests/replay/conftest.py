"""Steps whose every byte follows from (stream, step), and both replay buffers to put them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from mudreamer_fast.replay import Batch, ReplayBuffer
from mudreamer_fast.replay.twin import NumpyReplay


@dataclass(frozen=True)
class Spec:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Steps:
    """Makes steps, and recognises them again."""

    fields: ClassVar = {
        "image": Spec((3, 5, 7), np.dtype(np.uint8)),
        "vector": Spec((2,), np.dtype(np.float32)),
        "reward": Spec((), np.dtype(np.float32)),
        "is_first": Spec((), np.dtype(np.bool_)),
        "is_terminal": Spec((), np.dtype(np.bool_)),
    }
    step_bytes = 3 * 5 * 7 + 2 * 4 + 4 + 1 + 1

    @staticmethod
    def is_first(stream: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Episodes of 5 steps, that begin one step later with each stream."""
        return (step + stream) % 5 == 0

    @classmethod
    def at(cls, stream: np.ndarray, step: np.ndarray) -> Batch:
        """The fields of (stream, step), for arrays of both of one shape."""
        stream, step = np.broadcast_arrays(np.asarray(stream), np.asarray(step))
        pixels = np.arange(3 * 5 * 7).reshape(3, 5, 7)
        mixed = (pixels + 31 * stream[..., None, None, None]) * 7919
        return {
            "image": ((mixed + 977 * step[..., None, None, None]) >> 3).astype(np.uint8),
            "vector": np.stack([stream, step], -1).astype(np.float32),
            "reward": np.asarray(step * 0.5 + stream, np.float32),
            "is_first": cls.is_first(stream, step),
            "is_terminal": cls.is_first(stream, step + 1),
        }

    @classmethod
    def step(cls, num_streams: int, step: int) -> Batch:
        """What all streams add at one time."""
        return cls.at(np.arange(num_streams), np.full(num_streams, step))

    @classmethod
    def fill(cls, replay: Any, begin: int, end: int) -> None:
        for step in range(begin, end):
            replay.add(cls.step(replay.num_streams, step))

    @classmethod
    def check(cls, batch: Batch, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Assert that all windows are consecutive steps of one stream within [begin, end).

        Returns each window's stream and first step.
        """
        stream = batch["vector"][:, 0, 0].astype(int)
        start = batch["vector"][:, 0, 1].astype(int)
        length = batch["reward"].shape[1]
        assert (start >= begin).all()
        assert (start + length <= end).all()
        expected = cls.at(stream[:, None], start[:, None] + np.arange(length))
        expected["is_first"][:, 0] = True
        for name, array in batch.items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
        return stream, start


@pytest.fixture(scope="session")
def steps() -> type[Steps]:
    return Steps


@pytest.fixture(params=[ReplayBuffer, NumpyReplay], ids=["cpp", "numpy"])
def make_replay(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a buffer of either kind for the steps above."""

    def make(capacity_steps: int, num_streams: int = 3, seed: int = 0, threads: int = 2) -> Any:
        return request.param(Steps.fields, capacity_steps, num_streams, seed, threads)

    return make


@pytest.fixture(scope="session")
def assert_same_state() -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def check(left: dict[str, Any], right: dict[str, Any]) -> None:
        assert left.keys() == right.keys()
        for name in left.keys() - {"fields"}:
            assert left[name] == right[name], name
        assert left["fields"].keys() == right["fields"].keys()
        for name, array in left["fields"].items():
            np.testing.assert_array_equal(array, right["fields"][name], err_msg=name)

    return check
