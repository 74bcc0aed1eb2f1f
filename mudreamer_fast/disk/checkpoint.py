"""Crash-safe checkpoints: a folder that always holds a complete state, the old or the new one.

Layout of the folder::

    manifest.json                 names the data folder, and each of its files with size and CRC-32
    data-<number>/manifest.json   the same, so that a data folder can stand for itself
    data-<number>/<key>.pt        everything of state[key] but its arrays (torch, weights only)
    data-<number>/<key>.<n>.npy   NumPy arrays of state[key], without pickle

A save writes and syncs a new data folder beside the old ones, then renames the new manifest over
the old one, then removes the data that is not kept. The rename is the commit: whatever stops the
process before or after it, the manifest names files that are complete. A load that finds these
damaged takes the newest of the older ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

from mudreamer_fast.disk.arrays import (
    ChecksummedFile,
    Empty,
    MappedArrays,
    measure,
    read_array,
    settle_mapped,
    write_array,
)
from mudreamer_fast.disk.manifest import (
    MANIFEST,
    ManifestError,
    read_manifest,
    sync_folder,
    write_manifest,
)
from mudreamer_fast.machine.screen import say

KIND = "checkpoint"
VERSION = 1
"""Raised whenever the layout changes; other versions are refused."""

Build: TypeAlias = Callable[[Empty], Mapping[str, Any]]
"""Makes a state; large arrays in memory from `Empty` are written by being filled."""

_Written = TypeVar("_Written")
_ARRAY = "__npy_file__"
_KEY = r"[A-Za-z0-9_-]+"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_DISK_FULL = (*_NO_ROOM, errno.EFBIG)
_REFUSED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_NO_MEMORY = "can't allocate memory"
"""Of PyTorch's error, which is a plain RuntimeError on a CPU."""
_READ_ATTEMPTS = 3


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message is one line for the user."""


class DiskFullError(CheckpointError):
    """No room for a checkpoint; the one before it is intact."""


class RefusedError(CheckpointError):
    """The system refuses this process what reading takes; the checkpoint itself may be whole."""


def save(state: Mapping[str, Any] | Build, folder: str | os.PathLike[str], keep: int = 1) -> None:
    """Makes `state` the checkpoint in `folder`, all or nothing.

    Args:
        state: string keys that can be file names; values are tensors, NumPy arrays of plain
            dtypes, numbers, strings, bytes, None, and dicts, lists and tuples of those; tensors
            are finite. Or a function that makes such a state: it is handed a stand-in for
            `numpy.empty` whose large arrays are files already, and so cost no memory of the
            process's own.
        folder: made where missing; holds nothing but checkpoints.
        keep: checkpoints that stay, the new one included. Where there is no room for them, older
            ones make room, but for the last.

    Raises:
        DiskFullError: no room; the partial files are removed and the previous checkpoint stays.
        CheckpointError: the folder cannot be written, or a value cannot be stored.
    """
    StagedCheckpoint(state, folder).commit(keep)


class StagedCheckpoint:
    """A state that has been copied and is not yet a checkpoint: the first half of `save`.

    What it was copied from may change from now on, and `commit`, which does what takes long, may be
    called by another thread. One checkpoint of a folder is under way at a time.

    Args:
        state, folder: see `save`, and what it raises.
    """

    def __init__(self, state: Mapping[str, Any] | Build, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._data: Path | None = None
        with self._whole():
            self._folder.mkdir(parents=True, exist_ok=True)
            data = self._data = self._folder / f"data-{_next_number(self._folder)}"
            data.mkdir()
            self._mapped = MappedArrays(data)
            values = state(self._empty) if callable(state) else state
            self._arrays: dict[str, np.ndarray] = {}
            self._trees = {key: self._split(value, key) for key, value in values.items()}

    def commit(self, keep: int = 1) -> None:
        """Makes it the checkpoint of its folder; see `save`."""
        data = self._data
        if data is None:
            raise RuntimeError("this checkpoint has been committed")
        with self._whole():
            files: dict[str, dict[str, int]] = {}
            for key, tree in self._trees.items():
                name = f"{key}.pt"
                files[name] = self._with_room(_write_tree, tree, data / name)
            for name, array in self._arrays.items():
                files[name] = self._with_room(self._write_array, array, data / name)
            self._mapped.discard_unused()
            sync_folder(data)
            entries = {"data": data.name, "files": files, "keys": list(self._trees)}
            for folder in (data, self._folder):
                self._with_room(write_manifest, folder, KIND, VERSION, entries)
        self._data = None
        # After the commit nothing may fail the save: leftovers go with the next one.
        with contextlib.suppress(OSError):
            kept = [data, *(path for path in _complete(self._folder) if path != data)][:keep]
            for leftover in self._folder.glob("data-*"):
                if leftover not in kept:
                    shutil.rmtree(leftover, ignore_errors=True)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Leaves nothing of a checkpoint that fails, and makes its error one for the user."""
        try:
            yield
        except OSError as error:
            _discard(self._data, self._folder)
            kind = DiskFullError if error.errno in _DISK_FULL else CheckpointError
            reason = error.strerror or str(error)
            raise kind(f"cannot write the checkpoint in {self._folder}: {reason}") from error
        except BaseException:
            _discard(self._data, self._folder)
            raise

    def _with_room(self, write: Callable[..., _Written], *arguments: Any) -> _Written:
        """What `write` gives, called again after older checkpoints have made room.

        It begins anew each time: files are made and never written over.
        """
        while True:
            try:
                return write(*arguments)
            except OSError as error:
                if error.errno not in _NO_ROOM or not self._make_room():
                    raise

    def _make_room(self) -> bool:
        """Removes the oldest checkpoint but for the last; whether there was one."""
        try:
            last = _read_manifest(self._folder)["data"]
        except CheckpointError:
            return False
        older = [path for path in _complete(self._folder) if path != self._data]
        older = [path for path in older if path.name != last]
        if not older:
            return False
        shutil.rmtree(older[-1], ignore_errors=True)
        return not older[-1].exists()

    def _empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self._with_room(self._mapped.empty, shape, dtype)

    def _write_array(self, array: np.ndarray, path: Path) -> dict[str, int]:
        source = self._mapped.path_of(array)
        if source is None:
            path.unlink(missing_ok=True)
            size, crc = write_array(array, path)
        else:
            if source.exists():
                source.rename(path)
            size, crc = settle_mapped(array, path)
        return {"bytes": size, "crc32": crc}

    def _split(self, value: Any, key: str) -> Any:
        """A copy of `value`, with arrays taken out and named in their place."""
        if not re.fullmatch(_KEY, key):
            raise CheckpointError(f"a checkpoint key must be a plain word, got {key!r}")
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "biufc":
                raise CheckpointError(f"cannot store an array of {value.dtype} in {key!r}")
            name = f"{key}.{sum(name.split('.')[0] == key for name in self._arrays)}.npy"
            mapped = self._mapped.path_of(value) is not None
            self._arrays[name] = value if mapped else value.copy()
            return {_ARRAY: name}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):
            return {name: self._split(item, key) for name, item in value.items()}
        if isinstance(value, list | tuple):
            items = [self._split(item, key) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, torch.Tensor):
            if not _finite(value):
                raise CheckpointError(f"cannot store a tensor in {key!r} that is not finite")
            return value.detach().to("cpu", copy=True)
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        raise CheckpointError(f"cannot store a {type(value).__name__} in {key!r}")


