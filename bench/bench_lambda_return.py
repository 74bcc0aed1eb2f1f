"""Lambda-returns: `pytest bench/bench_lambda_return.py --benchmark-only -s`."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.providers import compare, draw
from bench.surroundings import DEVICE


@pytest.mark.parametrize(("rows", "steps"), [(16, 64), (1024, 16)])
def bench_lambda_return(benchmark: BenchmarkFixture, rows: int, steps: int) -> None:
    reward, value = draw(rows, steps, grad=True), draw(rows, steps, grad=True)
    cont = torch.rand(rows, steps, device=DEVICE, requires_grad=True)
    leaves = [reward, cont, value]
    compare(benchmark, lambda ops: ops.lambda_return(reward, cont, value, 0.997, 0.95), leaves)
