"""A folder that is damaged, or made to harm: its right steps, or one clear error, and no more."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import threading
import zlib
from typing import Any

import numpy as np
import pytest

from mudreamer_fast.disk.manifest import ManifestError, read_manifest, write_manifest
from mudreamer_fast.replay import ReplayBuffer, StorageError, storage
from tests.limits import few_files
from tests.mutations import ROUNDS

HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 7, 16, 17, 2**31, 2**32, 2**63, 2**64, -(2**64), 10**400, 1.0, 0.5,
    float("nan"), float("inf"), "", "segment-00000001.bin", "../outside", "/dev/zero", "pipe",
    "segment-00000001.bin\x00", "segment-x.bin", "a\nb", "\ud800", "9" * 5000, [], {}, [[]], [{}],
    {"file": "pipe"}, [["image", "|u1", [3, 5, 7]]],
]  # fmt: skip


def sealed(entries: dict[str, Any]) -> str:
    """The text of a manifest whose checksum is right."""
    crc = zlib.crc32(json.dumps(entries, sort_keys=True).encode())
    head = {"format": "mudreamer_fast replay buffer", "version": 1, "crc32": crc}
    return json.dumps({**head, **entries})


def open_folder(steps, folder):
    return ReplayBuffer(steps.fields, 300, 3, 0, folder=folder)


@pytest.fixture
def folder(steps, tmp_path):
    """A folder with four segments, the last one partial, of 60 steps."""
    folder = tmp_path / "replay"
    replay = open_folder(steps, folder)
    steps.fill(replay, 0, 60)
    replay.close()
    return folder


def entries_of(folder):
    return read_manifest(folder, "replay buffer", 1)


def check_right_steps(replay, steps):
    """Every step held is one that was added, and marked where it does not follow the one before."""
    contents = replay.state_dict()["fields"]
    stream, step = np.moveaxis(contents["vector"].astype(int), -1, 0)
    assert (stream == np.arange(3)[:, None]).all()
    expected = steps.at(stream, step)
    follows = np.diff(step, axis=1, prepend=step[:, :1] - 1) == 1
    assert (follows | contents["is_first"]).all()
    expected["is_first"] |= contents["is_first"]
    for name, array in contents.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def mutate_value(rng, entries):
    """Replace, remove, double or add something anywhere in the entries of a manifest."""
    places = [(entries, key) for key in entries]
    for container, key in places:
        value = container[key]
        if isinstance(value, dict | list):
            inner = value if isinstance(value, dict) else range(len(value))
            places += [(value, name) for name in inner]
    container, key = rng.choice(places)
    choice = rng.random()
    if choice < 0.6:
        container[key] = rng.choice(HOSTILE)
    elif choice < 0.7 and isinstance(container[key], int):
        container[key] += rng.choice([-16, -1, 1, 16])
    elif choice < 0.8:
        del container[key]
    elif choice < 0.9 and isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), rng.choice(container))
    elif isinstance(container, dict):
        container[rng.choice(["more", "file", "first"])] = rng.choice(HOSTILE)


def mutate_file(rng, folder):
    """Cut, flip, remove or replace a file."""
    path = rng.choice(sorted(folder.iterdir()))
    size = path.stat().st_size
    choice = rng.randrange(7)
    if choice == 0:
        os.truncate(path, rng.randrange(size + 1))
    elif choice == 1 and size:
        content = bytearray(path.read_bytes())
        content[rng.randrange(size)] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    else:
        path.unlink()
        if choice == 2:
            os.mkfifo(path)
        elif choice == 3:
            path.symlink_to(folder.parent / "outside")
        elif choice == 4:
            path.mkdir()
        elif choice == 5:
            path.write_text("[" * rng.choice([1, 100_000]))


def test_any_mutation_opens_with_right_steps_or_is_one_clear_error(steps, folder, tmp_path):
    rng = random.Random(0)
    outside = tmp_path / "outside"
    outside.write_text("not ours")
    original = entries_of(folder)
    opened = 0
    for number in range(ROUNDS):
        mutated = tmp_path / "mutated"
        mutated.mkdir()
        for path in folder.iterdir():  # links cost nothing, and a file that is changed is a copy
            os.link(path, mutated / path.name)
        if rng.random() < 0.75:
            entries = json.loads(json.dumps(original))
            mutate_value(rng, entries)
            (mutated / "manifest.json").unlink()
            (mutated / "manifest.json").write_text(sealed(entries))
        else:
            for each in mutated.iterdir():
                content = each.read_bytes()
                each.unlink()
                each.write_bytes(content)
            mutate_file(rng, mutated)
        try:
            replay = open_folder(steps, mutated)
        except StorageError as error:
            said = str(error)
        else:
            opened += 1
            check_right_steps(replay, steps)
            said = " ".join(replay.problems())
            if number % 16 == 0:
                replay.add(steps.step(3, 60))
                replay.close()
            replay._end()
        assert "\n" not in said, number
        assert len(said) < 1000, number
        assert outside.read_text() == "not ours"
        shutil.rmtree(mutated)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "replay"]
    assert 0.05 * ROUNDS < opened < 0.6 * ROUNDS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "../segment-00000001.bin"}, "a segment's file is '../segment-00000001.bin'"),
        ({"file": "/dev/zero"}, "a segment's file is '/dev/zero'"),
        ({"first": 32}, "segment-00000002.bin does not follow segment-00000001.bin"),
        ({"first": "16"}, "first is '16'"),
        ({"steps": True}, "steps is True"),
        ({"checksum": 2**32}, "checksum is 4294967296"),
        ({"after_gap": 0}, "after_gap is 0"),
        ({"more": 1}, "a segment is {"),
        ({"file": "segment-00000001.bin"}, "a file has two places"),
    ],
)
def test_a_sealed_manifest_of_impossible_segments_is_refused(steps, folder, change, words):
    entries = entries_of(folder)
    entries["segments"][1] |= change
    (folder / "manifest.json").write_text(sealed(entries))
    with pytest.raises(StorageError, match="damaged replay buffer") as caught:
        open_folder(steps, folder)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["lock", "manifest.json", "segment-00000002.bin"])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_pipe_or_a_link_in_a_files_place_is_not_followed(steps, folder, tmp_path, name, kind):
    outside = tmp_path / "outside"
    shutil.copy(folder / name, outside)
    before = outside.read_bytes()
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(outside)
    if name.startswith("segment"):
        replay = open_folder(steps, folder)
        (problem,) = replay.problems()
        check_right_steps(replay, steps)
        replay.close()
    else:
        with pytest.raises(StorageError) as caught:
            open_folder(steps, folder)
        problem = str(caught.value)
    assert f"{name.partition('.')[0]}" in problem
    assert "is no regular file" in problem
    assert outside.read_bytes() == before


def test_a_link_in_the_temporary_manifests_place_is_not_written_through(tmp_path):
    (tmp_path / "outside").write_text("not ours")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "manifest.json.tmp").symlink_to(tmp_path / "outside")
    write_manifest(folder, "thing", 1, {"a": 1})
    assert (tmp_path / "outside").read_text() == "not ours"
    assert read_manifest(folder, "thing", 1) == {"a": 1}
    assert not (folder / "manifest.json").is_symlink()


def test_a_manifest_of_nested_lists_without_end_is_no_json(tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ManifestError, match="is not JSON"):
        read_manifest(tmp_path, "thing", 1)


def test_foreign_files_with_almost_a_segments_name_stay(steps, folder):
    foreign = [folder / "segment-x.bin", folder / "segment-1.bin", folder / "segments.bin"]
    for path in foreign:
        path.write_text("not ours")
    replay = open_folder(steps, folder)
    steps.fill(replay, 60, 300)
    replay.close()
    assert all(path.read_text() == "not ours" for path in foreign)


def repeat(call, times):
    for number in range(times):
        call(number)


@pytest.mark.parametrize("size", [0, 100, 5_000, 60_000])
@pytest.mark.parametrize("reader", ["sample", "batches", "state_dict"])
def test_a_segment_that_is_cut_while_in_use_is_one_clear_error(steps, folder, size, reader):
    replay = open_folder(steps, folder)
    queue = replay.batches(30, 10, ahead=2)
    calls = {
        "sample": lambda number: replay.sample(30, 10),
        "batches": lambda number: queue.next(),
        "state_dict": lambda number: replay.state_dict(),
    }
    os.truncate(folder / "segment-00000002.bin", size)
    with pytest.raises(StorageError, match=r"segment-00000002.bin: was cut to \d+ bytes") as caught:
        repeat(calls[reader], 20)
    assert "\n" not in str(caught.value)
    steps.fill(replay, 60, 200)  # no claim is left that it would wait for
    queue.close()


def test_segments_that_are_cut_at_any_moment_do_not_end_the_process(steps, folder):
    """Also where the cut comes in the middle of a copy, after which its length is looked at."""
    for _ in range(20):
        replay = open_folder(steps, folder)
        files = sorted(folder.glob("segment-*.bin"))
        content = files[0].read_bytes()
        cut = threading.Thread(target=os.truncate, args=(files[0], 0))

        def sample(number, replay=replay, cut=cut):
            if number == 2:
                cut.start()
            steps.check(replay.sample(200, 12), 0, 60)

        with pytest.raises(StorageError, match="was cut"):
            repeat(sample, 10**9)
        cut.join()
        replay._end()
        files[0].write_bytes(content)


def test_segments_are_not_given_up_because_no_file_can_be_opened(steps, folder, monkeypatch):
    read = storage.read_manifest

    def then_refuse(*arguments):
        entries = read(*arguments)
        limits.enter_context(few_files(0))
        return entries

    with contextlib.ExitStack() as limits, monkeypatch.context() as patch:
        patch.setattr(storage, "read_manifest", then_refuse)
        with pytest.raises(OSError, match="Too many open files"):
            open_folder(steps, folder)
    replay = open_folder(steps, folder)
    assert replay.problems() == []
    assert len(replay) == 3 * 60
    replay.close()


def test_a_folder_whose_name_is_no_text_is_used_and_named(steps, tmp_path):
    folder = tmp_path / os.fsdecode(b"replay\xff")
    replay = open_folder(steps, folder)
    steps.fill(replay, 0, 60)
    replay.close()
    os.truncate(folder / "segment-00000002.bin", 9)
    replay = open_folder(steps, folder)
    (problem,) = replay.problems()
    assert problem.startswith(f"{folder}/segment-00000002.bin: has 9 bytes")
    check_right_steps(replay, steps)
    replay.close()
