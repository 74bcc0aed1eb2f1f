from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pickle
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from mudreamer_fast.disk import arrays, checkpoint
from mudreamer_fast.disk.arrays import CHUNK_BYTES, MAP_BYTES
from mudreamer_fast.disk.checkpoint import (
    CheckpointError,
    DiskFullError,
    RefusedError,
    load,
    save,
)
from mudreamer_fast.disk.manifest import read_manifest, write_manifest
from tests.limits import few_files
from tests.mutations import ROUNDS, mutate

ROOT = Path(__file__).parents[2]


def state(number: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "agent": {
            "weights": {"w": torch.full((3, 5), float(number)), "n": torch.tensor(7)},
            "moments": [torch.arange(4.0), (torch.ones(2, dtype=torch.bfloat16), None)],
            "generator": torch.Generator().manual_seed(number).get_state(),
        },
        "replay": {
            "image": rng.integers(0, 256, (2, 11, 3, 64, 64), dtype=np.uint8),
            "reward": rng.normal(size=(2, 11)).astype(np.float32),
            "is_first": rng.random((2, 11)) < 0.5,
            "empty": np.zeros((2, 0, 3), np.float32),
            "scalar": np.array(5, np.int64),
            "generator": 2**64 - 1 - number,
        },
        "counters": {"steps": number, "seconds": 1.5, "name": "x", "scores": [1.0, 2.0]},
    }


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, strict=True)
    else:
        assert found == expected


def test_load_gives_back_what_was_saved(tmp_path: Path) -> None:
    save(state(3), tmp_path)
    assert_same(load(tmp_path), state(3))


def test_save_replaces_the_state_and_leaves_one_data_folder(tmp_path: Path) -> None:
    for number in range(3):
        save(state(number), tmp_path)
    assert_same(load(tmp_path), state(2))
    assert len(list(tmp_path.glob("data-*"))) == 1


def test_load_of_some_keys_reads_no_others(tmp_path: Path) -> None:
    save(state(), tmp_path)
    for path in tmp_path.glob("data-*/replay.*"):
        path.write_bytes(b"damaged")
    assert_same(load(tmp_path, ["counters"]), {"counters": state()["counters"]})
    with pytest.raises(CheckpointError, match="has no 'weights', only agent, replay, counters"):
        load(tmp_path, ["weights"])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(MAP_BYTES + 1, dtype=np.uint8),
        np.arange(CHUNK_BYTES // 4 + 3, dtype=np.float32),
        np.arange(120, dtype=np.int16).reshape(4, 5, 6).transpose(2, 0, 1),
        np.arange(40, dtype=np.float64)[::3],
        np.array(True),
    ],
    ids=["mapped", "over-a-chunk", "transposed", "strided", "scalar"],
)
def test_array_survives_whatever_its_size_and_layout(tmp_path: Path, array: np.ndarray) -> None:
    save({"x": array}, tmp_path)
    np.testing.assert_array_equal(load(tmp_path)["x"], array, strict=True)


