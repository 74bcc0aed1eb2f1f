"""Chooses the implementation of the model's operations, once, when the agent is built."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, cast

import torch

from mudreamer_fast import kernels, reference
from mudreamer_fast.backend.selfcheck import Sizes
from mudreamer_fast.backend.trial import Verdict, try_ops
from mudreamer_fast.backend.verdicts import keep, question, recall
from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.kernels.device import runs_on
from mudreamer_fast.ops.operations import Operations

BACKENDS = ("reference", "compiled", "fused", "persistent")
PERSISTENT = "rssm_observe_persistent"
"""The operation that `persistent` has in place of `rssm_observe`."""
NEEDS_TRITON = "needs Triton: pip install 'mudreamer-fast[gpu]'"
ON_TRITON = ("fused", "persistent")


def missing_fused_ops() -> list[str]:
    """Names of the reference's operations that have no fused twin here: all of them, or none."""
    return [name for name in reference.__all__ if not hasattr(kernels, name)]


def fused_runs_on(device: torch.device) -> bool:
    """Whether there are fused operations, and `device` can run them."""
    return runs_on(device) and not missing_fused_ops()


@dataclass(frozen=True)
class Backend:
    """The implementation of a run's operations."""

    name: str
    """reference, compiled, fused or persistent."""
    replaced: tuple[tuple[str, str], ...] = ()
    """Operations that the reference does in its place, each with the reason."""
    why: str = field(default="", compare=False)
    """What `auto` found; empty where it had nothing to choose from."""

    def __str__(self) -> str:
        if not self.replaced:
            return f"{self.name} operations"
        if self.name == "reference":
            return "reference operations, where fused ones fail"
        return (
            f"{self.name} operations, but {', '.join(op for op, _ in self.replaced)} by reference"
        )

    def facts(self) -> dict[str, Any]:
        """The same for a file of the run."""
        return {"operations": self.name, "by_reference": dict(self.replaced), "why": self.why}


@functools.cache
def check_fused(device: torch.device, sizes: Sizes, anew: bool = False) -> tuple[Verdict, ...]:
    """How the fused operations compare with the reference on `device`; found once in a process.

    What was found by an earlier process on such a device is taken over. Operations that gave
    nothing to compare are tried again: the cause may be gone, as a missing compiler is once it is
    installed. The one of `persistent`, which `auto` does not take, is so along with others alone:
    if it hangs, only one run waits for it.

    Args:
        device: where they run.
        sizes: the run's; they are checked at small ones as well.
        anew: whether to check what was checked before once more.

    Returns:
        One verdict for each operation of the reference, and then that of `PERSISTENT`.
    """
    names = kernels.__name__, reference.__name__
    asked = question(*names, device, sizes)
    known = {} if anew else recall(asked)
    ops = [*reference.__all__, PERSISTENT]
    new = [op for op in reference.__all__ if op not in known or not known[op].compared]
    if PERSISTENT not in known or (new and not known[PERSISTENT].compared):
        new.append(PERSISTENT)
    tried = try_ops(*names, device, new, sizes) if new else []
    keep(asked, tried)
    known |= {verdict.op: verdict for verdict in tried}
    return tuple(known[op] for op in ops)


def choose(found: Sequence[Verdict]) -> Backend:
    """What `auto` takes on a device where `check_fused` has found this.

    Fused operations, less those that do not agree. The one of `persistent` is not taken before it
    has been timed on a GPU.
    """
    *found, persistent = found
    reasons = tuple((verdict.op, verdict.reason) for verdict in found if not verdict.ok)
    good = len(found) - len(reasons)
    why = f"{good} of {len(found)} fused operations agree with the reference; persistent "
    if persistent.ok:
        why += "does, too, and is not taken as it has not been timed"
    else:
        why += f"is not usable: {persistent.reason}"
    return Backend("fused" if good else "reference", reasons, why)


