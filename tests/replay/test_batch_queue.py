"""Batches copied ahead: which they are, whose memory they are, and how they end."""

from __future__ import annotations

import gc
import os
import threading
import time

import numpy as np
import pytest

from mudreamer_fast.replay import ReplayBuffer
from tests.patience import PATIENCE_SECONDS


@pytest.fixture
def replay(steps):
    replay = ReplayBuffer(steps.fields, 3 * 30, 3, seed=0, threads=2)
    steps.fill(replay, 0, 30)
    return replay


def test_a_batch_stays_whole_while_the_ring_runs_past_it(replay, steps):
    queue = replay.batches(5, 7, ahead=3)
    begin, end = 0, 30
    for call in range(40):
        # drawn three calls ago, when the buffer held older steps; the first four at once
        oldest = max(0, begin - 33)
        batch = queue.next()
        kept = {name: array.copy() for name, array in batch.items()}
        steps.check(batch, oldest, end)
        steps.fill(replay, end, end + 11)
        begin, end = begin + 11, end + 11
        for name, array in batch.items():
            np.testing.assert_array_equal(array, kept[name], err_msg=f"{name}, call {call}")


def test_arrays_go_round(replay):
    queue = replay.batches(5, 7, ahead=2)
    addresses = [queue.next()["image"].ctypes.data for _ in range(9)]
    assert len(set(addresses)) == 3
    assert addresses[:3] == addresses[3:6] == addresses[6:]


def test_arrays_come_from_the_callers_allocator(replay):
    made = []

    def allocate(shape, dtype):
        made.append(np.full(shape, 1, dtype))
        return made[-1]

    batch = replay.batches(5, 7, 1, handles=True, allocate=allocate).next()
    assert len(made) == 2 * (5 + 1)
    assert all(any(array is mine for mine in made) for array in batch.values())


def test_the_same_calls_give_the_same_batches_however_fast_they_come(steps):
    results = []
    for pause in (0, 0.002):
        replay = ReplayBuffer(steps.fields, 3 * 20, 3, seed=4)
        steps.fill(replay, 0, 20)
        queue = replay.batches(4, 5, ahead=2)
        drawn = []
        for call in range(12):
            time.sleep(pause * (call % 3))
            drawn.append(queue.next()["vector"].copy())
            steps.fill(replay, 20 + call, 21 + call)
        results.append(np.stack(drawn))
    np.testing.assert_array_equal(*results)


def test_pending_batches_are_resumed_after_a_reload(steps):
    replay = ReplayBuffer(steps.fields, 3 * 20, 3, seed=4)
    steps.fill(replay, 0, 33)
    queue = replay.batches(4, 5, ahead=2)
    assert queue.pending().shape == (0, 4, 2)
    queue.next()
    assert queue.pending(with_last=True).shape == (3, 4, 2)
    state, pending = replay.state_dict(), queue.pending()
    assert pending.shape == (2, 4, 2)
    loaded = ReplayBuffer(steps.fields, 3 * 20, 3, seed=9)
    loaded.load_state_dict(state)
    other = loaded.batches(4, 5, ahead=2)
    assert other.resume(pending)
    for _ in range(5):
        expected, drawn = queue.next(), other.next()
        for name, array in expected.items():
            np.testing.assert_array_equal(drawn[name], array, err_msg=name)


def test_pending_batches_are_not_resumed_where_a_step_is_no_longer_held(replay, steps):
    queue = replay.batches(4, 5, ahead=2)
    queue.next()
    pending = queue.pending()
    steps.fill(replay, 30, 60)
    fresh = replay.batches(4, 5, ahead=2)
    assert not fresh.resume(pending)
    steps.check(fresh.next(), 30, 60)


