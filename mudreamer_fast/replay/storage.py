"""Stores a replay buffer's steps in a folder that survives a crash at any moment.

Layout of the folder::

    manifest.json            fields, segments in order with checksums, and the generator's state
    segment-<number>.bin     steps of all streams with the byte layout of a segment in memory
    lock                     locked by the process that uses the folder

A flush writes and syncs the new segments, then replaces the manifest atomically by a rename. The
manifest therefore always names complete files. A segment that is not full is rewritten under a new
name by each flush. The file of a full segment is mapped in place of the segment's memory: the
system loads its pages on access and evicts them under memory pressure, so a buffer may exceed the
memory.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mudreamer_fast._replay import Progress, ReplayStore, SegmentPart, StorageError
from mudreamer_fast.disk.lock import LockedError, open_locked
from mudreamer_fast.disk.manifest import (
    ManifestError,
    read_manifest,
    shortened,
    write_manifest,
)
from mudreamer_fast.replay.batch import MAX_UINT64, MOST_STEPS, Layout

KIND = "replay buffer"
VERSION = 1
"""Format version: incremented when the layout changes; other versions are rejected."""

SEGMENT_BYTES = 1 << 25
"""Target size of a segment: few files, and a partial segment that is cheap to rewrite."""
LEAST_SEGMENT_STEPS = 16
MOST_SEGMENTS = 32
"""Segments of a small buffer at most: keeps the ring's one to two extra segments small."""

_FILE = re.compile(r"segment-[0-9]{8,18}\.bin")


@dataclass(frozen=True)
class Segment:
    """A file of consecutive steps of all streams."""

    file: str
    """File name."""
    first: int
    """Number of the first step."""
    steps: int
    """Steps per stream."""
    checksum: int
    """CRC-32 of the steps' bytes."""
    after_gap: bool
    """Whether the preceding steps were lost, so that `is_first` must be set on the first step."""

    @property
    def end(self) -> int:
        """Number of the last step plus one."""
        return self.first + self.steps

    @classmethod
    def read(cls, entry: Any) -> Segment:
        """Check a segment's entry in a manifest, except for its place among the others.

        Raises:
            ValueError: it is not one that a flush writes.
        """
        if not isinstance(entry, dict) or entry.keys() != cls.__annotations__.keys():
            raise ValueError(f"a segment is {shortened(entry)}")
        if not isinstance(entry["file"], str) or not _FILE.fullmatch(entry["file"]):
            raise ValueError(f"a segment's file is {shortened(entry['file'])}")
        _require_integer("first", entry["first"], 0, MAX_UINT64)
        _require_integer("steps", entry["steps"], 1, MAX_UINT64)
        _require_integer("checksum", entry["checksum"], 0, 2**32 - 1)
        if not isinstance(entry["after_gap"], bool):
            raise ValueError(f"after_gap is {shortened(entry['after_gap'])}")
        return cls(**entry)


