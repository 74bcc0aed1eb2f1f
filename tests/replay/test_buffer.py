"""What is stored, what is drawn, and how likely; for the C++ buffer and its twin alike."""

from __future__ import annotations

import numpy as np
import pytest


def test_length_counts_the_steps_held_after_every_add(make_replay, steps):
    replay = make_replay(capacity_steps=23)  # 7 for each of 3 streams
    assert replay.capacity_steps == 21
    for step in range(24):
        assert len(replay) == 3 * min(step, 7)
        assert replay.nbytes == len(replay) * steps.step_bytes
        assert replay.steps_added == 3 * step
        replay.add(steps.step(3, step))
    assert replay.nbytes == replay.capacity_bytes


@pytest.mark.parametrize("length", [1, 4, 7])
@pytest.mark.parametrize("spare", [0, 1, 6])
def test_windows_are_consecutive_before_at_and_after_every_wrap(make_replay, steps, length, spare):
    """Capacities of T, T + 1 and more; no window crosses the write cursor."""
    capacity = length + spare
    replay = make_replay(capacity_steps=3 * capacity)
    for step in range(3 * capacity + 2):
        replay.add(steps.step(3, step))
        held = min(step + 1, capacity)
        assert replay.can_sample(length) == (held >= length)
        if held >= length:
            steps.check(replay.sample(11, length), step + 1 - held, step + 1)


def test_windows_cross_the_ends_of_episodes(make_replay, steps):
    replay = make_replay(capacity_steps=300)
    steps.fill(replay, 0, 100)
    batch = replay.sample(50, 9)
    assert batch["is_first"][:, 1:].any(axis=1).all()  # episodes last 5 steps


def test_the_first_step_of_a_window_is_marked_in_the_batch_only(make_replay, steps):
    replay = make_replay(capacity_steps=300)
    steps.fill(replay, 0, 100)
    before = replay.state_dict()["fields"]["is_first"]
    assert replay.sample(64, 3)["is_first"][:, 0].all()
    stored = replay.state_dict()["fields"]["is_first"]
    np.testing.assert_array_equal(stored, before)
    np.testing.assert_array_equal(stored, steps.is_first(np.arange(3)[:, None], np.arange(100)))


def test_every_window_is_equally_likely(make_replay, steps):
    """Chi-square over all (stream, start) of a wrapped buffer; 62 degrees of freedom."""
    replay = make_replay(capacity_steps=3 * 25)
    steps.fill(replay, 0, 61)
    stream, start = steps.check(replay.sample(63 * 100, 5), 36, 61)
    counts = np.bincount(stream * 21 + start - 36, minlength=63)
    assert counts.shape == (63,)
    assert ((counts - 100) ** 2 / 100).sum() < 102.2  # p = 0.001
    over_streams = counts.reshape(3, 21).sum(1)
    assert ((over_streams - 2100) ** 2 / 2100).sum() < 13.8


def test_the_same_seed_draws_the_same_batches(make_replay, steps):
    first, second, other = (make_replay(99, seed=seed) for seed in (5, 5, 6))
    for replay in (first, second, other):
        steps.fill(replay, 0, 33)
    batches = [replay.sample(8, 4)["vector"] for replay in (first, second, other)]
    np.testing.assert_array_equal(batches[0], batches[1])
    assert (batches[0] != batches[2]).any()


def test_draws_depend_on_the_seed_not_on_the_number_of_threads(make_replay, steps):
    batches = []
    for threads in (1, 2, 5):
        replay = make_replay(3 * 600, threads=threads)
        steps.fill(replay, 0, 600)
        batches.append(replay.sample(64, 500))  # megabytes, so that all threads take part
        steps.check(batches[-1], 0, 600)
    for name in batches[0]:
        np.testing.assert_array_equal(batches[1][name], batches[0][name])
        np.testing.assert_array_equal(batches[2][name], batches[0][name])


def test_changing_an_array_after_add_changes_nothing_stored(make_replay, steps):
    replay = make_replay(capacity_steps=30)
    for step in range(10):
        arrays = steps.step(3, step)
        replay.add(arrays)
        for array in arrays.values():
            array.fill(1)
    steps.check(replay.sample(20, 10), 0, 10)


def test_a_batch_is_the_callers_and_never_overwritten(make_replay, steps):
    replay = make_replay(capacity_steps=30)
    steps.fill(replay, 0, 10)
    batch = replay.sample(4, 3)
    kept = {name: array.copy() for name, array in batch.items()}
    steps.fill(replay, 10, 40)
    replay.sample(4, 3)
    for name, array in batch.items():
        np.testing.assert_array_equal(array, kept[name])


def test_out_is_filled_and_returned(make_replay, steps):
    replay, twin = make_replay(30), make_replay(30)
    for each in (replay, twin):
        steps.fill(each, 0, 10)
    out = {name: np.full_like(array, 1) for name, array in replay.sample(4, 3).items()}
    twin.sample(4, 3)
    returned = replay.sample(4, 3, out)
    assert returned is out
    steps.check(out, 0, 10)
    np.testing.assert_array_equal(out["vector"], twin.sample(4, 3)["vector"])


def test_a_read_only_step_can_be_added(make_replay, steps):
    replay = make_replay(capacity_steps=30)
    arrays = steps.step(3, 0)
    for array in arrays.values():
        array.flags.writeable = False
    replay.add(arrays)
    assert len(replay) == 3
