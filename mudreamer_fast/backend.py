"""Chooses the implementation of the model's operations, once, when the agent is built."""

from __future__ import annotations

from types import ModuleType

import torch

from mudreamer_fast import kernels, reference
from mudreamer_fast.config import ConfigError


def missing_fused_ops() -> list[str]:
    """Names of the reference's operations that have no fused twin yet."""
    return [name for name in reference.__all__ if not hasattr(kernels, name)]


def resolve_backend(name: str, device: torch.device) -> str:
    """Turn "auto" into the fastest implementation that runs on `device`.

    Raises:
        ConfigError: if the one asked for can not run, saying why.
    """
    missing = missing_fused_ops()
    if name == "auto":
        return "fused" if device.type == "cuda" and not missing else "reference"
    if name == "fused" and device.type != "cuda":
        raise ConfigError(f"backend fused needs a CUDA device, got {device}; use reference")
    if name == "fused" and missing:
        raise ConfigError(f"backend fused lacks {', '.join(missing)}; use reference")
    if name not in ("reference", "fused"):
        raise ConfigError(f"backend must be auto, reference or fused, got {name!r}")
    return name


def load_ops(name: str) -> ModuleType:
    """The module of operations called "reference" or "fused"."""
    return {"reference": reference, "fused": kernels}[name]
