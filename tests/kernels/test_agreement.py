"""What holds the kernels to their references can fail, however small the numbers are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.agreement import assert_agrees, disagreement

DTYPES = [torch.float32, torch.bfloat16]
SCALES = [1e-6, 1e-3, 1.0, 1e3]


def product(scale: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda given: {"y": scale * given["x"] * given["w"]}


def inputs() -> dict[str, Tensor]:
    return {name: torch.randn(5, 7, dtype=torch.float64) for name in "xw"}


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return torch.zeros_like(grads[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_an_operation_agrees_with_itself(scale: float, dtype: torch.dtype) -> None:
    assert_agrees(product(scale), product(scale), inputs(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_zeros_agree_with_nothing(scale: float, dtype: torch.dtype) -> None:
    with pytest.raises(AssertionError, match=r"y: relative error 1\.00e"):
        assert_agrees(product(0.0), product(scale), inputs(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_gradients_of_zeros_agree_with_none(scale: float, dtype: torch.dtype) -> None:
    def flat(given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": scale * NoGradient.apply(given["x"]) * given["w"]}

    with pytest.raises(AssertionError, match=r"^grad x: relative error 1\.00e"):
        assert_agrees(flat, product(scale), inputs(), dtype)


@pytest.mark.parametrize("scale", SCALES)
def test_a_single_element_that_is_off_is_found(scale: float) -> None:
    truth = scale * torch.randn(1000, dtype=torch.float64)
    actual = truth.clone()
    actual[3] = 0.0
    assert disagreement(actual, truth, theirs=0.0, limit=1.0, floor=2e-2) is not None
    assert disagreement(truth, truth, theirs=0.0, limit=0.0, floor=0.0) is None
