"""Chooses the implementation of the model's operations, once, when the agent is built."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import cast

import torch

from mudreamer_fast import kernels, reference
from mudreamer_fast.backend.selfcheck import Agreement, check_ops
from mudreamer_fast.config import ConfigError
from mudreamer_fast.kernels.device import runs_on
from mudreamer_fast.ops.operations import Operations

BACKENDS = ("reference", "compiled", "fused", "persistent")
ON_TRITON = ("fused", "persistent")


def missing_fused_ops() -> list[str]:
    """Names of the reference's operations that have no fused twin here: all of them, or none."""
    return [name for name in reference.__all__ if not hasattr(kernels, name)]


def fused_runs_on(device: torch.device) -> bool:
    """Whether there are fused operations, and `device` can run them."""
    return runs_on(device) and not missing_fused_ops()


@functools.cache
def check_fused(device: torch.device) -> tuple[Agreement, ...]:
    """How the fused operations compare with the reference on `device`; found once in a process."""
    return tuple(check_ops(kernels, reference, device))


@functools.cache
def _trusts_fused(device: torch.device) -> bool:
    """Whether all operations agree; tells once which does not."""
    wrong = [str(check) for check in check_fused(device) if not check.ok]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        print(
            f"warning: backend auto takes reference, as on {device} fused disagrees with it: "
            f"{wrong[0]}{more}",
            file=sys.stderr,
        )
    return not wrong


def resolve_backend(name: str, device: torch.device) -> str:
    """Turn "auto" into the implementation to use on `device`.

    That is fused on a CUDA device, once it has shown there that it agrees with the reference, and
    the reference elsewhere. One that is asked for by name is not checked.

    Raises:
        ConfigError: if the one asked for can not run, saying why.
    """
    if name == "auto":
        gpu = device.type == "cuda" and fused_runs_on(device)
        return "fused" if gpu and _trusts_fused(device) else "reference"
    if name not in BACKENDS:
        raise ConfigError(f"backend must be auto, {', '.join(BACKENDS)}, got {name!r}")
    if name in ON_TRITON and not runs_on(device):
        raise ConfigError(f"backend {name} needs a CUDA device, got {device}; use reference")
    if name in ON_TRITON and missing_fused_ops():
        raise ConfigError(f"backend {name} needs Triton: pip install 'mudreamer-fast[gpu]'")
    return name


def load_ops(name: str) -> Operations:
    """The module of operations called "reference", "compiled", "fused" or "persistent".

    "compiled" is the reference under torch.compile; "persistent" is fused, but for sequences, which
    are filtered in a single launch.
    """
    if name == "reference":
        return reference
    if name == "fused":
        return kernels
    ops = ModuleType(f"{__package__}.{name}")
    for op in reference.__all__:
        if name == "persistent":
            setattr(ops, op, getattr(kernels, op))
        else:  # Whole sequences are unrolled: a second length would be compiled as a second graph.
            setattr(ops, op, torch.compile(getattr(reference, op), dynamic=False))
    if name == "persistent":
        ops.rssm_observe = kernels.rssm_observe_persistent  # type: ignore[attr-defined]
    return cast(Operations, ops)
