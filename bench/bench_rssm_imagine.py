"""The rollout at size S, 15 steps, 6 actions, through the dynamics or without.

1024 starts on a GPU, 64 elsewhere.

`pytest bench/bench_rssm_imagine.py --benchmark-only -s`
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.providers import compare, draw
from bench.surroundings import DEVICE, GPU, sized
from mudreamer_fast.ops.signatures import Linear, MlpWeights, NormLinear, RssmWeights

DETER, HIDDEN, GROUPS, CLASSES, ACTIONS = 512, 512, 32, 32, 6
ROWS, HORIZON = sized((1024, 15), (64, 15), (4, 2))
LATENTS = GROUPS * CLASSES


def layer(inputs: int, outputs: int) -> NormLinear:
    scaled = (draw(outputs, inputs) / inputs**0.5).requires_grad_()
    return NormLinear(scaled, draw(outputs, grad=True), draw(outputs, grad=True))


def linear(inputs: int, outputs: int) -> Linear:
    return Linear((draw(outputs, inputs) / inputs**0.5).requires_grad_(), draw(outputs, grad=True))


@pytest.mark.parametrize("precision", ["highest", "high"] if GPU else ["highest"])
@pytest.mark.parametrize("dynamics", [True, False])
def bench_rssm_imagine(benchmark: BenchmarkFixture, dynamics: bool, precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    weights = RssmWeights(
        draw(DETER),
        layer(LATENTS + ACTIONS, HIDDEN),
        layer(HIDDEN + DETER, 3 * DETER),
        layer(DETER, HIDDEN),
        linear(HIDDEN, LATENTS),
        layer(1, HIDDEN),
        linear(HIDDEN, LATENTS),
    )
    hidden = (layer(DETER + LATENTS, HIDDEN), layer(HIDDEN, HIDDEN))
    actor = MlpWeights(hidden, linear(HIDDEN, 2 * ACTIONS))
    index = torch.randint(CLASSES, (ROWS, GROUPS), device=DEVICE)
    stoch = torch.nn.functional.one_hot(index, CLASSES).float()
    deter, noise = draw(ROWS, DETER).tanh(), draw(ROWS, HORIZON, ACTIONS)
    uniforms = torch.rand(ROWS, HORIZON, GROUPS, device=DEVICE)
    leaves = [tensor for part in (*actor.hidden, actor.out) for tensor in part]
    compare(
        benchmark,
        lambda ops: ops.rssm_imagine(
            deter, stoch, weights, actor, uniforms, noise, True, dynamics, 0.01, 1e-3
        ),
        leaves,
    )
    torch.set_float32_matmul_precision("highest")
