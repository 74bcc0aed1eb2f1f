"""Filtering at size S, 16 sequences: `pytest bench/bench_rssm_observe.py -s`.

64 steps on a GPU, 16 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.providers import PROVIDERS, backward, compare, draw
from bench.surroundings import DEVICE, GPU, sized
from mudreamer_fast.ops.signatures import BatchNormState, Linear, NormLinear, RssmWeights

EMBED, DETER, HIDDEN, GROUPS, CLASSES, ACTIONS = 4096, 512, 512, 32, 32, 6
ROWS, STEPS = sized((16, 64), (16, 16), (2, 2))
LATENTS = GROUPS * CLASSES


def layer(inputs: int, outputs: int) -> NormLinear:
    scaled = (draw(outputs, inputs) / inputs**0.5).requires_grad_()
    return NormLinear(scaled, draw(outputs, grad=True), draw(outputs, grad=True))


def linear(inputs: int, outputs: int) -> Linear:
    return Linear((draw(outputs, inputs) / inputs**0.5).requires_grad_(), draw(outputs, grad=True))


def model() -> RssmWeights:
    return RssmWeights(
        draw(DETER, grad=True),
        layer(LATENTS + ACTIONS, HIDDEN),
        layer(HIDDEN + DETER, 3 * DETER),
        layer(DETER, HIDDEN),
        linear(HIDDEN, LATENTS),
        layer(EMBED + DETER, HIDDEN),
        linear(HIDDEN, LATENTS),
    )


def bench_rssm_initial(benchmark: BenchmarkFixture) -> None:
    weights = model()
    compare(benchmark, lambda ops: ops.rssm_initial(weights, GROUPS, 1e-3)[:1], [weights.initial])


def bench_rssm_observe(benchmark: BenchmarkFixture) -> None:
    weights = model()
    norm = BatchNormState(draw(HIDDEN), torch.ones(HIDDEN, device=DEVICE), True)
    state = draw(ROWS, DETER).tanh(), torch.zeros(ROWS, GROUPS, CLASSES, device=DEVICE)
    first = torch.rand(ROWS, STEPS, device=DEVICE) < 0.01
    embed, action = draw(ROWS, STEPS, EMBED, grad=True), draw(ROWS, STEPS, ACTIONS)
    uniforms = torch.rand(ROWS, STEPS, GROUPS, device=DEVICE)
    leaves = [embed, *(t for part in weights[1:] for t in part)]
    compare(
        benchmark,
        lambda ops: ops.rssm_observe(
            embed, action, first, uniforms, state, weights, norm, 0.01, 1e-3
        )[:5],
        leaves,
        (*PROVIDERS, "persistent"),
        plain_gru(),
    )


def plain_gru() -> dict[str, Callable[[], object]]:
    """PyTorch's GRU over as many steps and units: no norms, no latents, no resets, no prior."""
    name = "cuDNN GRU" if GPU else "PyTorch GRU"
    gru = torch.nn.GRU(HIDDEN, DETER, batch_first=True, device=DEVICE)
    x = draw(ROWS, STEPS, HIDDEN, grad=True)
    leaves = [x, *gru.parameters()]
    return {
        f"{name} forward": lambda: gru(x)[0],
        f"{name} forward and backward": lambda: backward(gru(x)[0], leaves),
    }
