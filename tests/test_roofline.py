"""What benchmarks take an operation to need at least, against what is known of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.roofline import Limits, Work, count

FLOAT = 4


def linear() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)


def test_count_finds_a_product_and_what_it_reads_and_writes() -> None:
    x, weight = linear()
    assert count(lambda: x @ weight.t()) == Work(2 * 6 * 5 * 3, FLOAT * (30 + 15 + 18))


def test_count_leaves_out_what_is_made_on_the_way() -> None:
    x, weight = linear()
    work = count(lambda: (x @ weight.t()).tanh().exp().sum(0))
    assert work == Work(2 * 6 * 5 * 3, FLOAT * (30 + 15 + 3))


def test_count_follows_the_way_back() -> None:
    x, weight = linear()
    seed = torch.ones(6, 3)

    def both() -> tuple[Tensor, ...]:
        out = x @ weight.t()
        return out, *torch.autograd.grad(out, [x, weight], seed)

    assert count(both) == Work(3 * 2 * 6 * 5 * 3, FLOAT * (30 + 15 + 18 + 18 + 30 + 15))


def test_least_time_is_that_of_the_scarcer() -> None:
    limits = Limits(flops_per_second=1e12, bytes_per_second=1e9)
    assert Work(10**9, 10).microseconds(limits) == pytest.approx(1e3)
    assert Work(10, 10**6).microseconds(limits) == pytest.approx(1e3)
