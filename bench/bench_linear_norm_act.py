"""Hidden layers at size S: `pytest bench/bench_linear_norm_act.py --benchmark-only -s`."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.providers import compare, draw
from bench.surroundings import sized
from mudreamer_fast.ops.signatures import Linear, MlpWeights, NormLinear


def layer(inputs: int, outputs: int) -> NormLinear:
    return NormLinear(draw(outputs, inputs, grad=True), draw(outputs), draw(outputs))


@pytest.mark.parametrize("rows", sized([16, 1024, 16384], [16, 1024], [16]))
def bench_linear_norm_act(benchmark: BenchmarkFixture, rows: int) -> None:
    weights, x = layer(1536, 512), draw(rows, 1536, grad=True)
    compare(benchmark, lambda ops: ops.linear_norm_act(x, weights, 1e-3), [x, weights.weight])


@pytest.mark.parametrize("rows", sized([1024, 16384], [1024], [16]))
def bench_mlp(benchmark: BenchmarkFixture, rows: int) -> None:
    out = Linear(draw(255, 512, grad=True), draw(255, grad=True))
    weights = MlpWeights((layer(1536, 512), layer(512, 512)), out)
    x = draw(rows, 1536, grad=True)
    compare(benchmark, lambda ops: ops.mlp(x, weights, 1e-3), [x, out.weight])