def load(folder: str | os.PathLike[str], keys: Collection[str] | None = None) -> dict[str, Any]:
    """Reads the newest checkpoint in `folder` that is whole, or only some of its top-level keys.

    Given one of its data folders it reads that one. Tensors arrive on the CPU; large arrays are
    read-only maps of their files, so that loading a replay buffer takes no memory beyond the buffer
    itself. Nothing in the files is run as code. What is passed over is told on standard error.

    Raises:
        CheckpointError: no checkpoint there, a file missing, truncated or altered, a tensor that
            is not finite, another version, or a key that the checkpoint lacks; where there are
            several, of the newest.
        RefusedError: no memory, or too many open files: nothing is passed over for that.
    """
    folder = Path(folder)
    if _number(folder):  # one data folder, by its own name
        return _load_entries(folder.parent, _read_manifest(folder), keys)
    try:
        return _load_current(folder, keys)
    except RefusedError:
        raise
    except CheckpointError as error:
        failed = error
    for data in _complete(folder):
        try:
            state = _load_entries(folder, _read_manifest(data), keys)
        except RefusedError:
            raise
        except CheckpointError:
            continue
        say(f"warning: {failed}; taking {data.name}\n")
        return state
    raise failed


@contextlib.contextmanager
def fitting(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what goes wrong while a program takes over what it loaded from `folder` into one line.

    Raises:
        CheckpointError: something is missing, or of another kind or shape than expected.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or _NO_MEMORY in str(error):
            raise
        found = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CheckpointError(
            f"the checkpoint in {folder} does not fit this run or this version: {found}"
        ) from error


def exists(folder: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint was ever completed in `folder`."""
    return (Path(folder) / MANIFEST).is_file()


def _load_current(folder: Path, keys: Collection[str] | None) -> dict[str, Any]:
    for _ in range(_READ_ATTEMPTS - 1):
        manifest = _read_manifest(folder)
        try:
            return _load_entries(folder, manifest, keys)
        except CheckpointError:
            # A run that goes on may have put a newer checkpoint in the place of this one.
            if _read_manifest(folder) == manifest:
                raise
    return _load_entries(folder, _read_manifest(folder), keys)


def _complete(folder: Path) -> list[Path]:
    """Data folders that were completed, the newest first."""
    numbers = {path: _number(path) for path in folder.glob("data-*") if (path / MANIFEST).is_file()}
    return sorted((path for path in numbers if numbers[path]), key=lambda path: -numbers[path])


def _number(data: Path) -> int:
    """The number in a data folder's name; 0 where it has none."""
    match = re.fullmatch(r"data-(\d{1,18})", data.name)
    return int(match[1]) if match else 0


def _load_entries(
    folder: Path, manifest: Mapping[str, Any], keys: Collection[str] | None
) -> dict[str, Any]:
    data = folder / manifest["data"]
    state: dict[str, Any] = {}
    try:
        for key in manifest["keys"] if keys is None else keys:
            if key not in manifest["keys"]:
                held = ", ".join(manifest["keys"])
                raise CheckpointError(f"the checkpoint in {folder} has no {key!r}, only {held}")
            for name, facts in manifest["files"].items():
                if name.split(".")[0] == key:
                    _verify(data / name, facts["bytes"], facts["crc32"])
            tree = torch.load(data / f"{key}.pt", map_location="cpu", weights_only=True)
            state[key] = _join(tree, data)
    except OSError as error:
        reason = error.strerror or str(error)
        kind = RefusedError if error.errno in _REFUSED else CheckpointError
        raise kind(f"cannot read the checkpoint in {folder}: {reason}") from error
    except CheckpointError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or _NO_MEMORY in str(error):
            raise RefusedError(f"cannot read the checkpoint in {folder}: out of memory") from error
        raise CheckpointError(  # whatever a file with a good checksum and bad content leads to
            f"damaged checkpoint: {data} holds no state ({type(error).__name__})"
        ) from error
    return state


def _verify(path: Path, size_bytes: int, crc32: int) -> None:
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"damaged checkpoint: {path} is missing")
    actual = path.stat().st_size
    if actual != size_bytes:
        raise CheckpointError(
            f"damaged checkpoint: {path} has {actual} bytes, expected {size_bytes}"
        )
    if measure(path)[1] != crc32:
        raise CheckpointError(f"damaged checkpoint: {path} does not match its checksum")


def _next_number(folder: Path) -> int:
    """A number above those of all data folders present, finished or left by a crash."""
    return 1 + max((_number(path) for path in folder.iterdir()), default=0)


def _write_tree(tree: Any, path: Path) -> dict[str, int]:
    path.unlink(missing_ok=True)
    out = ChecksummedFile(path)
    try:
        torch.save(tree, out)  # type: ignore[arg-type]  # it needs no more than write and flush
    finally:
        out.close()
    return {"bytes": out.size_bytes, "crc32": out.crc32}


def _join(tree: Any, data: Path) -> Any:
    """Puts the arrays back: the inverse of `StagedCheckpoint._split`."""
    if isinstance(tree, dict):
        if set(tree) == {_ARRAY}:
            if not re.fullmatch(rf"{_KEY}\.\d+\.npy", tree[_ARRAY]):
                raise CheckpointError(f"damaged checkpoint: {data} names {tree[_ARRAY]!r}")
            return read_array(data / tree[_ARRAY])
        return {name: _join(item, data) for name, item in tree.items()}
    if isinstance(tree, list | tuple):
        items = [_join(item, data) for item in tree]
        return items if isinstance(tree, list) else tuple(items)
    if isinstance(tree, torch.Tensor) and not _finite(tree):
        raise CheckpointError(f"{data} holds a tensor that is not finite")
    return tree


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _discard(data: Path | None, folder: Path) -> None:
    """Removes what an unfinished save wrote, unless its manifest was already committed."""
    if data is None or not data.exists():
        return
    (folder / f"{MANIFEST}.tmp").unlink(missing_ok=True)
    try:
        committed = _read_manifest(folder)["data"] == data.name
    except RefusedError:
        return  # nobody knows: the next save removes what does not belong
    except CheckpointError:
        committed = False
    if not committed:
        shutil.rmtree(data, ignore_errors=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_manifest(folder, KIND, VERSION)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"no checkpoint in {folder}") from None
    except OSError as error:
        kind = RefusedError if error.errno in _REFUSED else CheckpointError
        raise kind(f"cannot read {folder / MANIFEST}: {error.strerror or error}") from error
    except ManifestError as error:
        raise CheckpointError(str(error)) from None
    if not _names_its_own(manifest):
        raise CheckpointError(f"damaged checkpoint: {folder / MANIFEST} names no files of its own")
    return manifest


def _names_its_own(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest names a data folder and files in it, and nothing anywhere else."""
    data, files, keys = (manifest.get(name) for name in ("data", "files", "keys"))
    return (
        isinstance(data, str)
        and _number(Path(data)) > 0
        and Path(data).name == data
        and isinstance(keys, list)
        and all(isinstance(key, str) and re.fullmatch(_KEY, key) for key in keys)
        and isinstance(files, dict)
        and all(
            re.fullmatch(rf"{_KEY}\.(pt|\d+\.npy)", name)
            and isinstance(facts, dict)
            and all(type(facts.get(fact)) is int for fact in ("bytes", "crc32"))
            for name, facts in files.items()
        )
        and all(f"{key}.pt" in files for key in keys)
    )
