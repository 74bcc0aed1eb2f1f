"""What checks of the fused operations found before, on disk: they take minutes where all is new."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mudreamer_fast.backend import selfcheck
from mudreamer_fast.backend.selfcheck import Agreement, Sizes
from mudreamer_fast.backend.trial import Verdict
from mudreamer_fast.disk.manifest import ManifestError, read_manifest, write_manifest

KIND, VERSION = "kernel check", 2
_DRIVER = Path("/proc/driver/nvidia/version")


def question(fused: str, reference: str, device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """All that the answer of a check depends on: card, driver, versions, sources and sizes."""
    card = "cpu"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        card = f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}"
    driver = ""
    with contextlib.suppress(OSError):
        driver = _DRIVER.read_text().splitlines()[0]
    return {
        "card": card,
        "driver": driver,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "sources": _digest(fused, reference, selfcheck.__name__),
        "sizes": dataclasses.asdict(sizes),
    }


def recall(asked: dict[str, Any]) -> dict[str, Verdict]:
    """Verdicts that were kept for a question, by operation; none where they can not be read."""
    try:
        kept = read_manifest(_folder(asked), KIND, VERSION)
        if kept["question"] != asked:
            return {}
        return {
            op: Verdict(op, tuple(_agreement(use) for use in one["uses"]), str(one["trouble"]))
            for op, one in kept["verdicts"].items()
        }
    except (OSError, ManifestError, KeyError, TypeError, AttributeError):
        return {}


def keep(asked: dict[str, Any], verdicts: Iterable[Verdict]) -> None:
    """Add verdicts to those kept for a question; where that is not possible nothing is kept."""
    found = recall(asked) | {one.op: one for one in verdicts}
    entries = {
        "question": asked,
        "verdicts": {
            op: {"trouble": one.trouble, "uses": [dataclasses.asdict(use) for use in one.uses]}
            for op, one in found.items()
        },
    }
    with contextlib.suppress(OSError):
        folder = _folder(asked)
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder, KIND, VERSION, entries)


def _folder(asked: dict[str, Any]) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
    return Path(home, "mudreamer_fast", "kernels", name)


def _agreement(kept: dict[str, Any]) -> Agreement:
    use = Agreement(**kept)
    if not all(isinstance(value, str) for value in (use.op, use.worst, use.trouble)):
        raise TypeError("a name is no text")
    if not all(isinstance(value, float) for value in (use.error, use.limit)):
        raise TypeError("an error is no number")
    return use


def _digest(*modules: str) -> str:
    """Of the sources of modules, a package's with all that lies in its folder."""
    digest = hashlib.sha256()
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"no module named {name}")
        file = Path(spec.origin)
        files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
        for path in files:
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
