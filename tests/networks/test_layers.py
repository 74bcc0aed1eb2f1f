from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mudreamer_fast.networks.layers import RunningStatistics, init_weight
from tests.tolerances import HAND, INIT_STD, assert_close


@pytest.mark.parametrize(
    ("shape", "fans"),
    [((300, 400), 300 + 400), ((96, 64, 4, 4), (96 + 64) * 16)],
    ids=["linear", "convolution"],
)
def test_init_weight_draws_a_truncated_normal_of_the_stated_std(
    shape: tuple[int, ...], fans: int
) -> None:
    weight = init_weight(torch.empty(shape), "normal")
    # The cut normal's own std is sqrt(2 / fans): dividing by 0.8796 makes up for the cut.
    std = math.sqrt(2 / fans)
    assert weight.std().item() == pytest.approx(std, rel=INIT_STD.relative)
    limit = 2 * std / 0.87962566103423978
    assert weight.abs().max().item() <= limit * (1 + 1e-6)
    assert weight.abs().max().item() > 0.99 * limit
    assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel())


def test_init_weight_draws_xavier_uniform_or_zeros() -> None:
    weight = init_weight(torch.empty(300, 400), "xavier")
    limit = math.sqrt(6 / 700)
    assert weight.abs().max().item() <= limit
    assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=INIT_STD.relative)
    assert (init_weight(torch.empty(3, 5), "zero") == 0).all()


def test_running_statistics_pool_the_steps_of_a_batch() -> None:
    rows = torch.randn(7, 4, 3, dtype=torch.float64)  # T steps of 4 rows
    running = RunningStatistics(3, momentum=0.1).double()
    running.update(rows.mean(1), rows.var(1, correction=0), rows=4, pooled=True)
    theirs = nn.BatchNorm1d(3, momentum=0.1).double()
    theirs(rows.view(28, 3))
    assert_close(running.mean, theirs.running_mean, HAND)
    assert_close(running.var, theirs.running_var, HAND)


def test_running_statistics_of_each_step_are_those_of_torch() -> None:
    rows = torch.randn(7, 16, 3, dtype=torch.float64)
    running = RunningStatistics(3, momentum=0.1).double()
    running.update(rows.mean(1), rows.var(1, correction=0), rows=16, pooled=False)
    theirs = nn.BatchNorm1d(3, momentum=0.1).double()
    for step in rows:
        theirs(step)
    assert_close(running.mean, theirs.running_mean, HAND)
    assert_close(running.var, theirs.running_var, HAND)


def test_running_statistics_move_once_per_step_when_asked() -> None:
    mean = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    var = torch.tensor([[5.0], [9.0]], dtype=torch.float64)
    running = RunningStatistics(1, momentum=0.5).double()
    running.update(mean, var, rows=3, pooled=False)
    # 0 -> 0.5 -> 1.75, and of 3 / 2 times the variances 1 -> 4.25 -> 8.875.
    assert running.mean.item() == 1.75
    assert running.var.item() == 8.875


@pytest.mark.parametrize("pooled", [False, True])
def test_running_statistics_of_a_single_row_are_finite(pooled: bool) -> None:
    running = RunningStatistics(1, momentum=0.5)
    running.update(torch.tensor([[2.0]]), torch.tensor([[0.0]]), rows=1, pooled=pooled)
    assert running.mean.item() == 1.0
    assert running.var.item() == 0.5


def test_running_statistics_pass_over_what_is_not_finite() -> None:
    running = RunningStatistics(2, momentum=0.5)
    mean, var = torch.tensor([[1.0, torch.nan]]), torch.tensor([[torch.inf, torch.nan]])
    running.update(mean, var, rows=10**9, pooled=True)
    assert_close(running.mean, torch.tensor([0.5, 0.0]), HAND)
    assert_close(running.var, torch.tensor([1.0, 1.0]), HAND)


def test_running_statistics_of_a_forward_pass_outlive_the_next_move() -> None:
    # The backward pass of a norm that used the averages comes after they have moved.
    running = RunningStatistics(3, momentum=0.5)
    state = running.state(use_batch=False)
    running.update(torch.ones(1, 3), torch.full((1, 3), 2.0), rows=4, pooled=True)
    assert (state.running_mean == 0).all()
    assert (state.running_var == 1).all()
