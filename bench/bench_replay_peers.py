"""Replay against peers that pip installs: the same steps in, batches of the same bytes out.

Run with `pip install -e '.[peers]'`, then `pytest bench/bench_replay_peers.py --benchmark-only -s`;
where a peer is missing nothing is collected. Every contender holds 20,000 steps of 4 streams, has
overwritten its oldest ones, and gives a batch that `check` accepts, before it is timed. Those of a
group take turns (`bench/turns.py`) and have the same to do: batches in new arrays, as the peers
give them, or in arrays used again, which no peer takes. Batches are left in CPU memory, in the
library's own arrays. `extra_info` of the adds holds the memory that filling each took, in a process
of its own, over the bytes of its steps.

Left out: cpprb, which has no public way to sample sequences, and embodied, whose releases on the
package index do not build; `numpy-slices` stands for it, with the same copies and no bookkeeping.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.bench_replay import FIELDS, STREAMS, arrays
from bench.surroundings import SHORT, sized
from bench.turns import take_turns
from mudreamer_fast.replay import Batch, ReplayBuffer

# Looked up rather than imported: jax and torchrl should weigh on no other benchmark.
missing = [name for name in ("flashbax", "torchrl") if importlib.util.find_spec(name) is None]
if missing:
    pytest.skip(
        f"needs {' and '.join(missing)}: pip install -e '.[peers]'", allow_module_level=True
    )

CAPACITY_STEPS, LENGTH, EPISODE_STEPS = 20_000, 64, 500
BATCHES = [16, 64]
ROUNDS, ADDS = sized(40, 40, 2), 50
SETTLING_SECONDS = 0.02
"""After a turn, for threads of a library that wait for more work before they sleep."""
WARM_CAPACITY_STEPS = 100 * STREAMS
STEP_BYTES = sum(array.nbytes for array in arrays(1).values())


class Contender(Protocol):
    """A replay of `capacity_steps` over all streams."""

    def add(self, step: Batch) -> None:
        """Copy in one step of every stream, arrays (STREAMS, *shape)."""

    def sample(self, batch: int) -> Mapping[str, Any]:
        """Draw `batch` windows of LENGTH steps, complete in memory on return."""


@functools.cache
def recycled(batch: int) -> Batch:
    """The arrays that every batch of that size is written to."""
    return arrays(batch, LENGTH)


def empty(batch: int) -> Batch:
    """New arrays for a batch."""
    return {
        name: np.empty((batch, LENGTH, *spec.shape), spec.dtype) for name, spec in FIELDS.items()
    }


class Ours:
    """Ours, as the trainer uses it: into recycled arrays, or into new ones."""

    def __init__(self, capacity_steps: int, threads: int, recycle: bool = True) -> None:
        self.replay = ReplayBuffer(FIELDS, capacity_steps, STREAMS, seed=0, threads=threads)
        self.add = self.replay.add
        self.recycle = recycle

    def sample(self, batch: int) -> Batch:
        return self.replay.sample(batch, LENGTH, recycled(batch) if self.recycle else None)


class NumpySlices:
    """The least that NumPy must do: a slice per window and field, two where the ring wraps."""

    def __init__(self, capacity_steps: int, recycle: bool = True) -> None:
        self.recycle = recycle
        self.capacity = capacity_steps // STREAMS
        self.columns = {
            name: np.empty((STREAMS, self.capacity, *spec.shape), spec.dtype)
            for name, spec in FIELDS.items()
        }
        self.added = 0
        self.rng = np.random.default_rng(0)

    def add(self, step: Batch) -> None:
        for name, column in self.columns.items():
            column[:, self.added % self.capacity] = step[name]
        self.added += 1

    def sample(self, batch: int) -> Batch:
        out = recycled(batch) if self.recycle else empty(batch)
        held = min(self.added, self.capacity)
        streams = self.rng.integers(STREAMS, size=batch)
        starts = self.rng.integers(held - LENGTH + 1, size=batch) + self.added - held
        for row, (stream, slot) in enumerate(zip(streams, starts % self.capacity, strict=True)):
            head = min(LENGTH, self.capacity - slot)
            for name, column in self.columns.items():
                out[name][row, :head] = column[stream, slot : slot + head]
                out[name][row, head:] = column[stream, : LENGTH - head]
        out["is_first"][:, 0] = True
        return out


class TorchRL:
    """TorchRL: a storage (time, stream) and its SliceSampler.

    Of what its documentation offers to speed the sampler up it has the end key and the cache of
    episode boundaries; they are found anew after an add, which the timed samples do not pay. Its
    windows do not run over the end of an episode, so it draws from fewer than the others.
    """

    def __init__(self, capacity_steps: int) -> None:
        import torch
        from tensordict import TensorDict
        from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer

        self.tensor, self.tensors = torch.from_numpy, TensorDict
        self.replay = TensorDictReplayBuffer(
            storage=LazyTensorStorage(capacity_steps, ndim=2),
            sampler=SliceSampler(
                slice_len=LENGTH,
                end_key="is_terminal",
                cache_values=True,
                truncated_key=None,
                init_key="is_first",
            ),
            dim_extend=0,
        )

    def add(self, step: Batch) -> None:
        row = {name: self.tensor(array)[None] for name, array in step.items()}
        self.replay.extend(self.tensors(row, [1, STREAMS]))

    def sample(self, batch: int) -> Mapping[str, Any]:
        return self.replay.sample(batch * LENGTH)


class Flashbax:
    """Flashbax: a trajectory buffer, compiled, its state donated to each add.

    It does not mark a window's first step `is_first`, as the others do.
    """

    def __init__(self, capacity_steps: int) -> None:
        import flashbax
        import jax

        self.jax = jax
        buffers = {
            batch: flashbax.make_trajectory_buffer(
                add_batch_size=STREAMS,
                sample_batch_size=batch,
                sample_sequence_length=LENGTH,
                period=1,
                min_length_time_axis=LENGTH,
                max_length_time_axis=capacity_steps // STREAMS,
            )
            for batch in BATCHES
        }
        of_any_batch = buffers[BATCHES[0]]
        self.state = of_any_batch.init({name: array[0] for name, array in arrays(1).items()})
        self.compiled_add = jax.jit(of_any_batch.add, donate_argnums=0)
        self.compiled_samples = {batch: jax.jit(buffer.sample) for batch, buffer in buffers.items()}
        self.key = jax.random.key(0)

    def add(self, step: Batch) -> None:
        column = {name: array[:, None] for name, array in step.items()}
        self.state = self.jax.block_until_ready(self.compiled_add(self.state, column))

    def sample(self, batch: int) -> Mapping[str, Any]:
        self.key, key = self.jax.random.split(self.key)
        sampled = self.compiled_samples[batch](self.state, key)
        return self.jax.block_until_ready(sampled).experience


USED_AGAIN = {
    "ours, 1 thread": functools.partial(Ours, threads=1),
    "ours, 2 threads": functools.partial(Ours, threads=2),
    "numpy-slices": NumpySlices,
}
NEW_ARRAYS = {
    "ours, 1 thread, new arrays": functools.partial(Ours, threads=1, recycle=False),
    "ours, 2 threads, new arrays": functools.partial(Ours, threads=2, recycle=False),
    "numpy-slices, new arrays": functools.partial(NumpySlices, recycle=False),
    "flashbax": Flashbax,
    "torchrl": TorchRL,
}
GROUPS = {"in arrays used again": USED_AGAIN, "in new arrays": NEW_ARRAYS}
CONTENDERS = USED_AGAIN | NEW_ARRAYS
ADDERS = [*USED_AGAIN, "flashbax", "torchrl"]


def fields_of(stream: np.ndarray, step: np.ndarray) -> Batch:
    """What every stream holds at every step, all of it told by the two numbers."""
    shape = step.shape
    pixel = ((17 * stream + step) % 251).astype(np.uint8)
    return {
        "image": np.broadcast_to(pixel[..., None, None, None], (*shape, 3, 64, 64)),
        "action": np.broadcast_to(stream[..., None], (*shape, 6)).astype(np.float32),
        "reward": step.astype(np.float32),
        "is_first": step % EPISODE_STEPS == 0,
        "is_terminal": step % EPISODE_STEPS == EPISODE_STEPS - 1,
    }


def fill(contender: Contender, capacity_steps: int) -> range:
    """Fill it and overwrite a tenth of it; the steps that it now holds of each stream."""
    capacity = capacity_steps // STREAMS
    added = capacity + capacity // 10
    for step in range(added):
        fields = fields_of(np.arange(STREAMS), np.full(STREAMS, step))
        contender.add({name: np.ascontiguousarray(array) for name, array in fields.items()})
    return range(added - capacity, added)


def check(sampled: Mapping[str, Any], batch: int, held: range) -> None:
    """Every window is LENGTH steps in a row of one stream, held, whole and unmixed."""
    got = {
        name: np.asarray(sampled[name]).reshape(batch, LENGTH, *spec.shape)
        for name, spec in FIELDS.items()
    }
    stream = np.broadcast_to(got["action"][:, :1, 0].astype(np.int64), (batch, LENGTH))
    step = got["reward"][:, :1].astype(np.int64) + np.arange(LENGTH)
    assert held.start <= step.min() <= step.max() < held.stop
    assert len(np.unique(stream)) == STREAMS
    assert len(np.unique(step[:, 0])) > batch // 2
    for name, expected in fields_of(stream, step).items():
        assert got[name].dtype == FIELDS[name].dtype, name
        # Not all mark a window's first step.
        inner = slice(1, None) if name == "is_first" else slice(None)
        np.testing.assert_array_equal(got[name][:, inner], expected[:, inner], name)


@functools.cache
def filled(name: str) -> Contender:
    """A contender that is full and known to work, the same one for all benchmarks."""
    made: Contender = CONTENDERS[name](CAPACITY_STEPS)
    held = fill(made, CAPACITY_STEPS)
    for batch in BATCHES:
        check(made.sample(batch), batch, held)
    return made


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("group", GROUPS)
def bench_sample(benchmark: BenchmarkFixture, group: str, batch: int) -> None:
    benchmark.group = f"sample {batch}x{LENGTH} {group}"
    samples = {name: functools.partial(filled(name).sample, batch) for name in GROUPS[group]}
    # Out of as much memory as a full buffer, so that the source is as cold as a sampled window.
    target = np.ones(batch * LENGTH * STEP_BYTES, np.uint8)
    source = np.ones((CAPACITY_STEPS // (batch * LENGTH), target.size), np.uint8)
    rng = np.random.default_rng(0)
    copy = lambda: np.copyto(target, source[rng.integers(len(source))])  # noqa: E731
    contenders = {"plain copy": copy, **samples}
    rate = ("batches/s", 1)
    warm = lambda name: contenders[name]()  # noqa: E731
    take_turns(benchmark, contenders, "plain copy", ROUNDS, rate, warm, SETTLING_SECONDS)


def bench_add(benchmark: BenchmarkFixture) -> None:
    benchmark.group = f"add {STREAMS} steps"
    step = arrays(STREAMS)

    def adds(name: str) -> None:
        for _ in range(ADDS):
            filled(name).add(step)

    contenders = {name: functools.partial(adds, name) for name in ADDERS}
    rate = ("adds/s", ADDS)
    base = "ours, 1 thread"
    take_turns(benchmark, contenders, base, ROUNDS, rate, settle=SETTLING_SECONDS)
    if SHORT:
        return
    taken = {name: grown_bytes(name) for name in ADDERS}
    benchmark.extra_info["resident_bytes"] = taken
    benchmark.extra_info["resident_per_step_bytes"] = {
        name: round(grown / (CAPACITY_STEPS * STEP_BYTES), 2) for name, grown in taken.items()
    }


def grown_bytes(name: str) -> int:
    """What filling a contender takes, measured by a process of its own."""
    command = [sys.executable, "-m", "bench.bench_replay_peers", name]
    root = Path(__file__).parents[1]
    grown = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return int(grown.stdout.splitlines()[-1])


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


def resident_growth(name: str) -> int:
    """Bytes that filling a contender takes, a small one having loaded and compiled the rest."""
    small = CONTENDERS[name](WARM_CAPACITY_STEPS)
    fill(small, WARM_CAPACITY_STEPS)
    small.sample(BATCHES[0])
    del small
    gc.collect()
    before = resident_bytes()
    full = CONTENDERS[name](CAPACITY_STEPS)
    fill(full, CAPACITY_STEPS)
    gc.collect()
    return resident_bytes() - before


if __name__ == "__main__":
    print(resident_growth(sys.argv[1]))
