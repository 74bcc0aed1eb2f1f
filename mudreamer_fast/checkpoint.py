"""Crash-safe checkpoints: a folder that always holds one complete state, the old or the new one.

Layout of the folder::

    manifest.json            names the data folder and the size and CRC-32 of each of its files
    data-<number>/<key>.pt   everything of state[key] but its NumPy arrays (torch, weights only)
    data-<number>/<key>.<n>.npy   NumPy arrays of state[key], without pickle

A save writes and syncs a new data folder beside the old one, then renames the new manifest over
the old one, then removes the old data. The rename is the commit: whatever stops the process before
or after it, the manifest names files that are complete.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

FORMAT = "mudreamer_fast checkpoint"
VERSION = 1
"""Raised whenever the layout changes; other versions are refused."""

MANIFEST = "manifest.json"
CHUNK_BYTES = 1 << 24
"""Bytes written or read at a time: the only extra memory that a large array costs."""
MAP_BYTES = 1 << 20
"""Arrays from this size on are mapped from the file when loaded rather than read into memory."""

_ARRAY = "__npy_file__"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message is one line for the user."""


class DiskFullError(CheckpointError):
    """No room for a checkpoint; the one before it is intact."""


class _ChecksummedFile:
    """A file being written that counts bytes and CRC-32 on the way.

    A failed write is remembered and the rest swallowed: `torch.save` calls `write` from C++, which
    must not see a Python exception in the middle of an archive. `close` raises it.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._error: OSError | None = None
        self.size_bytes = 0
        self.crc32 = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._error is None:
            try:
                self._file.write(view)
            except OSError as error:
                self._error = error
        self.size_bytes += view.nbytes
        self.crc32 = zlib.crc32(view, self.crc32)
        return view.nbytes

    def flush(self) -> None:
        """Nothing to do before `close`; `torch.save` asks for it."""

    def close(self) -> None:
        try:
            if self._error is not None:
                raise self._error
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


def save(state: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Replaces the checkpoint in `folder` by `state`, all or nothing.

    Args:
        state: string keys that can be file names; values are tensors, NumPy arrays of plain
            dtypes, numbers, strings, bytes, None, and dicts, lists and tuples of those.
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
        files: dict[str, dict[str, int]] = {}
        for key, value in state.items():
            _write_entry(data, key, value, files)
        _sync_folder(data)
        _commit(folder, data.name, files, list(state))
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
    manifest = _read_manifest(folder)
    data = folder / manifest["data"]
    chosen = manifest["keys"] if keys is None else list(keys)
    for key in chosen:
        if key not in manifest["keys"]:
            raise CheckpointError(
                f"the checkpoint in {folder} has no {key!r}, only {', '.join(manifest['keys'])}"
            )
    state: dict[str, Any] = {}
    try:
        for key in chosen:
            for name, facts in manifest["files"].items():
                if name.split(".")[0] == key:
                    _verify(data / name, facts["bytes"], facts["crc32"])
            tree = torch.load(data / f"{key}.pt", map_location="cpu", weights_only=True)
            state[key] = _join(tree, data)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"cannot read the checkpoint in {folder}: {reason}") from error
    return state


def exists(folder: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint was ever completed in `folder`."""
    return (Path(folder) / MANIFEST).is_file()


def _next_number(folder: Path) -> int:
    """A number above those of all data folders present, finished or left by a crash."""
    numbers = [re.fullmatch(r"data-(\d+)", path.name) for path in folder.iterdir()]
    return 1 + max((int(match[1]) for match in numbers if match), default=0)


def _write_entry(data: Path, key: str, value: Any, files: dict[str, dict[str, int]]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        raise CheckpointError(f"a checkpoint key must be a plain word, got {key!r}")
    arrays: dict[str, np.ndarray] = {}
    tree = _split(value, key, arrays)
    out = _ChecksummedFile(data / f"{key}.pt")
    try:
        torch.save(tree, out)  # type: ignore[arg-type]  # it needs no more than write and flush
    finally:
        out.close()
    files[f"{key}.pt"] = {"bytes": out.size_bytes, "crc32": out.crc32}
    for name, array in arrays.items():
        out = _ChecksummedFile(data / name)
        try:
            _write_array(array, out)
        finally:
            out.close()
        files[name] = {"bytes": out.size_bytes, "crc32": out.crc32}


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
            path = data / tree[_ARRAY]
            mapped = path.stat().st_size >= MAP_BYTES
            return np.asarray(np.load(path, "r" if mapped else None, allow_pickle=False))
        return {name: _join(item, data) for name, item in tree.items()}
    if isinstance(tree, list | tuple):
        items = [_join(item, data) for item in tree]
        return items if isinstance(tree, list) else tuple(items)
    return tree


def _write_array(array: np.ndarray, out: _ChecksummedFile) -> None:
    """Writes the .npy format in chunks of rows, so that no copy of the whole array is made."""
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    np.lib.format.write_array_header_1_0(out, header)
    if array.size == 0:
        return
    rows = array.reshape(1) if array.ndim == 0 else array
    step = max(1, CHUNK_BYTES // max(1, rows[0].nbytes))
    for start in range(0, len(rows), step):
        chunk = np.ascontiguousarray(rows[start : start + step])
        out.write(chunk.reshape(-1).view(np.uint8).data)


def _commit(folder: Path, data: str, files: dict[str, dict[str, int]], keys: list[str]) -> None:
    manifest = {"data": data, "files": files, "keys": keys}
    body = json.dumps(manifest, sort_keys=True)
    text = {"format": FORMAT, "version": VERSION, "crc32": zlib.crc32(body.encode()), **manifest}
    temporary = folder / f"{MANIFEST}.tmp"
    with temporary.open("w") as file:
        json.dump(text, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / MANIFEST)
    _sync_folder(folder)


def _discard(data: Path | None, folder: Path) -> None:
    """Removes what an unfinished save wrote, unless its manifest was already committed."""
    (folder / f"{MANIFEST}.tmp").unlink(missing_ok=True)
    if data is None or not data.exists():
        return
    try:
        committed = _read_manifest(folder)["data"] == data.name
    except CheckpointError:
        committed = False
    if not committed:
        shutil.rmtree(data, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, where the system lets folders be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint in {folder}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError:
        raise CheckpointError(f"damaged checkpoint: {path} is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the manifest of a {FORMAT}")
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"the checkpoint in {folder} has version {manifest.get('version')}, "
            f"this program reads version {VERSION}"
        )
    body = {name: manifest.get(name) for name in ("data", "files", "keys")}
    if zlib.crc32(json.dumps(body, sort_keys=True).encode()) != manifest.get("crc32"):
        raise CheckpointError(f"damaged checkpoint: {path} does not match its checksum")
    return manifest


def _verify(path: Path, size_bytes: int, crc32: int) -> None:
    if not path.is_file():
        raise CheckpointError(f"damaged checkpoint: {path} is missing")
    actual = path.stat().st_size
    if actual != size_bytes:
        raise CheckpointError(
            f"damaged checkpoint: {path} has {actual} bytes, expected {size_bytes}"
        )
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found = zlib.crc32(chunk, found)
    if found != crc32:
        raise CheckpointError(f"damaged checkpoint: {path} does not match its checksum")
