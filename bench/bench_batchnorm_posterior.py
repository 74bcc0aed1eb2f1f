"""The posterior's norm: `pytest bench/bench_batchnorm_posterior.py --benchmark-only -s`."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.providers import compare, draw
from bench.surroundings import DEVICE
from mudreamer_fast.ops.signatures import BatchNormState, NormLinear


@pytest.mark.parametrize("rows", [16, 64])
def bench_batchnorm_posterior(benchmark: BenchmarkFixture, rows: int) -> None:
    x = draw(rows, 512, grad=True)
    layer = NormLinear(x, draw(512, grad=True), draw(512, grad=True))
    state = BatchNormState(draw(512), torch.ones(512, device=DEVICE), True)
    leaves = [x, layer.norm_weight]
    compare(benchmark, lambda ops: ops.batchnorm_posterior(x, layer, state, 1e-3)[:1], leaves)
