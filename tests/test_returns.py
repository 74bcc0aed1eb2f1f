from __future__ import annotations

import torch

from mudreamer_fast.returns import ReturnScale
from tests.tolerances import HAND, assert_close

F64 = torch.float64


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def test_return_scale_averages_the_percentiles_by_hand() -> None:
    scale = ReturnScale(decay=0.99).double()
    # The percentiles of 0, 10, ..., 1000 are 50 and 950.
    returns = 10 * torch.arange(101, dtype=F64)
    shuffled = returns[torch.randperm(101)]
    assert_close(scale.update(shuffled), scalar(0.01 * 900), HAND)
    assert_close(scale.low, scalar(0.5), HAND)
    assert_close(scale.high, scalar(9.5), HAND)
    scale.update(-shuffled[None])
    assert_close(scale.low, scalar(0.99 * 0.5 - 0.01 * 950), HAND)
    assert_close(scale.high, scalar(0.99 * 9.5 - 0.01 * 50), HAND)
    assert_close(scale.scale, scale.high - scale.low, HAND)


def test_return_scale_never_scales_small_returns_up() -> None:
    scale = ReturnScale(decay=0.0)
    assert scale.update(torch.linspace(-0.1, 0.1, 33)).item() == 1.0
    assert scale.update(torch.full((1, 1), 7.0)).item() == 1.0
    assert scale.update(torch.linspace(0, 100, 101)).item() == 90.0


def test_return_scale_carries_no_gradient_and_is_saved() -> None:
    scale = ReturnScale(decay=0.5)
    assert not scale.update(torch.randn(3, 5, requires_grad=True)).requires_grad
    assert list(scale.state_dict()) == ["low", "high"]
    assert list(scale.parameters()) == []
