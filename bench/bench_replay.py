"""Replay against the limit of a plain copy and its NumPy twin: batches, adds, a million steps.

Run with `make bench` or `pytest bench/bench_replay.py --benchmark-only -s`. The contenders of a
group hold the same steps of 64x64 images and take turns (`bench/turns.py`). The limit is memcpy of
a batch's bytes from memory as cold as a sampled window, on one thread and on two.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.surroundings import SHORT, sized
from bench.turns import take_turns
from mudreamer_fast.replay import Batch, ReplayBuffer
from mudreamer_fast.replay.twin import NumpyReplay

STREAMS, CAPACITY_STEPS, LENGTH = 4, sized(40_000, 40_000, 10_000), 64
ADDS = sized(200, 200, 4)
"""Adds in a turn."""
SETTLING_SECONDS = 0.02
"""After a turn: the batch that is prepared ahead is done by then, and takes none of the next."""


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


def filled(kind: type, threads: int, streams: int = STREAMS) -> ReplayBuffer | NumpyReplay:
    replay = kind(FIELDS, CAPACITY_STEPS, streams, seed=0, threads=threads)
    step = arrays(streams)
    for _ in range(CAPACITY_STEPS // streams):
        replay.add(step)
    return replay


def plain_copy(batch: int, threads: int) -> Callable[[], object]:
    """Memcpy of a batch's bytes, out of as much memory as a full buffer."""
    batch_bytes = sum(array.nbytes for array in arrays(batch, LENGTH).values())
    source = np.ones((CAPACITY_STEPS // (batch * LENGTH), batch_bytes), np.uint8)
    target = np.ones(batch_bytes, np.uint8)
    rng = np.random.default_rng(0)
    parts = np.array_split(np.arange(batch_bytes), threads)
    slices = [slice(part[0], part[-1] + 1) for part in parts]
    pool = ThreadPoolExecutor(threads)

    def copy() -> None:
        row = source[rng.integers(len(source))]
        if threads == 1:
            np.copyto(target, row)
        else:
            list(pool.map(lambda part: np.copyto(target[part], row[part]), slices))

    return copy


@pytest.mark.parametrize("batch", [16, 64])
def bench_sample(benchmark: BenchmarkFixture, batch: int) -> None:
    benchmark.group = f"sample {batch} x {LENGTH}"
    out = arrays(batch, LENGTH)
    one, two, twin = filled(ReplayBuffer, 1), filled(ReplayBuffer, 2), filled(NumpyReplay, 1)
    ahead = two.batches(batch, LENGTH, ahead=1)
    contenders = {
        "memcpy, 1 thread": plain_copy(batch, 1),
        "memcpy, 2 threads": plain_copy(batch, 2),
        "ours, 1 thread": lambda: one.sample(batch, LENGTH, out),
        "ours, 2 threads": lambda: two.sample(batch, LENGTH, out),
        "ours, new arrays": lambda: two.sample(batch, LENGTH),
        "ours, one ahead": ahead.next,
        "NumPy twin": lambda: twin.sample(batch, LENGTH, out),
    }
    rounds = sized(60, 60, 2)
    take_turns(
        benchmark, contenders, "memcpy, 1 thread", rounds, ("batches/s", 1), settle=SETTLING_SECONDS
    )
    ahead.close()


@pytest.mark.parametrize("streams", [1, 4, 16])
def bench_add(benchmark: BenchmarkFixture, streams: int) -> None:
    benchmark.group = f"add {streams} frames at a time to a full buffer"
    ours, twin = filled(ReplayBuffer, 1, streams), filled(NumpyReplay, 1, streams)
    step = arrays(streams)
    target = {
        name: np.ones((CAPACITY_STEPS // streams, *a.shape), a.dtype) for name, a in step.items()
    }
    slot = iter(range(10**9))

    def copy() -> None:
        for _ in range(ADDS):
            index = next(slot) % (CAPACITY_STEPS // streams)
            for name, array in step.items():
                target[name][index] = array

    def add(replay: ReplayBuffer | NumpyReplay) -> Callable[[], None]:
        def run() -> None:
            for _ in range(ADDS):
                replay.add(step)

        return run

    contenders = {"plain copy": copy, "ours": add(ours), "NumPy twin": add(twin)}
    take_turns(benchmark, contenders, "plain copy", sized(30, 30, 2), ("frames/s", ADDS * streams))


MILLION = """
import os, sys, time
from pathlib import Path
import numpy as np
from bench.bench_replay import Spec
from mudreamer_fast.replay import ReplayBuffer

SIZE, STEPS, STREAMS = 16, 1_000_000, 4
fields = {
    "image": Spec((3, SIZE, SIZE), np.dtype(np.uint8)),
    "index": Spec((), np.dtype(np.int32)),
    "is_first": Spec((), np.dtype(np.bool_)),
}

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

step = {
    "image": np.ones((STREAMS, 3, SIZE, SIZE), np.uint8),
    "index": np.zeros(STREAMS, np.int32),
    "is_first": np.zeros(STREAMS, np.bool_),
}
before = resident()
replay = ReplayBuffer(fields, STEPS, STREAMS, seed=0, threads=2)
start = time.perf_counter()
for index in range(STEPS // STREAMS * 3 // 2):  # once full, and half as much again
    step["image"][:] = index % 251
    step["index"][:] = index
    replay.add(step)
seconds = time.perf_counter() - start
share = (resident() - before) / replay.capacity_bytes
batch = replay.sample(64, 64)
assert (np.diff(batch["index"], axis=1) == 1).all()
assert (batch["image"] == (batch["index"] % 251)[..., None, None, None]).all()
assert batch["index"].min() >= STEPS // STREAMS // 2
print(replay.steps_added / seconds, share, replay.capacity_bytes)
"""


@pytest.mark.skipif(SHORT, reason="takes a minute at any size")
def bench_fill_a_million_steps_and_wrap(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "fill 10^6 steps of 16x16 images, and half as many over them"
    rates: list[list[float]] = []

    def fill() -> None:
        command = [sys.executable, "-c", MILLION]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rates.append([float(word) for word in said.split()])

    benchmark.pedantic(fill, rounds=3)
    rate, share, payload = np.median(rates, axis=0)
    benchmark.extra_info |= {"frames_per_second": rate, "resident_over_payload": share}
    print(f"\n  {rate:,.0f} frames/s, {share:.3f} of {payload / 1e6:,.0f} MB resident")
