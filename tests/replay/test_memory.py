"""Memory is taken as the buffer fills, and no more after that."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mudreamer_fast.replay import ReplayBuffer

MEBIBYTE = 2**20
COUNTED_LATE = MEBIBYTE // 4
"""Linux counts the pages of a process in batches."""


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def fields(steps, *image_shape):
    spec = type(steps.fields["image"])
    return {
        "image": spec(image_shape, np.dtype(np.uint8)),
        "is_first": spec((), np.dtype(np.bool_)),
    }


def test_a_million_pixel_steps_cost_nothing_until_they_come(steps):
    before = resident_bytes()
    replay = ReplayBuffer(fields(steps, 3, 64, 64), 1_000_000, 4, seed=0)
    assert replay.capacity_bytes > 12_000_000_000
    assert resident_bytes() - before < 2 * MEBIBYTE
    step = {"image": np.ones((4, 3, 64, 64), np.uint8), "is_first": np.zeros(4, np.bool_)}
    for _ in range(500):
        replay.add(step)
    grown = resident_bytes() - before
    assert replay.nbytes - COUNTED_LATE < grown < replay.nbytes + 4 * MEBIBYTE


def test_memory_stays_flat_over_three_wraps(steps):
    replay = ReplayBuffer(fields(steps, 3, 64, 64), 2_000, 4, seed=0, threads=2)
    step = {"image": np.ones((4, 3, 64, 64), np.uint8), "is_first": np.zeros(4, np.bool_)}
    out = {"image": np.ones((8, 16, 3, 64, 64), np.uint8), "is_first": np.ones((8, 16), np.bool_)}

    def wrap():
        for i in range(500):
            replay.add(step)
            if i % 10 == 9 and replay.can_sample(16):
                replay.sample(8, 16, out)

    wrap()
    before = resident_bytes()
    for _ in range(3):
        wrap()
    assert len(replay) == 2_000
    assert resident_bytes() - before < MEBIBYTE


def test_loading_gives_the_memory_of_the_old_contents_back(steps):
    # Pieces of 25 MB: contents, state and new contents can be told apart from any noise.
    replay = ReplayBuffer(fields(steps, 3, 64, 64), 2_000, 4, seed=0)
    step = {"image": np.ones((4, 3, 64, 64), np.uint8), "is_first": np.zeros(4, np.bool_)}
    for _ in range(500):
        replay.add(step)
    state = replay.state_dict()
    before = resident_bytes()
    for _ in range(3):
        replay.load_state_dict(state)
    assert resident_bytes() - before < 4 * MEBIBYTE


def test_a_million_steps_fill_wrap_and_take_no_more_than_their_bytes(steps):
    spec = type(steps.fields["image"])
    layout = {**fields(steps, 3, 6, 6), "index": spec((), np.dtype(np.int32))}
    before = resident_bytes()
    replay = ReplayBuffer(layout, 1_000_000, 8, seed=0, threads=2)
    step = {
        "image": np.ones((8, 3, 6, 6), np.uint8),
        "is_first": np.zeros(8, np.bool_),
        "index": np.zeros(8, np.int32),
    }
    for index in range(150_000):  # once full, and a fifth of it again
        step["image"][:] = index % 251
        step["index"][:] = index
        replay.add(step)
    assert len(replay) == 1_000_000
    assert replay.steps_added == 1_200_000
    assert resident_bytes() - before < 1.05 * replay.capacity_bytes
    batch = replay.sample(64, 64)
    assert batch["index"].min() >= 25_000
    assert (np.diff(batch["index"], axis=1) == 1).all()
    assert (batch["image"] == (batch["index"] % 251)[..., None, None, None]).all()
