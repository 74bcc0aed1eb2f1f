"""A buffer in a folder: what comes back, after which accident, and what is said of the rest."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mudreamer_fast.replay import ReplayBuffer, StorageError, storage
from tests.patience import PATIENCE_SECONDS

SEGMENT = 16
"""Steps of a segment of the small buffers here."""


@pytest.fixture
def open_replay(steps, tmp_path):
    """Opens the buffer in a folder; capacity of each of 3 streams."""

    def make(capacity=100, seed=0, folder=tmp_path / "replay", **options):
        return ReplayBuffer(steps.fields, 3 * capacity, 3, seed, 2, folder=folder, **options)

    return make


def segments(folder: Path) -> list[dict]:
    return json.loads((folder / "manifest.json").read_text())["segments"]


def contents_are(replay, steps, begin, end):
    contents = replay.state_dict()["fields"]
    expected = steps.at(np.arange(3)[:, None], np.arange(begin, end)[None])
    for name, array in contents.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("added", [0, 1, 15, 16, 17, 99, 100, 101, 150, 331])
def test_a_reopened_buffer_draws_what_the_first_would_have(
    open_replay, steps, assert_same_state, added
):
    replay = open_replay()
    steps.fill(replay, 0, added)
    if added:
        replay.sample(4, 1)
    state = replay.state_dict()
    replay.close()
    again = open_replay(seed=7)
    assert again.problems() == []
    assert_same_state(again.state_dict(), state)
    steps.fill(again, added, added + 40)
    contents_are(again, steps, max(0, added - 60), added + 40)
    steps.check(again.sample(9, 30), max(0, added - 60), added + 40)


def test_steps_survive_many_reopenings_and_flushes(open_replay, steps):
    end = 0
    for add in (3, 20, 1, 50, 16, 31, 64, 5, 120, 7):
        replay = open_replay()
        assert replay.steps_added == 3 * end
        for _ in range(4):
            steps.fill(replay, end, end + add)
            end += add
            replay.flush()
        contents_are(replay, steps, max(0, end - 100), end)
        replay.close()


def test_a_folder_holds_no_more_than_the_buffer_and_names_no_file_twice(
    open_replay, steps, tmp_path
):
    replay = open_replay()
    seen: set[str] = set()
    previous: set[str] = set()
    for end in range(0, 700, 7):
        steps.fill(replay, end, end + 7)
        replay.flush()
        named = {segment["file"] for segment in segments(tmp_path / "replay")}
        present = {path.name for path in (tmp_path / "replay").glob("segment-*")}
        assert named == present
        assert len(named) <= 100 // SEGMENT + 2
        assert not (named - previous) & seen
        seen |= named
        previous = named


def test_a_folder_serves_one_buffer_at_a_time(open_replay, steps):
    replay = open_replay()
    with pytest.raises(StorageError, match="another process or buffer uses it"):
        open_replay()
    replay.close()
    replay.close()
    open_replay().close()


def test_a_smaller_buffer_keeps_the_newest_steps(open_replay, steps):
    replay = open_replay()
    steps.fill(replay, 0, 90)
    replay.close()
    smaller = open_replay(capacity=37)
    contents_are(smaller, steps, 53, 90)
    steps.fill(smaller, 90, 130)
    contents_are(smaller, steps, 93, 130)
    smaller.close()
    larger = open_replay(capacity=400)
    contents_are(larger, steps, 93, 130)
    steps.fill(larger, 130, 500)
    contents_are(larger, steps, 100, 500)


def test_contents_that_are_loaded_go_to_the_folder(open_replay, steps):
    other = ReplayBuffer(steps.fields, 300, 3, seed=0)
    steps.fill(other, 0, 141)
    replay = open_replay()
    steps.fill(replay, 500, 530)
    replay.flush()
    replay.load_state_dict(other.state_dict())
    replay.close()
    contents_are(open_replay(), steps, 41, 141)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("which", [0, 2, -1])
def test_a_damaged_segment_is_left_out_and_reported(open_replay, steps, tmp_path, damage, which):
    replay = open_replay()
    steps.fill(replay, 0, 95)
    replay.close()
    listed = segments(tmp_path / "replay")
    bad = listed[which]
    path = tmp_path / "replay" / bad["file"]
    if damage == "flip":
        content = bytearray(path.read_bytes())
        content[3] ^= 8
        path.write_bytes(content)
    elif damage == "truncate":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink()
    replay = open_replay()
    (problem,) = replay.problems()
    assert bad["file"] in problem
    assert f"{bad['steps']} steps of each stream are lost" in problem
    assert replay.problems() == []
    kept = [s for s in listed if s is not bad]
    expected_steps = np.concatenate([np.arange(s["first"], s["first"] + s["steps"]) for s in kept])
    expected = steps.at(np.arange(3)[:, None], expected_steps[None])
    after_gap = np.flatnonzero(np.diff(expected_steps) != 1) + 1
    assert len(after_gap) == (which == 2)
    expected["is_first"][:, after_gap] = True  # the model's state must not carry over
    for name, array in replay.state_dict()["fields"].items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    # it goes on, the gap stays marked, and the damage is not reported again
    for step in range(95, 103):
        replay.add(steps.step(3, step))
    state = replay.state_dict()
    replay.close()
    again = open_replay()
    assert again.problems() == []
    for name, array in again.state_dict()["fields"].items():
        np.testing.assert_array_equal(array, state["fields"][name], err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: text.replace('"first": 16', '"first": 32'), "does not match its checksum"),
        (lambda text: text.replace('"version": 1', '"version": 9'), "has version 9, .* version 1"),
        (lambda text: "{}", "is not the manifest of a mudreamer_fast replay buffer"),
        (lambda text: text.replace("mudreamer_fast replay", "other"), "is not the manifest"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused_and_nothing_is_deleted(
    open_replay, steps, tmp_path, change, message
):
    replay = open_replay()
    steps.fill(replay, 0, 50)
    replay.close()
    manifest = tmp_path / "replay" / "manifest.json"
    text = manifest.read_text()
    changed = change(text)
    assert changed != text
    manifest.write_text(changed)
    before = {path.name: path.stat().st_size for path in (tmp_path / "replay").iterdir()}
    with pytest.raises(StorageError, match=message):
        open_replay()
    assert before == {path.name: path.stat().st_size for path in (tmp_path / "replay").iterdir()}
    manifest.write_text(text)
    contents_are(open_replay(), steps, 0, 50)


def test_a_buffer_of_other_fields_or_streams_is_refused(open_replay, steps, tmp_path):
    replay = open_replay()
    steps.fill(replay, 0, 20)
    replay.close()
    with pytest.raises(StorageError, match="other num_streams: 3, expected 4"):
        ReplayBuffer(steps.fields, 400, 4, 0, folder=tmp_path / "replay")
    fewer = {name: spec for name, spec in steps.fields.items() if name != "vector"}
    with pytest.raises(StorageError, match="other fields"):
        ReplayBuffer(fewer, 300, 3, 0, folder=tmp_path / "replay")


@pytest.mark.parametrize("options", [{"flush_every_seconds": 0.0}, {"spare_steps": 0}])
def test_options_out_of_range_are_refused_before_the_folder_is_touched(
    open_replay, tmp_path, options
):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be positive, got 0"):
        open_replay(**options)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_refused_in_one_line(steps, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot use .*file"):
        ReplayBuffer(steps.fields, 300, 3, 0, folder=tmp_path / "file")


def test_a_manifest_that_cannot_be_read_is_one_clear_error(steps, tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(StorageError) as caught:
        ReplayBuffer(steps.fields, 300, 3, 0, folder=tmp_path)
    assert str(caught.value) == f"{tmp_path / 'manifest.json'} is no regular file"


@contextlib.contextmanager
def little_room():
    """Let files grow to 100,000 bytes only, as on a disk that is full.

    The limit holds for the whole process, and so for the file that pytest writes its report to: it
    must end within the test.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def large_fields(steps):
    spec = type(steps.fields["image"])
    return {"image": spec((100, 100), np.dtype(np.uint8)), "is_first": spec((), np.dtype(bool))}


