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

import errno
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

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

_ARRAY = "__npy_file__"
_KEY = r"[A-Za-z0-9_-]+"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ATTEMPTS = 3


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message is one line for the user."""


class DiskFullError(CheckpointError):
    """No room for a checkpoint; the one before it is intact."""


def save(state: Mapping[str, Any] | Build, folder: str | os.PathLike[str], keep: int = 1) -> None:
    """Makes `state` the checkpoint in `folder`, all or nothing.

    Args:
        state: string keys that can be file names; values are tensors, NumPy arrays of plain
            dtypes, numbers, strings, bytes, None, and dicts, lists and tuples of those; tensors
            are finite. Or a
            function that makes such a state: it is handed a stand-in for `numpy.empty` whose
            large arrays are files already, and so cost no memory of the process's own.
        folder: made where missing; holds nothing but checkpoints.
        keep: checkpoints that stay, the new one included. Where there is no room for them, older
            ones make room, but for the last.

    Raises:
        DiskFullError: no room; the partial files are removed and the previous checkpoint stays.
        CheckpointError: the folder cannot be written, or a value cannot be stored.
    """
    folder = Path(folder)
    while True:
        try:
            data = _write(state, folder)
            break
        except DiskFullError:
            older = _complete(folder)[1:]
            if not older:
                raise
            shutil.rmtree(older[-1], ignore_errors=True)
    # After the commit nothing may fail the save: leftovers go with the next one.
    kept = [data, *(path for path in _complete(folder) if path != data)][:keep]
    for leftover in folder.glob("data-*"):
        if leftover not in kept:
            shutil.rmtree(leftover, ignore_errors=True)


def _write(state: Mapping[str, Any] | Build, folder: Path) -> Path:
    """Writes and commits a state; gives its data folder."""
    data: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / f"data-{_next_number(folder)}"
        data.mkdir()
        mapped = MappedArrays(data)
        values = state(mapped.empty) if callable(state) else state
        files: dict[str, dict[str, int]] = {}
        for key, value in values.items():
            _write_entry(data, key, value, mapped, files)
        mapped.discard_unused()
        sync_folder(data)
        entries = {"data": data.name, "files": files, "keys": list(values)}
        write_manifest(data, KIND, VERSION, entries)
        write_manifest(folder, KIND, VERSION, entries)
        return data
    except OSError as error:
        _discard(data, folder)
        kind = DiskFullError if error.errno in _DISK_FULL else CheckpointError
        reason = error.strerror or str(error)
        raise kind(f"cannot write the checkpoint in {folder}: {reason}") from error
    except BaseException:
        _discard(data, folder)
        raise


def load(folder: str | os.PathLike[str], keys: Collection[str] | None = None) -> dict[str, Any]:
    """Reads the newest checkpoint in `folder` that is whole, or only some of its top-level keys.

    Tensors arrive on the CPU; large arrays are read-only maps of their files, so that loading a
    replay buffer takes no memory beyond the buffer itself. Nothing in the files is run as code.
    What is passed over is told on standard error.

    Raises:
        CheckpointError: no checkpoint there, a file missing, truncated or altered, a tensor that
            is not finite, another version, or a key that the checkpoint lacks; where there are
            several, of the newest.
    """
    folder = Path(folder)
    try:
        return _load_current(folder, keys)
    except CheckpointError as error:
        failed = error
    for data in _complete(folder):
        try:
            state = _load_entries(folder, _read_manifest(data), keys)
        except CheckpointError:
            continue
        say(f"warning: {failed}; taking {data.name}\n")
        return state
    raise failed


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
        raise CheckpointError(f"cannot read the checkpoint in {folder}: {reason}") from error
    except CheckpointError:
        raise
    except Exception as error:  # whatever a file with a good checksum and bad content leads to
        raise CheckpointError(
            f"damaged checkpoint: {data} holds no state ({type(error).__name__})"
        ) from error
    return state


def _verify(path: Path, size_bytes: int, crc32: int) -> None:
    if not path.is_file():
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


def _write_entry(
    data: Path, key: str, value: Any, mapped: MappedArrays, files: dict[str, dict[str, int]]
) -> None:
    if not re.fullmatch(_KEY, key):
        raise CheckpointError(f"a checkpoint key must be a plain word, got {key!r}")
    arrays: dict[str, np.ndarray] = {}
    tree = _split(value, key, arrays)
    out = ChecksummedFile(data / f"{key}.pt")
    try:
        torch.save(tree, out)  # type: ignore[arg-type]  # it needs no more than write and flush
    finally:
        out.close()
    files[f"{key}.pt"] = {"bytes": out.size_bytes, "crc32": out.crc32}
    for name, array in arrays.items():
        source = mapped.path_of(array)
        if source is None:
            size, crc = write_array(array, data / name)
        else:
            source.rename(data / name)
            size, crc = settle_mapped(array, data / name)
        files[name] = {"bytes": size, "crc32": crc}


def _split(value: Any, key: str, arrays: dict[str, np.ndarray]) -> Any:
    """Copies the containers of `value`, with arrays taken out and named in their place."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise CheckpointError(f"cannot store an array of {value.dtype} in {key!r}")
        name = f"{key}.{len(arrays)}.npy"
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {name: _split(item, key, arrays) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_split(item, key, arrays) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, torch.Tensor):
        if not _finite(value):
            raise CheckpointError(f"cannot store a tensor in {key!r} that is not finite")
        return value
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise CheckpointError(f"cannot store a {type(value).__name__} in {key!r}")


def _join(tree: Any, data: Path) -> Any:
    """Puts the arrays back: the inverse of `_split`."""
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
        raise CheckpointError(
            f"cannot read {folder / MANIFEST}: {error.strerror or error}"
        ) from error
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