@pytest.mark.parametrize("with_last", [True, False])
@pytest.mark.parametrize(("calls", "added"), [(1, 4), (2, 11), (5, 4)])
def test_pending_batches_are_resumed_whose_steps_are_no_longer_held(steps, calls, added, with_last):
    replay = ReplayBuffer(steps.fields, 3 * 20, 3, seed=4)
    steps.fill(replay, 0, 33)
    queue = replay.batches(4, 5, ahead=2)
    for _ in range(calls):
        last = queue.next()
    again = [{name: array.copy() for name, array in last.items()}] if with_last else []
    assert queue.lost(with_last) == {}
    steps.fill(replay, 33, 33 + added)
    loaded, other = replay, queue
    for kept in (with_last, False):  # a second time before any of them is used
        state, pending, lost = loaded.state_dict(), other.pending(kept), other.lost(kept)
        assert lost
        loaded = ReplayBuffer(steps.fields, 3 * 20, 3, seed=9)
        loaded.load_state_dict(state)
        other = loaded.batches(4, 5, ahead=2)
        assert not loaded.batches(4, 4, ahead=2).resume(pending, lost)
        assert other.resume(pending, lost)
    for _ in range(5):
        expected, drawn = again.pop() if again else queue.next(), other.next()
        for name, array in expected.items():
            np.testing.assert_array_equal(drawn[name], array, err_msg=name)


@pytest.mark.parametrize("shape", [(4, 2), (2, 4, 3), (1, 3, 2), (4, 4, 2)])
def test_windows_of_another_shape_are_refused(replay, shape):
    queue = replay.batches(4, 5, ahead=2)
    windows = np.zeros(shape, np.uint64)
    if len(shape) == 3 and shape[-1] == 2:
        assert not queue.resume(windows)
    else:
        with pytest.raises(ValueError, match=r"windows must have shape"):
            queue.resume(windows)


def test_closing_ends_a_wait_in_another_thread(replay):
    queue = replay.batches(4, 5, ahead=1)
    errors = []
    begun = threading.Event()

    def sample():
        try:
            while True:
                queue.next()
                begun.set()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=sample)
    thread.start()
    assert begun.wait(PATIENCE_SECONDS)
    queue.close()
    thread.join(PATIENCE_SECONDS)
    assert errors == ["this queue of batches is closed"]
    with pytest.raises(RuntimeError, match="closed"):
        queue.next()


def test_a_queue_that_is_forgotten_leaves_no_thread_and_no_claim(replay, steps):
    def threads():
        return len(os.listdir("/proc/self/task"))

    gc.collect()  # queues of other tests, held by what pytest.raises has caught
    before = threads()
    for _ in range(5):
        replay.batches(4, 5, ahead=3).next()
    gc.collect()
    assert threads() == before
    steps.fill(replay, 30, 120)  # would wait for ever on a claim that is left


def test_a_queue_keeps_its_buffer_alive(steps):
    replay = ReplayBuffer(steps.fields, 3 * 20, 3, seed=4)
    steps.fill(replay, 0, 20)
    queue = replay.batches(4, 5, ahead=2)
    del replay
    gc.collect()
    steps.check(queue.next(), 0, 20)


def test_sizes_are_checked(replay):
    for arguments in ((0, 5, 1), (4, 0, 1), (4, -3, 1)):
        with pytest.raises(ValueError, match="must be positive"):
            replay.batches(*arguments)
    with pytest.raises(ValueError, match="ahead must not be negative, got -1"):
        replay.batches(4, 5, -1)


def test_a_buffer_with_too_few_steps_says_so_and_goes_on_later(steps, assert_same_state):
    replay = ReplayBuffer(steps.fields, 3 * 20, 3, seed=4)
    steps.fill(replay, 0, 4)
    before = replay.state_dict()
    queue = replay.batches(4, 5, ahead=1)
    with pytest.raises(RuntimeError, match="5 steps; the longest holds 4"):
        queue.next()
    assert_same_state(replay.state_dict(), before)
    steps.fill(replay, 4, 5)
    steps.check(queue.next(), 0, 5)
