"""The buffer is shared: threads add, sample and save at once; a forked process has its own."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np

from mudreamer_fast.replay import ReplayBuffer
from tests.patience import PATIENCE_SECONDS


def test_adding_sampling_and_saving_at_once_stays_consistent(steps):
    capacity = 40
    replay = ReplayBuffer(steps.fields, 3 * capacity, 3, seed=0, threads=2)
    steps.fill(replay, 0, capacity)
    done = threading.Event()
    failures: list[BaseException] = []

    def repeat(action):
        try:
            while not done.is_set():
                action()
        except BaseException as error:
            failures.append(error)
            done.set()

    def save():
        state = replay.state_dict()
        oldest = state["steps_added"] - capacity
        expected = np.arange(oldest, oldest + capacity)
        for stream in range(3):
            np.testing.assert_array_equal(state["fields"]["vector"][stream, :, 1], expected)

    actions = [lambda: steps.check(replay.sample(300, 12), 0, 10**6)] * 2 + [save]
    threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for step in range(capacity, 1500):
        replay.add(steps.step(3, step))
    done.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_other_threads_run_while_a_batch_is_copied(steps):
    """With the GIL held, this thread could not see some of a batch there and the rest not."""
    spec = type(steps.fields["image"])
    fields = {
        "image": spec((3, 64, 64), np.dtype(np.uint8)),
        "is_first": spec((), np.dtype(np.bool_)),
    }
    replay = ReplayBuffer(fields, 1_000, 1, seed=0)
    for _ in range(64):
        replay.add({"image": np.ones((1, 3, 64, 64), np.uint8), "is_first": np.ones(1, np.bool_)})
    out = replay.sample(200, 64)  # 157 MB
    windows = out["image"][:, 0, 0, 0, 0]
    # A busy system may have other things to do during a copy, or during many; not during all.
    for _ in range(1000):
        out["image"][:] = 0
        thread = threading.Thread(target=replay.sample, args=(200, 64, out))
        thread.start()
        amid = False
        while thread.is_alive():
            amid |= 0 < np.count_nonzero(windows) < 200
        assert windows.all()
        if amid:
            return
    raise AssertionError("no other thread ran during 1000 copies")


FORK = """
import os, sys
import numpy as np
from mudreamer_fast.replay import ReplayBuffer

class Spec:
    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, np.dtype(dtype)

fields = {"image": Spec((3, 64, 64), np.uint8), "is_first": Spec((), np.bool_)}
replay = ReplayBuffer(fields, 400, 2, seed=3, threads=2)
for i in range(100):
    image = np.full((2, 3, 64, 64), i, np.uint8)
    replay.add({"image": image, "is_first": np.zeros(2, np.bool_)})
replay.sample(8, 32)  # threads have run
reader, writer = os.pipe()
if os.fork() == 0:
    replay.add({"image": np.zeros((2, 3, 64, 64), np.uint8), "is_first": np.zeros(2, np.bool_)})
    os.write(writer, bytes([len(replay)]))
    replay.sample(8, 32)
    os._exit(0)
_, status = os.wait()
assert status == 0, status
assert os.read(reader, 1)[0] == 202
assert len(replay) == 200  # what the child adds is its own
numbers = replay.sample(8, 32)["image"][..., 0, 0, 0].astype(int)
assert (np.diff(numbers) == 1).all(), numbers  # the steps as they were added, one after the other
"""


def test_a_forked_process_samples_and_adds_on_its_own():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=PATIENCE_SECONDS)
