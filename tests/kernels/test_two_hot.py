from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mudreamer_fast import kernels, reference
from tests.kernels.agreement import DEVICE, assert_agrees

SHAPES = [((7,), 21), ((2, 3), 255), ((1,), 3), ((0,), 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "bins"), SHAPES)
def test_two_hot_loss_agrees(rows: tuple[int, ...], bins: int, dtype: torch.dtype) -> None:
    target = (3 * torch.randn(*rows, dtype=torch.float64)).sinh().float()

    def by_reference(given: dict[str, Tensor]) -> dict[str, Tensor]:
        # As precise as the reference is in an agent: of 255 bins float32 sees 1e-5 of one.
        logits = given["logits"]
        exact = torch.promote_types(logits.dtype, torch.float32)
        loss = reference.two_hot_loss(logits, target.to(logits.device, exact))
        return {"loss": loss.to(logits.dtype)}

    assert_agrees(
        lambda given: {"loss": kernels.two_hot_loss(given["logits"], target.to(DEVICE))},
        by_reference,
        {"logits": 2 * torch.randn(*rows, bins, dtype=torch.float64)},
        dtype,
    )


def test_two_hot_loss_agrees_at_the_bins_and_beyond_them() -> None:
    edge = float(torch.expm1(torch.tensor(20.0, dtype=torch.float64)))
    target = torch.tensor([0.0, edge, -edge, 4 * edge, -4 * edge, 1e-6, -1e-6])
    assert_agrees(
        lambda given: {"loss": kernels.two_hot_loss(given["logits"], target.to(DEVICE))},
        lambda given: {"loss": reference.two_hot_loss(given["logits"], target.to(given["logits"]))},
        {"logits": torch.randn(7, 41, dtype=torch.float64)},
    )


@pytest.mark.parametrize(("rows", "bins"), SHAPES)
def test_two_hot_mean_agrees(rows: tuple[int, ...], bins: int) -> None:
    # A sharp distribution: the mean of a flat one cancels to rounding.
    logits = -0.5 * (torch.arange(bins) - 0.6 * bins - 2 * torch.randn(*rows, 1)).double() ** 2
    assert_agrees(
        lambda given: {"mean": kernels.two_hot_mean(given["logits"])},
        lambda given: {"mean": reference.two_hot_mean(given["logits"])},
        {"logits": logits},
    )


def test_two_hot_mean_of_a_flat_distribution_is_zero() -> None:
    mean = kernels.two_hot_mean(torch.zeros(3, 255, device=DEVICE))
    assert mean.abs().max() < 2e-6


def test_two_hot_operations_refuse_what_they_would_misread() -> None:
    logits = torch.randn(4, 21, device=DEVICE)
    with pytest.raises(ValueError, match=r"target must end in shape \(4\), got \(3,\)"):
        kernels.two_hot_loss(logits, torch.zeros(3, device=DEVICE))
    with pytest.raises(ValueError, match="logits must be contiguous"):
        kernels.two_hot_mean(logits.T)