def test_array_filled_in_place_is_saved_without_a_second_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (3, MAP_BYTES // 4)

    def build(empty: arrays.Empty) -> dict[str, Any]:
        filled, unused = empty(shape, np.float32), empty(shape, np.float32)
        assert isinstance(filled, np.memmap)
        assert not isinstance(empty((5,), np.float32), np.memmap)
        filled[:] = np.arange(3, dtype=np.float32)[:, None]
        unused[:] = 1
        return {"x": filled, "small": np.arange(3)}

    monkeypatch.setattr(checkpoint, "write_array", forbid_large(checkpoint.write_array))
    save(build, tmp_path)
    expected = np.repeat(np.arange(3, dtype=np.float32)[:, None], shape[1], 1)
    np.testing.assert_array_equal(load(tmp_path)["x"], expected)
    names = sorted(path.name for path in tmp_path.glob("data-*/*"))
    assert names == ["manifest.json", "small.0.npy", "small.pt", "x.0.npy", "x.pt"]


def forbid_large(write: Callable[..., Any]) -> Callable[..., Any]:
    def checked(array: np.ndarray, path: Path) -> Any:
        assert array.nbytes < MAP_BYTES
        return write(array, path)

    return checked


def test_numpy_scalars_come_back_as_plain_numbers(tmp_path: Path) -> None:
    save({"x": {"i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True)}}, tmp_path)
    assert_same(load(tmp_path), {"x": {"i": 3, "f": 0.5, "b": True}})


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([None]), {1, 2}, object()])
def test_save_refuses_what_it_cannot_store_and_keeps_the_old(tmp_path: Path, value: Any) -> None:
    save(state(1), tmp_path)
    with pytest.raises(CheckpointError, match="cannot store"):
        save({"x": value}, tmp_path)
    assert_same(load(tmp_path), state(1))
    assert len(list(tmp_path.iterdir())) == 2


def test_checkpoint_needs_no_pickle_of_objects(tmp_path: Path) -> None:
    save(state(), tmp_path)
    for path in tmp_path.glob("data-*/*.pt"):
        torch.load(path, weights_only=True)
    for path in tmp_path.glob("data-*/*.npy"):
        np.load(path, allow_pickle=False)


def damage_manifest(folder: Path, **entries: Any) -> None:
    path = folder / checkpoint.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: shutil.rmtree(f), "no checkpoint in"),
        (lambda f: (f / "manifest.json").unlink(), "no checkpoint in"),
        (lambda f: replace_by_folder(f / "manifest.json"), r"manifest\.json is no regular file"),
        (lambda f: (f / "manifest.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "is not the manifest"),
        (lambda f: damage_manifest(f, format="other"), "is not the manifest"),
        (lambda f: damage_manifest(f, version=99), "version 99, this program reads version 1"),
        (lambda f: damage_manifest(f, keys=["agent"]), "does not match its checksum"),
        (lambda f: next(f.glob("data-*/agent.pt")).unlink(), "agent.pt is missing"),
        (lambda f: flip_bit(next(f.glob("data-*/agent.pt"))), "does not match its checksum"),
        (lambda f: flip_bit(next(f.glob("data-*/replay.0.npy"))), "does not match its checksum"),
        (lambda f: os.truncate(next(f.glob("data-*/replay.0.npy")), 99), "has 99 bytes, expected"),
    ],
)
def test_load_refuses_damage_in_one_line(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    folder = tmp_path / "checkpoint"
    save(state(), folder)
    next(folder.glob("data-*/manifest.json")).unlink()  # else it would stand in for the other
    damage(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: (data.parent / "manifest.json").write_text("{"),
        lambda data: (data / "agent.pt").unlink(),
        lambda data: flip_bit(data / "replay.0.npy"),
        lambda data: shutil.rmtree(data),
    ],
)
def test_damaged_checkpoint_is_passed_over_and_told(
    tmp_path: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3):
        save(state(number), tmp_path, keep=2)
    names = sorted(path.name for path in tmp_path.glob("data-*"))
    assert names == ["data-2", "data-3"]
    damage(tmp_path / "data-3")
    whole = 3 if (tmp_path / "data-3" / "agent.pt").exists() and damages_manifest(tmp_path) else 2
    assert_same(load(tmp_path), state(whole))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert line.endswith(f"; taking data-{whole}")
    save(state(4), tmp_path, keep=2)
    assert_same(load(tmp_path), state(4))


def damages_manifest(folder: Path) -> bool:
    return (folder / "manifest.json").read_text() == "{"


def test_tensor_that_is_not_finite_is_neither_stored_nor_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"agent": {"weights": [torch.tensor([1.0, math.nan])]}}
    save({"agent": {"weights": [torch.ones(2)]}}, tmp_path, keep=2)
    with pytest.raises(CheckpointError, match="a tensor in 'agent' that is not finite"):
        save(broken, tmp_path, keep=2)
    with monkeypatch.context() as patch:  # as an earlier version did
        patch.setattr(checkpoint, "_finite", lambda tensor: True)
        save(broken, tmp_path, keep=2)
    assert torch.equal(load(tmp_path)["agent"]["weights"][0], torch.ones(2))
    assert "data-2 holds a tensor that is not finite; taking data-1" in capsys.readouterr().err


def test_older_checkpoints_make_room_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        save(state(number), tmp_path, keep=3)
    close = arrays.ChecksummedFile.close

    def full_while_three_stand(file: arrays.ChecksummedFile) -> None:
        close(file)
        if (tmp_path / "data-1").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    allocate = os.posix_fallocate

    def full_while_two_stand(file: int, start: int, size: int) -> None:
        if (tmp_path / "data-2").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(file, start, size)

    with monkeypatch.context() as patch:
        patch.setattr(arrays.ChecksummedFile, "close", full_while_three_stand)
        save(state(4), tmp_path, keep=3)
    assert_same(load(tmp_path), state(4))
    assert sorted(path.name for path in tmp_path.glob("data-*")) == ["data-2", "data-3", "data-4"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full_while_two_stand)
        save(mapped_state(5), tmp_path, keep=3)
    assert load(tmp_path)["tensor"] == 5
    assert sorted(path.name for path in tmp_path.glob("data-*")) == ["data-3", "data-4", "data-5"]


