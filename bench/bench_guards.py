"""What the guards against numbers that are not finite cost an update of the quick preset.

With them, a step whose gradient is not finite is not taken, running averages take no NaN in, and
every metric is looked at (docs/reliability.md); without them an update is the plain algorithm.
Contenders take turns, and are of the same weights and batches. What a checkpoint holds up is not
among this: a run's `metrics.jsonl` has it as `checkpoint/seconds`.

Run under the allocator of a training run:
`python -m mudreamer_fast.machine.allocator -m pytest bench/bench_guards.py --benchmark-only -s`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from bench.profile_update import ACTIONS, WARM_UPS, batch, synchronize
from bench.profile_update import SHORT as SHORT_CONFIG
from bench.surroundings import DEVICE, SHORT, sized, surroundings
from bench.turns import take_turns
from mudreamer_fast import optim
from mudreamer_fast.actor_critic import ReturnScale
from mudreamer_fast.agent import Agent
from mudreamer_fast.config import PRESETS, TrainConfig
from mudreamer_fast.envs import ActionSpec, ArraySpec
from mudreamer_fast.networks.layers import RunningStatistics
from mudreamer_fast.optim import ClippedAdam
from mudreamer_fast.run.guard import FiniteGuard

pytestmark = pytest.mark.usefixtures("cpu_threads")
ROUNDS = sized(40, 20, 1)
UPDATES = sized(50, 10, 1)
CONFIG = (
    replace(SHORT_CONFIG, train=TrainConfig(backend="reference")) if SHORT else PRESETS["quick"][1]
)


def apply(adam: ClippedAdam, gradients: Iterable[Tensor | None]) -> Tensor:
    """`ClippedAdam.apply`, whatever the gradient."""
    for parameter, gradient in zip(adam.parameters, gradients, strict=True):
        found = None if gradient is None else optim._laid_out_like(gradient, parameter)
        parameter.grad = found
    norm = nn.utils.clip_grad_norm_(adam.parameters, adam.clip_norm)
    adam._move(None)
    return norm


@torch.no_grad()
def average(
    averages: RunningStatistics, mean: Tensor, var: Tensor, rows: int, pooled: bool
) -> None:
    """`RunningStatistics.update`, whatever the statistics."""
    if pooled:
        rows *= len(mean)
        mean, var = mean.mean(0, True), var.mean(0, True) + mean.var(0, False, keepdim=True)
    for step_mean, step_var in zip(mean, var * (rows / max(1, rows - 1)), strict=True):
        averages.mean.lerp_(step_mean, averages.momentum)
        averages.var.lerp_(step_var, averages.momentum)


@torch.no_grad()
def scale(averages: ReturnScale, returns: Tensor) -> Tensor:
    """`ReturnScale.update`, whatever the returns."""
    levels = torch.linspace(0.05, 0.95, 2, dtype=returns.dtype, device=returns.device)
    low, high = torch.quantile(returns.detach().flatten(), levels)
    averages.low.lerp_(low, 1.0 - averages.decay)
    averages.high.lerp_(high, 1.0 - averages.decay)
    return averages.scale


@contextlib.contextmanager
def without_guards() -> Iterator[None]:
    """Takes them out of an update."""
    with (
        mock.patch.object(ClippedAdam, "apply", apply),
        mock.patch.object(RunningStatistics, "update", average),
        mock.patch.object(ReturnScale, "update", scale),
    ):
        yield


def make_agent() -> Agent:
    """Of the same weights and draws each time."""
    torch.manual_seed(0)
    spec = {"image": ArraySpec((3, 64, 64), np.dtype(np.uint8))}
    return Agent(CONFIG, spec, ActionSpec(ACTIONS, continuous=True), DEVICE)


def go_back(reason: str) -> None:
    """Nothing here is infinite."""
    raise AssertionError(reason)


def bench_guards(benchmark: BenchmarkFixture) -> None:
    """Updates a second with all guards and without any."""
    data, guard = batch(CONFIG), FiniteGuard(go_back)

    def guarded(agent: Agent, updates: int = UPDATES) -> None:
        for _ in range(updates):
            guard.check(agent.update(data))
        synchronize()

    def bare(agent: Agent, updates: int = UPDATES) -> None:
        for _ in range(updates):
            agent.update(data)
        synchronize()

    with_guards = make_agent()
    guarded(with_guards, WARM_UPS)
    with without_guards():
        plain = make_agent()
        bare(plain, WARM_UPS)  # a CUDA graph keeps what it was recorded with
    torch.testing.assert_close(  # they do the same work
        with_guards.world_model.state_dict(), plain.world_model.state_dict(), rtol=0, atol=0
    )

    def plainly() -> None:
        with without_guards():
            bare(plain)

    contenders: dict[str, Callable[[], object]] = {
        "without guards": plainly,
        "with guards": partial(guarded, with_guards),
    }
    take_turns(benchmark, contenders, "without guards", ROUNDS, ("updates/s", UPDATES))
    benchmark.extra_info |= surroundings() | {"threads": torch.get_num_threads()}
