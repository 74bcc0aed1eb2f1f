"""What an update should take, from what it computes and what the device does at best.

The products of an update and its operations are counted on tensors without memory; how fast the
device multiplies and begins an operation is measured in a fraction of a second. What comes of it is
a prediction, from before any update.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mudreamer_fast.agent import Agent
from mudreamer_fast.backend.load import load_ops
from mudreamer_fast.imagination import imagine

SIDE = {"cuda": 4096, "cpu": 1024}
"""Of the matrices whose product shows how fast the device multiplies."""
BEGUN = 200
"""Small operations whose time shows how fast the device begins one."""
LAUNCHES = {"fused": 0.41, "persistent": 0.11}
"""Kernels that a backend launches for each operation of the reference, by count at size S."""
IN_A_GRAPH_SECONDS = 2.3e-6
"""From one kernel of a CUDA graph to the next."""


class Work(NamedTuple):
    """What an update computes in the reference."""

    flops: int
    """Of matrix products and convolutions, two for a multiplication with its sum."""
    operations: int
    """Of PyTorch, but those that only look at a tensor otherwise."""


class Prediction(NamedTuple):
    """What an update should take."""

    work: Work
    flops_per_second: float
    """What the device does at best, in large products."""
    launch_seconds: float
    """Between the beginnings of two operations."""
    launches: float
    """Operations or kernels that are begun."""

    @property
    def seconds(self) -> float:
        """Of an update: its products, and the beginnings of all it consists of."""
        return self.work.flops / self.flops_per_second + self.launches * self.launch_seconds

    def __str__(self) -> str:
        return (
            f"{self.work.flops / 1e9:,.0f} GFLOP at {self.flops_per_second / 1e9:,.0f} GFLOP/s, "
            f"{self.launches:,.0f} operations begun every {self.launch_seconds * 1e6:.1f} us"
        )


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that compute something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def predict(agent: Agent) -> Prediction:
    """What an update of this agent should take where it is."""
    work = count(agent)
    launches = work.operations * LAUNCHES.get(agent.backend, 1.0)
    begin = IN_A_GRAPH_SECONDS if agent.graphed else begin_seconds(agent.device)
    return Prediction(work, flops_per_second(agent.device), begin, launches)


def count(agent: Agent) -> Work:
    """What an update computes, without the optimisers' steps; by copies without memory."""
    config = agent.config
    shared = {id(agent.world_model.rssm.ops): load_ops("reference")}
    model = copy.deepcopy(agent.world_model, dict(shared)).to("meta")
    behaviour = copy.deepcopy(agent.behaviour, dict(shared)).to("meta")
    rows, steps = config.replay.batch_size, config.replay.batch_length
    starts, horizon, groups = rows * steps, config.behaviour.horizon, config.model.groups
    batch = {
        name: torch.empty(rows, steps, *shape, device="meta")
        for name, shape in agent.batch_shapes.items()
    }
    batch |= {name: batch[name].bool() for name in ("is_first", "is_terminal")}
    if "image" in batch:
        batch["image"] = batch["image"].to(torch.uint8)
    noise_size = agent.action_spec.size if agent.action_spec.continuous else 1
    with FlopCounterMode(display=False) as flops, _Operations() as operations:
        seen = model.loss(batch, torch.empty(rows, steps, groups, device="meta"))
        if seen.decoder is not None and model.decoder is not None:
            _gradients(seen.decoder, list(model.decoder.parameters()))
        _gradients(seen.total, list(model.trained_parameters()))
        trajectory = imagine(
            model,
            behaviour.actor,
            seen.state.rows(),
            batch["is_terminal"].flatten(),
            torch.empty(starts, horizon, groups, device="meta"),
            torch.empty(starts, horizon, noise_size, device="meta"),
            config.behaviour,
            behaviour.through_dynamics,
        )
        judged = behaviour.loss(trajectory)
        _gradients(judged.actor, list(behaviour.actor.parameters()))
        _gradients(judged.critic, list(behaviour.critic.parameters()))
    return Work(flops.get_total_flops(), operations.count)


def _gradients(loss: Tensor, parameters: list[torch.nn.Parameter]) -> None:
    torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def flops_per_second(device: torch.device) -> float:
    """How fast the device multiplies large matrices, as runs have it multiply."""
    side = SIDE[device.type]
    square = torch.ones(side, side, device=device)
    return 2 * side**3 / _seconds(lambda: square @ square, device)


def begin_seconds(device: torch.device) -> float:
    """From one small operation to the next."""
    one = torch.zeros((), device=device)

    def many() -> None:
        for _ in range(BEGUN):
            one.add_(1.0)

    return _seconds(many, device) / BEGUN


def _seconds(call: Callable[[], object], device: torch.device, rounds: int = 4) -> float:
    """The shortest time of a call, the first left out."""
    taken = []
    for _ in range(rounds):
        _wait(device)
        begun = time.perf_counter()
        call()
        _wait(device)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