HOSTILE: dict[str, dict[str, Any]] = {
    "absolute": {"data": "/tmp/data-1"},
    "upwards": {"data": "../data-1"},
    "no folder": {"data": "data-"},
    "number": {"data": 7},
    "missing": {"data": None},
    "file elsewhere": {"files": {"../x.pt": {"bytes": 1, "crc32": 1}}},
    "no facts": {"files": {"agent.pt": 3}},
    "size of a wrong type": {"files": {"agent.pt": {"bytes": "1", "crc32": 1}}},
    "no such file": {"files": {}},
    "keys of a wrong type": {"keys": 5},
    "key with a slash": {"keys": ["a/b"]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_manifest_that_names_what_is_not_its_own_is_refused(tmp_path: Path, name: str) -> None:
    save(state(), tmp_path)
    entries = read_manifest(tmp_path, checkpoint.KIND, checkpoint.VERSION)
    for folder in (tmp_path, tmp_path / "data-1"):
        write_manifest(folder, checkpoint.KIND, checkpoint.VERSION, entries | HOSTILE[name])
    with pytest.raises(CheckpointError, match="names no files of its own"):
        load(tmp_path)


def test_files_with_good_checksums_and_bad_content_run_no_code(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (ran,))

    rng = random.Random(0)
    save(state(), tmp_path / "run")
    data = tmp_path / "run" / "data-1"
    good = (data / "agent.pt").read_bytes()
    contents = [b"", b"PK", pickle.dumps(Hostile()), pickle.dumps({"a": 1}), good[:-40]]
    contents += [mutate(good, rng) for _ in range(ROUNDS // 10)]
    entries = read_manifest(data, checkpoint.KIND, checkpoint.VERSION)
    for content in contents:
        (data / "agent.pt").write_bytes(content)
        facts = {"bytes": len(content), "crc32": zlib.crc32(content)}
        files = entries["files"] | {"agent.pt": facts}
        for folder in (tmp_path / "run", data):
            write_manifest(folder, checkpoint.KIND, checkpoint.VERSION, entries | {"files": files})
        with contextlib.suppress(CheckpointError):
            load(tmp_path / "run")
    assert not ran.exists()


def test_disk_that_cannot_be_read_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    save({"n": 1}, tmp_path)
    monkeypatch.setattr(checkpoint, "measure", fail)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"cannot read the checkpoint in {tmp_path}: Input/output error"


def no_memory(*arguments: Any, **options: Any) -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")


def test_a_checkpoint_is_not_passed_over_for_what_the_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(state(1), tmp_path, keep=2)
    save(state(2), tmp_path, keep=2)
    with few_files(0), pytest.raises(RefusedError, match="Too many open files"):
        load(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", no_memory)
        with pytest.raises(RefusedError, match=f"the checkpoint in {tmp_path}: out of memory"):
            load(tmp_path)
        patch.setattr(checkpoint, "_load_current", broken := Mock(side_effect=CheckpointError("x")))
        with pytest.raises(RefusedError, match="out of memory"):  # of the one before
            load(tmp_path)
        assert broken.called
    assert capsys.readouterr().err == ""
    assert_same(load(tmp_path), state(2))


def test_a_checkpoint_is_not_removed_where_no_file_can_be_opened_to_see_that_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(state(1), tmp_path)
    write = checkpoint.write_manifest

    def then_refuse(*arguments: Any) -> None:
        write(*arguments)
        if arguments[0] == tmp_path:
            limits.enter_context(few_files(0))
            os.open(tmp_path, os.O_RDONLY)

    monkeypatch.setattr(checkpoint, "write_manifest", then_refuse)
    with contextlib.ExitStack() as limits, pytest.raises(CheckpointError, match="Too many open"):
        save(state(2), tmp_path)
    assert_same(load(tmp_path), state(2))


class Disk:
    """Does something at the n-th thing that a save does to the disk."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], each_write: bool
    ) -> None:
        self.countdown = 0
        self._each_write = each_write
        self._act = act
        # What a sync does shows only when the machine itself goes down, and it takes its time.
        monkeypatch.setattr(os, "fsync", self._counted(lambda descriptor: None))
        for owner, name in (
            (os, "replace"),
            (arrays.MappedArrays, "empty"),
            (shutil, "rmtree"),
        ):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        start = arrays.ChecksummedFile.__init__

        def begin(file: Any, path: Path) -> None:
            start(file, path)
            file._file = self._watched(file._file)

        monkeypatch.setattr(arrays.ChecksummedFile, "__init__", begin)

    def _watched(self, file: Any) -> Any:
        return SimpleNamespace(
            write=self._counted(file.write) if self._each_write else file.write,
            flush=self._counted(file.flush),
            fileno=file.fileno,
            close=file.close,
        )

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.countdown -= 1
            if self.countdown == 0:
                self._act()
            return function(*args, **kwargs)

        return wrapper


def mapped_state(number: int) -> checkpoint.Build:
    def build(empty: arrays.Empty) -> dict[str, Any]:
        large = empty((MAP_BYTES,), np.uint8)
        large[:] = number
        return {"large": large, "small": np.full(3, number), "tensor": torch.tensor(number)}

    return build


def test_kill_at_any_moment_leaves_the_old_or_the_new_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, lambda: os._exit(9), each_write=False)
    outcomes = set()
    for moment in range(1, 1000):
        folder = tmp_path / str(moment)
        save(mapped_state(1), folder)
        process = os.fork()
        if process == 0:
            disk.countdown = moment
            save(mapped_state(2), folder)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
        found = load(folder)
        number = int(found["tensor"])
        assert (found["large"] == number).all()
        assert (found["small"] == number).all()
        outcomes.add(number)
        save(mapped_state(3), folder)  # and what the kill left is no hindrance
        assert load(folder)["tensor"] == 3
        assert len(list(folder.iterdir())) == 2
        shutil.rmtree(folder)
        if not killed:
            break
    else:
        pytest.fail("the save never ran to its end")
    assert moment > 8
    assert outcomes == {1, 2}


def test_full_disk_at_any_moment_keeps_the_old_state_and_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(mapped_state(1), tmp_path)
    disk = Disk(monkeypatch, fail, each_write=True)
    for moment in range(1, 1000):
        disk.countdown = moment
        try:
            save(mapped_state(2), tmp_path)
            break
        except DiskFullError as error:
            message = str(error)
        disk.countdown = 0
        assert message.endswith("No space left on device")
        if load(tmp_path)["tensor"] == 2:  # the last sync failed, with the new state in place
            break
        assert sorted(path.name[:5] for path in tmp_path.iterdir()) == ["data-", "manif"]
    assert moment > 5


FULL_DISK = """
import resource, sys
import numpy as np, torch
from mudreamer_fast.disk.checkpoint import DiskFullError, load, save

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for state in (
    {"x": np.zeros(10**6, np.uint8)},
    {"x": torch.zeros(10**6)},
    lambda empty: {"x": empty((2 * 10**6,), np.uint8)},
):
    try:
        save(state, sys.argv[1])
    except DiskFullError as error:
        print(error)
    assert load(sys.argv[1])["n"] == 1
"""


def test_system_that_refuses_more_bytes_is_a_full_disk(tmp_path: Path) -> None:
    save({"n": 1}, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"cannot write the checkpoint in {tmp_path}: File too large\n" * 3
    assert len(list(tmp_path.iterdir())) == 2


def test_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="Not a directory"):
        save({"n": 1}, tmp_path / "file" / "checkpoint")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load(tmp_path / "file")


def test_key_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"plain word, got '\.\./x'"):
        save({"../x": 1}, tmp_path)


@pytest.mark.parametrize("times", [1, 2])
def test_load_takes_the_newer_checkpoint_when_it_comes_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    save(state(1), tmp_path)
    verify, pending = checkpoint._verify, [state(2)] * times

    def interrupted(*args: Any) -> None:
        if pending:
            save(pending.pop(), tmp_path)
        verify(*args)

    monkeypatch.setattr(checkpoint, "_verify", interrupted)
    assert_same(load(tmp_path), state(2))


def test_a_staged_checkpoint_is_committed_once_and_keeps_what_it_was_given(tmp_path: Path) -> None:
    weights, steps = torch.ones(2), np.arange(3)
    staged = checkpoint.StagedCheckpoint({"agent": weights, "replay": steps}, tmp_path)
    weights.zero_()
    steps[:] = 0
    assert not checkpoint.exists(tmp_path)
    staged.commit()
    assert load(tmp_path)["agent"].tolist() == [1.0, 1.0]
    assert load(tmp_path)["replay"].tolist() == [0, 1, 2]
    with pytest.raises(RuntimeError, match="has been committed"):
        staged.commit()


def test_a_state_that_names_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    save({"replay": {"__npy_file__": "../../secret.0.npy"}}, tmp_path)
    with pytest.raises(CheckpointError, match=r"names '\.\./\.\./secret"):
        load(tmp_path)


def test_a_manifest_that_cannot_be_read_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    save(state(), tmp_path)
    monkeypatch.setattr(checkpoint, "read_manifest", fail)
    with pytest.raises(CheckpointError, match=r"manifest\.json: Input/output error"):
        load(tmp_path)