class Storage:
    """The folder of one replay buffer.

    Args:
        folder: created if missing; an existing one must have the same fields and streams.
        layout: layout of the buffer.

    Raises:
        StorageError: the folder cannot be used, is in use, or contains another buffer.
    """

    def __init__(self, folder: str | os.PathLike[str], layout: Layout) -> None:
        self._folder = Path(folder)
        self._layout = layout
        self._mutex = threading.Lock()
        self._process = os.getpid()
        self._given_up = False
        self._lock = self._take_lock()
        try:
            self._manifest = self._read_manifest()
        except BaseException:
            self._lock.close()
            raise
        self.segment_steps: int = (
            self._manifest["segment_steps"] if self._manifest else _segment_steps(layout)
        )
        self._segments: list[Segment] = []
        self._next_number = 1 + max(
            (int(path.stem.partition("-")[2]) for path in self._files()), default=0
        )

    @property
    def in_own_process(self) -> bool:
        """Whether this is the process that opened the folder, and not one forked from it."""
        return self._process == os.getpid()

    def recover(self, store: ReplayStore) -> list[str]:
        """Load the folder's segments into an empty store.

        Returns:
            A message for each damaged segment; its steps are lost.
        """
        if self._manifest is None:
            return []
        damage = []
        lost = 0
        gap = False
        for segment in self._manifest["segments"]:
            first = segment.first - lost
            mark = segment.after_gap or gap
            path = self._folder / segment.file
            try:
                part = SegmentPart(first=first, steps=segment.steps, checksum=segment.checksum)
                store.load_segment(part, str(path), mark_first=mark)
            except RuntimeError as error:
                damage.append(f"{error}; {segment.steps} steps of each stream are lost")
                # Later segments are renumbered by whole segments to leave no hole in the ring.
                if self._segments:
                    lost += self.segment_steps
                    gap = True
                continue
            self._segments.append(
                Segment(segment.file, first, segment.steps, segment.checksum, mark)
            )
            gap = False
        end = self._segments[-1].end if self._segments else self._manifest["steps_added"]
        begin = self._segments[0].first if self._segments else end
        store.finish_loading(
            begin, Progress(steps_added=end, generator=self._manifest["generator"])
        )
        return damage

    def flush(self, store: ReplayStore) -> None:
        """Write the store's new steps and the manifest.

        Raises:
            StorageError: the disk is full, the folder cannot be written, or it belongs to the
                process that this one was forked from; its previous contents are intact.
        """
        if not self.in_own_process:
            raise StorageError(f"a forked process cannot write its parent's {self._folder}")
        with self._mutex:
            if self._given_up:
                return
            try:
                self._flush(store)
            except (OSError, RuntimeError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise StorageError(
                    f"cannot write the replay buffer to {self._folder}: {reason}"
                ) from error

    def give_up(self) -> None:
        """Write nothing more: the folder keeps what it holds."""
        self._given_up = True

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """Hold off flushes while the store's contents are replaced; the next writes all of it."""
        with self._mutex:
            self._segments = []
            yield

    def close(self) -> None:
        """Release the folder's lock."""
        self._lock.close()

    def _flush(self, store: ReplayStore) -> None:
        generator, end = store.generator, store.steps_added
        begin = end - store.steps
        whole = [s for s in self._segments if s.end > begin and s.end % self.segment_steps == 0]
        segments = list(whole)
        step = whole[-1].end if whole else begin
        while step < end:
            name = f"segment-{self._next_number:08}.bin"
            self._next_number += 1
            part = store.write_segment(step, str(self._folder / name))
            if part is not None:  # None: add() overwrote it in the meantime
                segments.append(Segment(name, part.first, part.steps, part.checksum, False))
            step = (step // self.segment_steps + 1) * self.segment_steps
        self._commit(segments, segments[-1].end if segments else end, generator)
        for segment in segments[len(whole) :]:
            if segment.steps == self.segment_steps:
                store.map_segment(segment.first, str(self._folder / segment.file))

    def _commit(self, segments: list[Segment], steps_added: int, generator: int) -> None:
        entries = {
            **self._identity(),
            "segment_steps": self.segment_steps,
            "segments": [asdict(segment) for segment in segments],
            "steps_added": steps_added,
            "generator": generator,
        }
        write_manifest(self._folder, KIND, VERSION, entries)
        self._segments = segments
        names = {segment.file for segment in segments}
        for path in self._files():
            if path.name not in names:
                with contextlib.suppress(OSError):  # the commit stands; the next one tries again
                    path.unlink()

    def _files(self) -> Iterator[Path]:
        """The files in the folder that have a segment's name."""
        return (path for path in self._folder.iterdir() if _FILE.fullmatch(path.name))

    def _take_lock(self) -> io.FileIO:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return open_locked(self._folder / "lock")
        except OSError as error:
            busy = isinstance(error, LockedError)
            reason = "another process or buffer uses it" if busy else error.strerror
            raise StorageError(f"cannot use {self._folder}: {reason}") from error

    def _identity(self) -> dict[str, Any]:
        fields = [
            [name, field.dtype.str, list(field.shape)]
            for name, field in self._layout.fields.items()
        ]
        return {"fields": fields, "num_streams": self._layout.num_streams}

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            manifest = read_manifest(self._folder, KIND, VERSION)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {self._folder}: {error.strerror}") from error
        except ManifestError as error:
            raise StorageError(str(error)) from None
        for name, expected in self._identity().items():
            if manifest.get(name) != expected:
                raise StorageError(
                    f"{self._folder} holds a replay buffer of other {name}: "
                    f"{shortened(manifest.get(name))}, expected {expected}"
                )
        try:
            return self._checked(manifest)
        except ValueError as error:
            raise StorageError(
                f"damaged replay buffer: in the manifest of {self._folder} {error}"
            ) from None

    def _checked(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Check that a manifest is one that a flush writes, and replace its segments by `Segment`.

        Raises:
            ValueError: it is not.
        """
        names = {*self._identity(), "segment_steps", "segments", "steps_added", "generator"}
        if manifest.keys() != names:
            raise ValueError(f"the entries are {shortened(sorted(manifest))}")
        most = max(LEAST_SEGMENT_STEPS, _segment_steps_by_bytes(self._layout))
        _require_integer("segment_steps", manifest["segment_steps"], 1, most)
        most = MOST_STEPS // self._layout.num_streams
        _require_integer("steps_added", manifest["steps_added"], 0, most)
        _require_integer("generator", manifest["generator"], 0, MAX_UINT64)
        if not isinstance(manifest["segments"], list):
            raise ValueError(f"segments is {shortened(manifest['segments'])}")
        segments = [Segment.read(entry) for entry in manifest["segments"]]
        self._require_in_order(segments, manifest["segment_steps"], manifest["steps_added"])
        return {**manifest, "segments": segments}

    def _require_in_order(
        self, segments: list[Segment], segment_steps: int, steps_added: int
    ) -> None:
        for segment, following in pairwise(segments):
            if segment.end % segment_steps or segment.end != following.first:
                raise ValueError(f"{following.file} does not follow {segment.file}")
        for segment in segments:
            if segment.first % segment_steps + segment.steps > segment_steps:
                raise ValueError(f"{segment.file} is longer than a segment")
        if len({segment.file for segment in segments}) < len(segments):
            raise ValueError("a file has two places")
        if segments and segments[-1].end != steps_added:
            raise ValueError(f"the segments end at {segments[-1].end} of {steps_added} steps")


class Flusher:
    """Flushes a buffer at regular intervals in a background thread.

    Args:
        storage: folder of the buffer.
        store: store of the buffer.
        every_seconds: interval between flushes; a crash loses about one interval at most.
    """

    def __init__(self, storage: Storage, store: ReplayStore, every_seconds: float) -> None:
        self.problems: list[str] = []
        """Messages of failed flushes; the reader removes them."""
        self._storage, self._store, self._every_seconds = storage, store, every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replay flusher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every_seconds):
            try:
                self._storage.flush(self._store)
            except StorageError as error:
                self.problems.append(str(error))

    def stop(self) -> None:
        """Stop the thread after the current flush, if any."""
        self._stop.set()
        self._thread.join()


def _segment_steps_by_bytes(layout: Layout) -> int:
    return SEGMENT_BYTES // (layout.num_streams * layout.step_bytes)


def _segment_steps(layout: Layout) -> int:
    by_bytes = _segment_steps_by_bytes(layout)
    return max(LEAST_SEGMENT_STEPS, min(by_bytes, layout.stream_capacity_steps // MOST_SEGMENTS))


def _require_integer(name: str, value: Any, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {shortened(value)}")
