from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mudreamer_fast.ops.signatures import BatchNormState, NormLinear
from mudreamer_fast.reference import batchnorm_posterior
from tests.tolerances import HAND, assert_close

F64 = torch.float64
NO_WEIGHT = torch.empty(0)

# Both columns have variance 1 (biased); with eps 3 the norm halves the distance to the mean.
ROWS = torch.tensor([[1.0, -4.0], [3.0, -6.0]], dtype=F64)
LAYER = NormLinear(
    NO_WEIGHT, torch.tensor([2.0, 4.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
)


def state(use_batch: bool, columns: int = 2) -> BatchNormState:
    """Running mean (1, -5, ...) and variance (1, 6, ...), apart from those of the rows."""
    mean = torch.tensor([1.0, -5.0, 0.5, 2.0, -0.3], dtype=F64)[:columns]
    var = torch.tensor([1.0, 6.0, 2.0, 0.7, 1.1], dtype=F64)[:columns]
    return BatchNormState(mean, var, use_batch)


def silu(values: list[list[float]]) -> Tensor:
    x = torch.tensor(values, dtype=F64)
    return x / (1 + torch.exp(-x))


def test_batchnorm_posterior_normalises_with_the_rows_by_hand() -> None:
    out, mean, var = batchnorm_posterior(ROWS, LAYER, state(True), eps=3.0)
    # (-1/2, 1/2) and (1/2, -1/2), times (2, 4), plus (0, 1).
    assert_close(out, silu([[-1.0, 3.0], [1.0, -1.0]]), HAND)
    assert_close(mean, torch.tensor([2.0, -5.0], dtype=F64), HAND)
    assert_close(var, torch.ones(2, dtype=F64), HAND)


def test_batchnorm_posterior_normalises_with_the_running_statistics_by_hand() -> None:
    out, mean, var = batchnorm_posterior(ROWS, LAYER, state(False), eps=3.0)
    # Less (1, -5), over (sqrt 4, sqrt 9): (0, 1/3) and (1, -1/3).
    assert_close(out, silu([[0.0, 7 / 3], [2.0, -1 / 3]]), HAND)
    # The statistics given back are those of the rows all the same.
    assert_close(mean, torch.tensor([2.0, -5.0], dtype=F64), HAND)
    assert_close(var, torch.ones(2, dtype=F64), HAND)


def test_batchnorm_posterior_of_one_row_is_its_shift_with_no_gradient_to_it() -> None:
    x = torch.tensor([[0.3, -7.0]], dtype=F64, requires_grad=True)
    out, mean, var = batchnorm_posterior(x, LAYER, state(True), eps=1e-3)
    assert_close(out, silu([[0.0, 1.0]]), HAND)
    assert_close(mean, x.detach()[0], HAND)
    assert (var == 0).all()
    # A row that is its own mean stays at zero wherever it moves.
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert (gradient == 0).all()


def test_batchnorm_posterior_mixes_rows_only_with_their_own_statistics() -> None:
    x = torch.randn(5, 2, dtype=F64)
    moved = x.clone()
    moved[0] += 1.0
    for use_batch in (True, False):
        before = batchnorm_posterior(x, LAYER, state(use_batch), 1e-3)[0]
        after = batchnorm_posterior(moved, LAYER, state(use_batch), 1e-3)[0]
        assert torch.equal(before[1:], after[1:]) is not use_batch


def test_batchnorm_posterior_statistics_carry_no_gradient() -> None:
    x = torch.randn(5, 2, dtype=F64, requires_grad=True)
    _, mean, var = batchnorm_posterior(x, LAYER, state(True), 1e-3)
    assert not mean.requires_grad
    assert not var.requires_grad


@pytest.mark.parametrize("use_batch", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_batchnorm_posterior_gradients_match_finite_differences(use_batch: bool, rows: int) -> None:
    x = torch.randn(rows, 3, dtype=F64, requires_grad=True)
    weight = torch.randn(3, dtype=F64, requires_grad=True)
    bias = torch.randn(3, dtype=F64, requires_grad=True)
    running = state(use_batch, columns=3)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batchnorm_posterior(x, NormLinear(NO_WEIGHT, weight, bias), running, 1e-3)[0]

    assert torch.autograd.gradcheck(run, (x, weight, bias))
