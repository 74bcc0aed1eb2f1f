"""Files of a checkpoint: written with a checksum, in chunks, or in place through a memory map."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 1 << 24
"""Bytes written or read at a time: the only extra memory that a large array costs."""
MAP_BYTES = 1 << 20
"""Arrays from this size on are mapped from their files rather than held in memory."""

Empty: TypeAlias = Callable[[tuple[int, ...], Any], NDArray[Any]]
"""Makes an uninitialised array of a shape and dtype, as `numpy.empty` does."""


class ChecksummedFile:
    """A file being written that counts bytes and CRC-32 on the way.

    A failed write is remembered and the rest swallowed: `torch.save` calls `write` from C++, which
    must not see a Python exception in the middle of an archive. `close` raises it.

    Raises:
        OSError: the file cannot be made, or exists, be it as a symbolic link.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("xb")
        self._error: OSError | None = None
        self.size_bytes = 0
        self.crc32 = 0

    def write(self, data: Any) -> int:
        """Appends bytes."""
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
        """Makes the file durable; raises the first error of all writes."""
        try:
            if self._error is not None:
                raise self._error
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


class MappedArrays:
    """Arrays that are files of the checkpoint from the start, so that filling them writes them.

    Their pages belong to the system's file cache: it writes them out and drops them as it needs
    memory, where an array of the process's own would be a second replay buffer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: list[tuple[NDArray[Any], Path]] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """As `numpy.empty`; small arrays are plain ones.

        Raises:
            OSError: no room on the disk. It is taken here: a map that runs out of room later would
                end the process.
        """
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size < MAP_BYTES:
            return np.empty(shape, dtype)
        path = self._folder / f"mapped-{len(self._arrays)}.npy"
        path.unlink(missing_ok=True)  # one for which there was no room a moment ago
        with path.open("x+b") as file:
            write_header(file, shape, dtype)
            start = file.tell()
            file.flush()
            os.posix_fallocate(file.fileno(), start, size)
            array = np.memmap(file, dtype, "r+", start, shape)
        self._arrays.append((array, path))
        return array

    def path_of(self, array: NDArray[Any]) -> Path | None:
        """The file that an array is, if it is one of these."""
        return next((path for mine, path in self._arrays if mine is array), None)

    def discard_unused(self) -> None:
        """Removes the files that no name of the checkpoint was given to."""
        for _, path in self._arrays:
            path.unlink(missing_ok=True)


def write_header(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Writes the beginning of a .npy file of a C-ordered array."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)


def write_array(array: NDArray[Any], path: Path) -> tuple[int, int]:
    """Writes a .npy file in chunks of rows, without a copy of the array; gives size and CRC-32."""
    out = ChecksummedFile(path)
    try:
        write_header(out, array.shape, array.dtype)
        rows = array.reshape(1) if array.ndim == 0 else array
        row_bytes = rows.nbytes // max(1, len(rows))
        step = max(1, CHUNK_BYTES // max(1, row_bytes))
        for start in range(0, len(rows) if array.size else 0, step):
            chunk = np.ascontiguousarray(rows[start : start + step])
            out.write(chunk.reshape(-1).view(np.uint8).data)
    finally:
        out.close()
    return out.size_bytes, out.crc32


def settle_mapped(array: NDArray[Any], path: Path) -> tuple[int, int]:
    """Makes a filled mapped array durable; gives size and CRC-32 of its file."""
    if isinstance(array, np.memmap):
        array.flush()
    with path.open("r+b") as file:
        os.fsync(file.fileno())
    return measure(path)


def measure(path: Path) -> tuple[int, int]:
    """Size and CRC-32 of a file."""
    size = crc = 0
    for chunk in _chunks(path):
        size += len(chunk)
        crc = zlib.crc32(chunk, crc)
    return size, crc


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def read_array(path: Path) -> NDArray[Any]:
    """Reads a .npy file; a large one as a read-only map of the file."""
    mapped = path.stat().st_size >= MAP_BYTES
    return np.asarray(np.load(path, "r" if mapped else None, allow_pickle=False))
