"""Chooses the implementation of the model's operations, once, when the agent is built."""

from __future__ import annotations

from types import ModuleType

import torch

from mudreamer_fast import kernels, reference
from mudreamer_fast.config import ConfigError
from mudreamer_fast.kernels.device import runs_on

BACKENDS = ("reference", "compiled", "fused")


def missing_fused_ops() -> list[str]:
    """Names of the reference's operations that have no fused twin here: all of them, or none."""
    return [name for name in reference.__all__ if not hasattr(kernels, name)]


def resolve_backend(name: str, device: torch.device) -> str:
    """Turn "auto" into the implementation that is trusted most on `device`.

    That is the reference everywhere, until a GPU has shown that the kernels agree with it.

    Raises:
        ConfigError: if the one asked for can not run, saying why.
    """
    if name == "auto":
        return "reference"
    if name not in BACKENDS:
        raise ConfigError(f"backend must be auto, {', '.join(BACKENDS)}, got {name!r}")
    if name == "fused" and not runs_on(device):
        raise ConfigError(f"backend fused needs a CUDA device, got {device}; use reference")
    if name == "fused" and missing_fused_ops():
        raise ConfigError("backend fused needs Triton: pip install 'mudreamer-fast[gpu]'")
    return name


def load_ops(name: str) -> ModuleType:
    """The module of operations called "reference", "compiled" or "fused".

    "compiled" is the reference under torch.compile.
    """
    if name != "compiled":
        return {"reference": reference, "fused": kernels}[name]
    ops = ModuleType(f"{__package__}.{name}")
    for op in reference.__all__:
        # Whole sequences are unrolled: a second length would be compiled as a second graph.
        setattr(ops, op, torch.compile(getattr(reference, op), dynamic=False))
    return ops