def large_step(value):
    return {"image": np.full((1, 100, 100), value, np.uint8), "is_first": np.zeros(1, bool)}


def test_a_full_disk_is_one_clear_error_and_loses_nothing(steps, tmp_path):
    fields = large_fields(steps)
    replay = ReplayBuffer(fields, 200, 1, 0, folder=tmp_path / "replay")
    for value in range(9):
        replay.add(large_step(value))
    replay.flush()
    before = (tmp_path / "replay" / "manifest.json").read_text()
    for value in range(9, 60):
        replay.add(large_step(value))
    too_large = r"cannot write the replay buffer to .*File too large"
    with little_room(), pytest.raises(StorageError, match=too_large):
        replay.flush()
    assert (tmp_path / "replay" / "manifest.json").read_text() == before
    replay.sample(3, 50)
    replay.close()
    again = ReplayBuffer(fields, 200, 1, 0, folder=tmp_path / "replay")
    images = again.state_dict()["fields"]["image"]
    np.testing.assert_array_equal(images[0, :, 0, 0], np.arange(60))


def test_a_background_flush_that_fails_is_told_when_asked(steps, tmp_path):
    replay = ReplayBuffer(
        large_fields(steps), 200, 1, 0, folder=tmp_path / "replay", flush_every_seconds=0.01
    )
    problems: list[str] = []
    with little_room():
        for value in range(60):
            replay.add(large_step(value))
        while not problems:
            problems += replay.problems()
    assert "cannot write the replay buffer" in problems[0]
    assert len(replay) == 60


