"""Batches on the learner's device: the same as on the CPU, and whole while they are in use."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mudreamer_fast.replay import ReplayBuffer, prefetch
from mudreamer_fast.replay.prefetch import Prefetcher

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def replay(steps):
    replay = ReplayBuffer(steps.fields, 3 * 40, 3, seed=2)
    steps.fill(replay, 0, 40)
    return replay


def prefetcher(replay, ahead, device="cpu"):
    return Prefetcher(replay, 4, 6, ahead, torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_arrive_as_they_were_drawn(replay, steps, device, ahead):
    twin = ReplayBuffer(steps.fields, 3 * 40, 3, seed=2)
    steps.fill(twin, 0, 40)
    queue, expected = prefetcher(replay, ahead, device), twin.batches(4, 6, ahead)
    early = device == "cuda"  # a batch is sent to the GPU one call before it is handed out
    sent = [{name: array.copy() for name, array in expected.next().items()}] if early else []
    for call in range(20):
        batch = queue.next()
        sent.append({name: array.copy() for name, array in expected.next().items()})
        for name, array in sent.pop(0).items():
            assert batch[name].device.type == device
            np.testing.assert_array_equal(batch[name].cpu().numpy(), array, err_msg=name)
        for each in (replay, twin):
            steps.fill(each, 40 + call, 41 + call)


@pytest.mark.parametrize("device", DEVICES)
def test_another_prefetcher_goes_on_where_the_first_stopped(replay, steps, device):
    first = prefetcher(replay, 2, device)
    assert first.pending().shape == (0, 4, 2)
    for _ in range(3):
        first.next()
    state, windows = replay.state_dict(), first.pending()
    loaded = ReplayBuffer(steps.fields, 3 * 40, 3, seed=7)
    loaded.load_state_dict(state)
    second = prefetcher(loaded, 2, device)
    assert second.resume(windows)
    np.testing.assert_array_equal(second.pending(), windows)
    for _ in range(6):
        expected, batch = first.next(), second.next()
        for name, tensor in expected.items():
            assert torch.equal(batch[name], tensor), name


@pytest.mark.gpu
def test_a_batch_in_use_is_not_overwritten_by_those_behind_it(replay, steps):
    """Work queued on a batch reads it long after `next` has begun to send the following ones."""
    twin = ReplayBuffer(steps.fields, 3 * 40, 3, seed=2)
    steps.fill(twin, 0, 40)
    queue, expected = prefetcher(replay, 2, "cuda"), twin.batches(4, 6, 2)
    heavy = torch.randn(4096, 4096, device="cuda")
    copies, wanted = [], []
    for _ in range(30):
        batch = queue.next()
        for _ in range(5):
            heavy = (heavy @ heavy).tanh()
        copies.append(batch["image"].clone())  # done when the products before it are
        wanted.append(expected.next()["image"].copy())
    for copy, image in zip(copies, wanted, strict=True):
        np.testing.assert_array_equal(copy.cpu().numpy(), image)


def test_waiting_is_counted(replay, monkeypatch):
    queue = prefetcher(replay, 0)
    queue.next()
    assert queue.waited_seconds > 0
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(prefetch, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    next_batch = queue._queue.next

    def slow():
        clock.now += 50.0
        return next_batch()

    monkeypatch.setattr(queue._queue, "next", slow)
    before = queue.waited_seconds
    queue.next()
    assert queue.waited_seconds == before + 50


def test_a_closed_prefetcher_says_so(replay):
    queue = prefetcher(replay, 1)
    queue.close()
    queue.close()
    with pytest.raises(RuntimeError, match="closed"):
        queue.next()
