"""Scalar heads' distributions: `pytest bench/bench_two_hot.py --benchmark-only -s`."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.providers import compare, draw
from bench.surroundings import sized

pytestmark = pytest.mark.parametrize("rows", sized([1024, 16384], [1024, 16384], [16]))


def bench_two_hot_loss(benchmark: BenchmarkFixture, rows: int) -> None:
    logits, target = draw(rows, 255, grad=True), draw(rows)
    compare(benchmark, lambda ops: ops.two_hot_loss(logits, target), [logits])


def bench_two_hot_mean(benchmark: BenchmarkFixture, rows: int) -> None:
    logits = draw(rows, 255, grad=True)
    compare(benchmark, lambda ops: ops.two_hot_mean(logits), [logits])
