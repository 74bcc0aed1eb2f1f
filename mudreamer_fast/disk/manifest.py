"""Manifests: the file of a folder that names what belongs to it, written last and all at once.

A manifest is JSON: `format`, `version`, the entries, and the CRC-32 of these. It is renamed over
the one before: whatever stops the process, the old or the new one is there, and names files that
were complete before it.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
"""Its name in the folder."""
MESSAGE_CHARACTERS = 300
"""Of a value that a message shows."""

_CAREFULLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Opens what was put in a regular file's place since it was looked at, and does not wait for it."""


class ManifestError(RuntimeError):
    """A manifest that cannot be trusted; the message is one line for the user."""


def write_manifest(folder: Path, kind: str, version: int, entries: Mapping[str, Any]) -> None:
    """Commits a folder to what the entries name.

    Args:
        folder: files that the entries name are in it, each of them synced.
        kind: of thing that the folder holds, such as checkpoint.
        version: of its layout.
        entries: what JSON can hold; no key is format, version or crc32.

    Raises:
        OSError: it cannot be written; the manifest before it stays.
    """
    text = {"format": _format(kind), "version": version, "crc32": _checksum(entries), **entries}
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.unlink(missing_ok=True)  # what a crash left
    with temporary.open("x") as file:  # which follows no symbolic link
        json.dump(text, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
    os.replace(temporary, folder / MANIFEST)
    sync_folder(folder)


def read_manifest(folder: Path, kind: str, version: int) -> dict[str, Any]:
    """The entries of a folder's manifest.

    Raises:
        OSError: there is none, or it cannot be read.
        ManifestError: it is damaged, no regular file, or of another kind or version.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(_read_regular(path))
    except (ValueError, RecursionError):
        raise ManifestError(f"damaged {kind}: {path} is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != _format(kind):
        raise ManifestError(f"{path} is not the manifest of a {_format(kind)}")
    if manifest.get("version") != version:
        raise ManifestError(
            f"the {kind} in {folder} has version {shortened(manifest.get('version'))}, "
            f"this program reads version {version}"
        )
    entries = {
        name: entry
        for name, entry in manifest.items()
        if name not in ("format", "version", "crc32")
    }
    if _checksum(entries) != manifest.get("crc32"):
        raise ManifestError(f"damaged {kind}: {path} does not match its checksum")
    return entries


def shortened(value: Any) -> str:
    """A value of a manifest for a message: one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}..."


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_regular(path: Path) -> bytes:
    """Reads a file unless it is a link, or something that could be waited on, such as a pipe."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ManifestError(f"{path} is no regular file")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _CAREFULLY)
    with open(descriptor, "rb") as file:
        return file.read()


def _format(kind: str) -> str:
    return f"mudreamer_fast {kind}"


def _checksum(entries: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(entries, sort_keys=True).encode())
