"""Weights in one file of the safetensors format, which other programs read as well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mudreamer_fast.config import ConfigError
from mudreamer_fast.disk.checkpoint import CheckpointError


def save_weights(parts: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Writes the tensors of some parts, each under `part.name`.

    Raises:
        ConfigError: safetensors is not installed.
        CheckpointError: the file cannot be written.
    """
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, named in parts.items()
        for name, tensor in named.items()
    }
    library = _safetensors()
    try:
        path.write_bytes(library.torch.save(tensors))  # its own file only the owner may read
    except (OSError, library.SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def load_weights(path: Path) -> dict[str, dict[str, Tensor]]:
    """Reads what `save_weights` wrote, by part and name, on the CPU.

    Raises:
        ConfigError: safetensors is not installed.
        CheckpointError: the file cannot be read.
    """
    library = _safetensors()
    try:
        tensors: dict[str, Tensor] = library.torch.load_file(path)
    except (OSError, library.SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    parts: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        part, _, name = full_name.partition(".")
        parts.setdefault(part, {})[name] = tensor
    return parts


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ConfigError(
            "exported weights need safetensors, which is not installed: "
            "pip install 'mudreamer-fast[export]'"
        ) from None
    return safetensors
