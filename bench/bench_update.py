"""One update of size S on the CPU, whole and by part: batch 16x64, horizon 15, float32.

Run under the allocator of a training run:
`python -m mudreamer_fast.machine.allocator -m pytest bench/bench_update.py --benchmark-only -s`.
`MUDREAMER_BENCH_THREADS` sets the threads (2). Parts are timed one after the other within each
round, so that they and the whole see the same machine; a part's gradients are those that the update
takes, no more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.profile_update import SHORT as SHORT_CONFIG
from bench.surroundings import SHORT, sized
from mudreamer_fast.agent import Agent
from mudreamer_fast.config import Config, TrainConfig
from mudreamer_fast.envs import ActionSpec, ArraySpec
from mudreamer_fast.imagination import imagine
from mudreamer_fast.ops.signatures import State

pytestmark = pytest.mark.usefixtures("cpu_threads")
ROUNDS = sized(3, 3, 1)
ACTIONS = 6
CONFIG = replace(SHORT_CONFIG if SHORT else Config(), train=TrainConfig(backend="reference"))


@pytest.fixture(scope="module")
def agent() -> Agent:
    spec = {"image": ArraySpec((3, 64, 64), np.dtype(np.uint8))}
    return Agent(CONFIG, spec, ActionSpec(ACTIONS, continuous=True), torch.device("cpu"))


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    rows, steps = CONFIG.replay.batch_size, CONFIG.replay.batch_length
    rng = np.random.default_rng(0)
    is_first = rng.random((rows, steps)) < 0.002
    is_first[:, 0] = True
    return {
        "image": rng.integers(0, 256, (rows, steps, 3, 64, 64), dtype=np.uint8),
        "action": rng.uniform(-1, 1, (rows, steps, ACTIONS)).astype(np.float32),
        "reward": rng.random((rows, steps), dtype=np.float32),
        "is_first": is_first,
        "is_terminal": np.zeros((rows, steps), np.bool_),
    }


class PartTimer:
    """Times the parts of an update in the order in which it runs them."""

    def __init__(self, agent: Agent, batch: dict[str, np.ndarray]) -> None:
        self.agent = agent
        self.data = {name: torch.from_numpy(array) for name, array in batch.items()}
        self.seconds: dict[str, list[float]] = {}

    def timed(self, name: str, part: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = part()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def round(self) -> None:
        world_model, data = self.agent.world_model.train(), self.data
        config = CONFIG.model
        grad = partial(torch.autograd.grad, allow_unused=True)
        embed = self.timed("encoder forward", lambda: world_model.encoder(data))
        kernels = list(world_model.encoder.parameters())
        seed = torch.randn_like(embed)
        self.timed("encoder backward", lambda: grad(embed, kernels, seed))
        embed = embed.detach().requires_grad_()
        uniforms = torch.rand(*data["is_first"].shape, config.groups)
        seen = self.timed(
            "observe forward",
            lambda: world_model.rssm.observe(embed, data["action"], data["is_first"], uniforms),
        )
        out = [seen.deter, seen.stoch, seen.posterior, seen.prior]
        seeds = [torch.randn_like(tensor) for tensor in out]
        inputs = [embed, *world_model.rssm.parameters()]
        self.timed("observe backward", lambda: grad(out, inputs, seeds))
        self.behaviour(seen.state.rows())

    def behaviour(self, start: State) -> None:
        agent, config = self.agent, CONFIG.behaviour
        uniforms = torch.rand(len(start.deter), config.horizon, CONFIG.model.groups)
        noise = torch.randn(len(start.deter), config.horizon, ACTIONS)
        trajectory = self.timed(
            "imagine forward, with reward and continue",
            lambda: imagine(
                agent.world_model,
                agent.behaviour.actor,
                start,
                self.data["is_terminal"].flatten(),
                uniforms,
                noise,
                config,
                agent.behaviour.through_dynamics,
            ),
        )
        loss = self.timed("critic forward and losses", lambda: agent.behaviour.loss(trajectory))
        actor, critic = agent.optimisers["actor"], agent.optimisers["critic"]
        self.timed(
            "actor gradient, through the dynamics",
            lambda: actor.gradients(loss.actor, retain_graph=True),
        )
        self.timed("critic gradient", lambda: critic.gradients(loss.critic))


def bench_update(benchmark: BenchmarkFixture, agent: Agent, batch: dict[str, np.ndarray]) -> None:
    """The whole update, with each part's median in the extra information."""
    timer = PartTimer(agent, batch)

    def one_round() -> None:
        timer.timed("whole update", lambda: agent.update(batch))
        timer.round()

    one_round()
    timer.seconds.clear()
    benchmark.pedantic(one_round, rounds=ROUNDS)
    benchmark.extra_info |= {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": {
            name: {"median": statistics.median(v), "min": min(v), "max": max(v)}
            for name, v in timer.seconds.items()
        },
    }
    width = max(map(len, timer.seconds))
    print(f"\nsize S, batch 16x64, horizon 15, float32, {torch.get_num_threads()} threads: seconds")
    for name, values in timer.seconds.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"  {name:{width}}  {middle:6.2f}  ({low:.2f} to {high:.2f})")
