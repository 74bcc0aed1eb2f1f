"""One step of the cell at size S: `pytest bench/bench_layernorm_gru.py --benchmark-only -s`."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.providers import compare, draw
from bench.surroundings import sized
from mudreamer_fast.ops.signatures import NormLinear


@pytest.mark.parametrize("rows", sized([16, 1024], [16, 1024], [16]))
def bench_layernorm_gru(benchmark: BenchmarkFixture, rows: int) -> None:
    weights = NormLinear(draw(1536, 1024, grad=True), draw(1536), draw(1536))
    u, h = draw(rows, 512, grad=True), draw(rows, 512, grad=True)
    compare(benchmark, lambda ops: ops.layernorm_gru(u, h, weights, 1e-3), [u, h, weights.weight])
