"""The buffer is shared: threads add, sample and save at once; a forked process has its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

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


BUFFER = """
import os, signal, sys, threading
sys.path.insert(0, {root!r})
from mudreamer_fast.replay import ReplayBuffer, StorageError
from tests.replay.conftest import Steps

replay = ReplayBuffer(Steps.fields, 3 * 40, 3, seed=3, threads=2, folder={folder!r})
Steps.fill(replay, 0, 40)
queue = replay.batches(4, 5, ahead=2)
queue.next()
"""

BUSY_THREADS = """
def repeat(call):
    while True:
        call()
        begun.release()

begun = threading.Semaphore(0)
calls = [lambda: replay.add(Steps.step(3, 0)), lambda: replay.sample(50, 20), queue.next]
for call in calls * 2:
    threading.Thread(target=repeat, args=(call,), daemon=True).start()
for _ in range(300):
    begun.acquire()
"""

CHILDREN = """
def child(number):
    replay.add(Steps.step(3, 40))
    replay.sample(2, 3)
    for refused in (queue.next, queue.pending):
        try:
            refused()
        except RuntimeError as error:
            assert "a forked process cannot use its parent's queue" in str(error), error
    try:
        replay.flush()
    except StorageError as error:
        assert "a forked process cannot write its parent's" in str(error), error
    if number % 2:
        replay.close()
    sys.exit(7)  # the ordinary end, with everything destroyed

before = sorted(os.listdir({folder!r}))
for number in range({children}):
    pid = os.fork()
    if pid == 0:
        child(number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert sorted(os.listdir({folder!r})) == before
"""


def run_program(*parts: str, **values: object) -> None:
    """Run a program that must end by itself, with nothing to say."""
    values["root"] = str(Path(__file__).parents[2])
    program = "".join(parts).format(**values)
    done = subprocess.run(
        # Python warns of a fork beside threads, which is what is tried here.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("others", ["", BUSY_THREADS], ids=["alone", "with busy threads"])
def test_a_forked_process_ends_although_batches_are_pending(tmp_path, others):
    children = 30 if others else 4
    run_program(BUFFER, others, CHILDREN, folder=str(tmp_path / "replay"), children=children)


def test_a_process_ends_quietly_while_daemon_threads_use_the_buffer(tmp_path):
    for _ in range(3):
        run_program(BUFFER, BUSY_THREADS, folder=str(tmp_path / "replay"))


def test_a_thread_that_waits_for_its_own_view_is_told_so(steps):
    replay = ReplayBuffer(steps.fields, 3 * 10, 3, seed=0, spare_steps=2)
    steps.fill(replay, 0, 10)
    queue = replay.batches(2, 3, ahead=1)
    queue.next()
    queue.hold_view()
    steps.fill(replay, 10, 12)
    handle = np.array([30], np.uint64)
    for call in (
        lambda: steps.fill(replay, 12, 13),
        lambda: replay.write_back(handle, {"reward": np.ones(1, np.float32)}),
        lambda: replay.load_state_dict(replay.state_dict()),
    ):
        with pytest.raises(RuntimeError, match=r"wait for ever.* view that this thread holds"):
            call()
    assert replay.steps_added == 3 * 12
    steps.check(queue.next(), 0, 10)
    queue.release_view()
    steps.fill(replay, 12, 20)
    steps.check(replay.sample(5, 4), 10, 20)


def test_an_add_waits_for_a_view_that_was_handed_over(steps):
    replay = ReplayBuffer(steps.fields, 3 * 10, 3, seed=0)
    steps.fill(replay, 0, 10)
    queue = replay.batches(2, 3, ahead=1)
    queue.hold_view(handed_over=True)
    learner = threading.Thread(target=lambda: (queue.next(), queue.release_view()))
    learner.start()
    steps.fill(replay, 10, 40)
    learner.join(PATIENCE_SECONDS)
    assert replay.steps_added == 3 * 40
