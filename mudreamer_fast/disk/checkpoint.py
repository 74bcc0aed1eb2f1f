"""Crash-safe checkpoints: a folder that always holds one complete state, the old or the new one.

Layout of the folder::

    manifest.json                 names the data folder, and each of its files with size and CRC-32
    data-<number>/<key>.pt        everything of state[key] but its arrays (torch, weights only)
    data-<number>/<key>.<n>.npy   NumPy arrays of state[key], without pickle

A save writes and syncs a new data folder beside the old one, then renames the new manifest over
the old one, then removes the old data. The rename is the commit: whatever stops the process before
or after it, the manifest names files that are complete.
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

KIND = "checkpoint"
VERSION = 1
"""Raised whenever the layout changes; other versions are refused."""

Build: TypeAlias = Callable[[Empty], Mapping[str, Any]]
"""Makes a state; large arrays in memory from `Empty` are written by being filled."""

_ARRAY = "__npy_file__"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ATTEMPTS = 3


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message is one line for the user."""


class DiskFullError(CheckpointError):
    """No room for a checkpoint; the one before it is intact."""


def save(state: Mapping[str, Any] | Build, folder: str | os.PathLike[str]) -> None:
    """Replaces the checkpoint in `folder` by `state`, all or nothing.

    Args:
        state: string keys that can be file names; values are tensors, NumPy arrays of plain
            dtypes, numbers, strings, bytes, None, and dicts, lists and tuples of those. Or a
            function that makes such a state: it is handed a stand-in for `numpy.empty` whose
            large arrays are files already, and so cost no memory of the process's own.
        folder: made where missing; holds nothing but the checkpoint.

    Raises:
        DiskFullError: no room; the partial files are removed and the previous checkpoint stays.
        CheckpointError: the folder cannot be written, or a value cannot be stored.
    """
    folder = Path(folder)
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
        write_manifest(folder, KIND, VERSION, entries)
    except OSError as error:
        _discard(data, folder)
        kind = DiskFullError if error.errno in _DISK_FULL else CheckpointError
        reason = error.strerror or str(error)
        raise kind(f"cannot write the checkpoint in {folder}: {reason}") from error
    except BaseException:
        _discard(data, folder)
        raise
    # After the commit nothing may fail the save: leftovers go with the next one.
    for leftover in folder.glob("data-*"):
        if leftover != data:
            shutil.rmtree(leftover, ignore_errors=True)


def load(folder: str | os.PathLike[str], keys: Collection[str] | None = None) -> dict[str, Any]:
    """Reads the checkpoint in `folder`, or only some of its top-level keys.

    Tensors arrive on the CPU; large arrays are read-only maps of their files, so that loading a
    replay buffer takes no memory beyond the buffer itself.

    Raises:
        CheckpointError: no checkpoint there, a file missing, truncated or altered, another
            version, or a key that the checkpoint lacks.
    """
    folder = Path(folder)
    for attempt in range(_READ_ATTEMPTS):
        manifest = _read_manifest(folder)
        try:
            return _load_entries(folder, manifest, keys)
        except CheckpointError:
            # A run that goes on may have put a newer checkpoint in the place of this one.
            if attempt + 1 == _READ_ATTEMPTS or _read_manifest(folder) == manifest:
                raise
    raise AssertionError("the loop returns or raises")


def exists(folder: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint was ever completed in `folder`."""
    return (Path(folder) / MANIFEST).is_file()


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
    numbers = [re.fullmatch(r"data-(\d+)", path.name) for path in folder.iterdir()]
    return 1 + max((int(match[1]) for match in numbers if match), default=0)


def _write_entry(
    data: Path, key: str, value: Any, mapped: MappedArrays, files: dict[str, dict[str, int]]
) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
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
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.Tensor):
        return value
    raise CheckpointError(f"cannot store a {type(value).__name__} in {key!r}")


def _join(tree: Any, data: Path) -> Any:
    """Puts the arrays back: the inverse of `_split`."""
    if isinstance(tree, dict):
        if set(tree) == {_ARRAY}:
            return read_array(data / tree[_ARRAY])
        return {name: _join(item, data) for name, item in tree.items()}
    if isinstance(tree, list | tuple):
        items = [_join(item, data) for item in tree]
        return items if isinstance(tree, list) else tuple(items)
    return tree


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
        return read_manifest(folder, KIND, VERSION)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"no checkpoint in {folder}") from None
    except OSError as error:
        raise CheckpointError(
            f"cannot read {folder / MANIFEST}: {error.strerror or error}"
        ) from error
    except ManifestError as error:
        raise CheckpointError(str(error)) from None
