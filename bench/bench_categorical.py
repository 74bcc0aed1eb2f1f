"""Latents at size S: `pytest bench/bench_categorical.py --benchmark-only -s`."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.providers import compare, draw
from bench.surroundings import DEVICE, sized

pytestmark = pytest.mark.parametrize("rows", sized([16, 1024], [16, 1024], [16]))


def bench_categorical_sample(benchmark: BenchmarkFixture, rows: int) -> None:
    logits = draw(rows, 32, 32, grad=True)
    uniforms = torch.rand(rows, 32, device=DEVICE)
    compare(benchmark, lambda ops: ops.categorical_sample(logits, uniforms, 0.01), [logits])


def bench_categorical_kl(benchmark: BenchmarkFixture, rows: int) -> None:
    posterior, prior = draw(rows, 32, 32, grad=True), draw(rows, 32, 32, grad=True)
    compare(benchmark, lambda ops: ops.categorical_kl(posterior, prior, 0.01), [posterior, prior])


def bench_categorical_entropy(benchmark: BenchmarkFixture, rows: int) -> None:
    logits = draw(rows, 32, 32, grad=True)
    compare(benchmark, lambda ops: ops.categorical_entropy(logits, 0.01), [logits])