@functools.cache
def _checked(device: torch.device, sizes: Sizes) -> Backend:
    """What `auto` takes; tells once what is replaced, and why."""
    backend = choose(check_fused(device, sizes))
    if backend.replaced:
        ops, reasons = zip(*backend.replaced, strict=True)
        replaced = "all operations" if backend.name == "reference" else ", ".join(ops)
        more = f", and {len(ops) - 1} more" if len(ops) > 1 else ""
        print(
            f"warning: backend auto takes the reference for {replaced}: on {device} "
            f"{reasons[0]}{more}",
            file=sys.stderr,
        )
    return backend


def checks_fused(device: torch.device) -> bool:
    """Whether `auto` considers the fused operations on `device`."""
    return device.type == "cuda" and fused_runs_on(device)


def resolve_backend(name: str, device: torch.device, sizes: Sizes) -> Backend:
    """Turn "auto" into what to use on `device`.

    That is fused on a CUDA device, as far as it has shown there that it agrees with the reference,
    and the reference for all else. One that is asked for by name is not checked.

    Args:
        name: auto, or an implementation.
        device: where the operations run.
        sizes: the run's.

    Raises:
        ConfigError: if the one asked for can not run, saying why.
    """
    if name == "auto":
        if checks_fused(device):
            return _checked(device, sizes)
        return Backend("reference", why=f"fused {NEEDS_TRITON}" if device.type == "cuda" else "")
    if name not in BACKENDS:
        raise ConfigError(f"backend must be auto, {', '.join(BACKENDS)}, got {name!r}")
    if name in ON_TRITON and not runs_on(device):
        raise ConfigError(f"backend {name} needs a CUDA device, got {device}; use reference")
    if name in ON_TRITON and missing_fused_ops():
        raise ConfigError(f"backend {name} {NEEDS_TRITON}")
    return Backend(name)


def run_sizes(config: Config, embed: int, actions: int, continuous: bool) -> Sizes:
    """What a run gives the operations.

    Args:
        config: the run's.
        embed: E, width of the encoder's features.
        actions: A.
        continuous: their kind.
    """
    model, replay, gradient = config.model, config.replay, config.behaviour.actor_gradient
    dims = model.dimensions
    return Sizes(
        rows=replay.batch_size,
        steps=replay.batch_length,
        envs=config.env.num_envs,
        starts=replay.batch_size * replay.batch_length,
        horizon=config.behaviour.horizon,
        embed=embed,
        actions=actions,
        bins=model.bins,
        deter=dims.deter,
        hidden=dims.hidden,
        layers=dims.layers,
        groups=model.groups,
        classes=model.classes,
        tf32=config.train.precision != "float32",
        continuous=continuous,
        dynamics=continuous if gradient == "auto" else gradient == "dynamics",
        batch_norm=model.batch_norm in ("posterior", "both"),
    )


def load_ops(name: str, replaced: Iterable[str] = ()) -> Operations:
    """The module of operations called "reference", "compiled", "fused" or "persistent".

    "compiled" is the reference under torch.compile; "persistent" is fused, but for sequences, which
    are filtered in a single launch. Each operation is whole, forward and backward.

    Args:
        name: of the module.
        replaced: operations that are the reference's all the same.
    """
    replaced = set(replaced)
    if name == "reference":
        return reference
    if name == "fused" and not replaced:
        return kernels
    ops = ModuleType(f"{__package__}.{name}")
    for op in reference.__all__:
        if op in replaced:
            setattr(ops, op, getattr(reference, op))
        elif name in ON_TRITON:
            setattr(ops, op, getattr(kernels, op))
        else:  # Whole sequences are unrolled: a second length would be compiled as a second graph.
            setattr(ops, op, torch.compile(getattr(reference, op), dynamic=False))
    if name == "persistent" and "rssm_observe" not in replaced:
        ops.rssm_observe = kernels.rssm_observe_persistent  # type: ignore[attr-defined]
    return cast(Operations, ops)
