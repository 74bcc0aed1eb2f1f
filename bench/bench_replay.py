"""Replay: batches of 16 x 64 images of 3x64x64 and adds, against NumPy and a plain copy.

Run with `make bench` or `pytest bench/bench_replay.py`. The contenders of a group run in one
process over the same contents, and the plain copy moves the same bytes as a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from mudreamer_fast.replay import Batch, ReplayBuffer
from mudreamer_fast.replay.reference import NumpyReplay

STREAMS, CAPACITY_STEPS = 4, 40_000
BATCH, LENGTH = 16, 64


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of one field."""

    shape: tuple[int, ...]
    dtype: np.dtype


FIELDS = {
    "image": Spec((3, 64, 64), np.dtype(np.uint8)),
    "action": Spec((6,), np.dtype(np.float32)),
    "reward": Spec((), np.dtype(np.float32)),
    "is_first": Spec((), np.dtype(np.bool_)),
    "is_terminal": Spec((), np.dtype(np.bool_)),
}


def arrays(*leading: int) -> Batch:
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 2, (*leading, *spec.shape)).astype(spec.dtype)
        for name, spec in FIELDS.items()
    }


def filled(kind: type, threads: int) -> ReplayBuffer | NumpyReplay:
    replay = kind(FIELDS, CAPACITY_STEPS, STREAMS, seed=0, threads=threads)
    step = arrays(STREAMS)
    for _ in range(CAPACITY_STEPS // STREAMS):
        replay.add(step)
    return replay


CONTENDERS = {
    "numpy": (NumpyReplay, 1),
    "cpp-1-thread": (ReplayBuffer, 1),
    "cpp-2-threads": (ReplayBuffer, 2),
}


@pytest.fixture(scope="module", params=CONTENDERS)
def replay(request: pytest.FixtureRequest) -> ReplayBuffer | NumpyReplay:
    return filled(*CONTENDERS[request.param])


@pytest.mark.benchmark(group="sample into reused arrays")
def bench_sample_reused(benchmark: BenchmarkFixture, replay: ReplayBuffer | NumpyReplay) -> None:
    out = arrays(BATCH, LENGTH)
    benchmark(replay.sample, BATCH, LENGTH, out)


@pytest.mark.benchmark(group="sample into reused arrays")
def bench_plain_copy(benchmark: BenchmarkFixture) -> None:
    # Out of as much memory as a full buffer, so that the source is as cold as a sampled window.
    batch_bytes = sum(array.nbytes for array in arrays(BATCH, LENGTH).values())
    source = np.ones((CAPACITY_STEPS // (BATCH * LENGTH), batch_bytes), np.uint8)
    target = np.ones(batch_bytes, np.uint8)
    rng = np.random.default_rng(0)
    benchmark(lambda: np.copyto(target, source[rng.integers(len(source))]))


@pytest.mark.benchmark(group="sample into new arrays")
def bench_sample_new(benchmark: BenchmarkFixture, replay: ReplayBuffer | NumpyReplay) -> None:
    benchmark(replay.sample, BATCH, LENGTH)


@pytest.mark.benchmark(group="add 4 steps to a full buffer")
def bench_add(benchmark: BenchmarkFixture, replay: ReplayBuffer | NumpyReplay) -> None:
    benchmark(replay.add, arrays(STREAMS))
