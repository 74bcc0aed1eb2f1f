"""Chooses the implementation of the model's operations, once, when the agent is built."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
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
        return {"operations": self.name, "by_reference": dict(self.replaced)}


@functools.cache
def check_fused(
    device: torch.device, sizes: Sizes, persistent: bool = False, anew: bool = False
) -> tuple[Verdict, ...]:
    """How the fused operations compare with the reference on `device`; found once in a process.

    What was found by an earlier process on such a device is taken over.

    Args:
        device: where they run.
        sizes: the run's; they are checked at small ones as well.
        persistent: whether the one of `persistent` is among them.
        anew: whether to check what was checked before once more.
    """
    ops = [*reference.__all__, *(["rssm_observe_persistent"] if persistent else [])]
    names = kernels.__name__, reference.__name__
    asked = question(*names, device, sizes)
    known = {} if anew else recall(asked)
    new = [op for op in ops if op not in known]
    tried = try_ops(*names, device, new, sizes) if new else []
    keep(asked, tried)
    known |= {verdict.op: verdict for verdict in tried}
    return tuple(known[op] for op in ops)


@functools.cache
def _checked(device: torch.device, sizes: Sizes) -> Backend:
    """Fused operations, less those that do not agree; tells once which these are, and why."""
    wrong = [verdict for verdict in check_fused(device, sizes) if not verdict.ok]
    if not wrong:
        return Backend("fused")
    everything = len(wrong) == len(reference.__all__)
    replaced = "all operations" if everything else ", ".join(verdict.op for verdict in wrong)
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    print(
        f"warning: backend auto takes the reference for {replaced}: on {device} "
        f"{wrong[0].reason}{more}",
        file=sys.stderr,
    )
    reasons = tuple((verdict.op, verdict.reason) for verdict in wrong)
    return Backend("reference" if everything else "fused", reasons)


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
        return _checked(device, sizes) if checks_fused(device) else Backend("reference")
    if name not in BACKENDS:
        raise ConfigError(f"backend must be auto, {', '.join(BACKENDS)}, got {name!r}")
    if name in ON_TRITON and not runs_on(device):
        raise ConfigError(f"backend {name} needs a CUDA device, got {device}; use reference")
    if name in ON_TRITON and missing_fused_ops():
        raise ConfigError(f"backend {name} needs Triton: pip install 'mudreamer-fast[gpu]'")
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
        tf32=config.train.tf32,
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
