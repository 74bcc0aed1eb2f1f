from __future__ import annotations

import math

import pytest
import torch

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
    running.update(rows.mean(1), rows.var(1, correction=0), pooled=True)
    pooled = rows.view(28, 3)
    assert_close(running.mean, 0.1 * pooled.mean(0), HAND)
    assert_close(running.var, 0.9 + 0.1 * pooled.var(0, correction=0), HAND)


def test_running_statistics_move_once_per_step_when_asked() -> None:
    mean = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    var = torch.tensor([[5.0], [9.0]], dtype=torch.float64)
    running = RunningStatistics(1, momentum=0.5).double()
    running.update(mean, var, pooled=False)
    # 0 -> 0.5 -> 1.75, and 1 -> 3 -> 6.
    assert running.mean.item() == 1.75
    assert running.var.item() == 6.0


def test_running_statistics_of_a_forward_pass_outlive_the_next_move() -> None:
    # The backward pass of a norm that used the averages comes after they have moved.
    running = RunningStatistics(3, momentum=0.5)
    state = running.state(use_batch=False)
    running.update(torch.ones(1, 3), torch.full((1, 3), 2.0), pooled=True)
    assert (state.running_mean == 0).all()
    assert (state.running_var == 1).all()