def test_full_segments_give_their_memory_back(steps, tmp_path):
    def anonymous_bytes() -> int:
        facts = Path("/proc/self/status").read_text()
        return int(facts.split("RssAnon:")[1].split()[0]) * 1024

    replay = ReplayBuffer(large_fields(steps), 6_000, 1, 0, folder=tmp_path / "replay")
    before = anonymous_bytes()
    for value in range(6_000):
        replay.add(large_step(value % 256))
    filled = anonymous_bytes() - before
    replay.flush()
    left = anonymous_bytes() - before
    assert filled > 55e6
    assert left < 10e6
    image = replay.sample(4, 500)["image"][:, :, 0, 0].astype(int)
    assert ((np.diff(image, axis=1) % 256) == 1).all()


def test_adding_sampling_and_flushing_at_once_stays_consistent(open_replay, steps):
    replay = open_replay(flush_every_seconds=0.001)
    steps.fill(replay, 0, 100)
    queue = replay.batches(20, 30, ahead=2)
    failures: list[BaseException] = []
    done = threading.Event()

    def sample():
        try:
            while not done.is_set():
                steps.check(queue.next(), 0, 10**6)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=sample)
    thread.start()
    for step in range(100, 3_000):
        replay.add(steps.step(3, step))
    done.set()
    thread.join()
    assert not failures, failures[0]
    assert replay.problems() == []
    queue.close()
    replay.close()
    contents_are(open_replay(), steps, 2_900, 3_000)


KILLED = """
import os, random, resource, signal, sys
from mudreamer_fast.replay import ReplayBuffer
sys.path.insert(0, {root!r})
from tests.replay.conftest import Steps

def die_later(seed, rng):
    # In turns: after so many steps of the interpreter, or at such a byte of the next file.
    if seed % 2:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(SEGMENT_BYTES),) * 2)
        return
    left = rng.randrange(6_000)

    def step(*event):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(step)

# One process that has imported everything, and forks a writer each time it is told to.
folder = {folder!r}
SEGMENT_BYTES = {segment} * 3 * Steps.step_bytes
for line in sys.stdin:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        rng = random.Random(int(line))
        alive = False
        replay = ReplayBuffer(Steps.fields, 300, 3, 0, folder=folder)
        assert replay.problems() == []
        step = replay.steps_added // 3
        while True:
            for _ in range(rng.randrange(1, 40)):
                replay.add(Steps.step(3, step))
                step += 1
            replay.flush()
            os.write(writer, step.to_bytes(8, "little"))
            # Not before its first flush, else there would be nothing to check in the first round.
            if not alive:
                alive = True
                die_later(int(line), rng)
    os.close(writer)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    flushed = []
    while word := os.read(reader, 8):
        flushed.append(int.from_bytes(word, "little"))
    os.close(reader)
    print(flushed[-1], flush=True)
"""


def test_after_two_hundred_kills_everything_flushed_is_there_byte_by_byte(
    open_replay, steps, tmp_path
):
    folder = tmp_path / "replay"
    root = str(Path(__file__).parents[2])
    program = KILLED.format(root=root, folder=str(folder), segment=SEGMENT)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    beyond = partial = 0
    for seed in range(200):
        process.stdin.write(f"{seed}\n")
        process.stdin.flush()
        flushed = int(process.stdout.readline())
        partial += len(list(folder.glob("*"))) > len(segments(folder)) + 2
        replay = open_replay()
        assert replay.problems() == []
        end = replay.steps_added // 3
        # What the writer was told is there; what was under way may be as well.
        assert flushed <= end <= flushed + 40
        beyond += end > flushed
        contents_are(replay, steps, max(0, end - 100), end)
        replay._end()  # without a flush: the folder stays as the kill left it
    process.stdin.close()
    assert process.wait(PATIENCE_SECONDS) == 0
    assert partial >= 100  # every second kill comes in the middle of a file


def test_a_folder_that_fails_while_it_is_read_is_let_go_of(
    steps, open_replay, tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError(5, "Input/output error")

    open_replay().close()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_manifest", fail)
        with pytest.raises(StorageError, match=r"cannot read .*: Input/output error"):
            open_replay()
    with monkeypatch.context() as patch:
        patch.setattr(storage.Storage, "recover", fail)
        with pytest.raises(OSError, match="Input/output error"):
            open_replay()
    open_replay().close()


def test_a_buffer_copies_none_of_other_streams(steps):
    one, other = (ReplayBuffer(steps.fields, 300, streams, 0) for streams in (3, 4))
    with pytest.raises(ValueError, match="same fields and streams"):
        one.copy_from(other)
