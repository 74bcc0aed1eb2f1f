from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mudreamer_fast import kernels, reference
from tests.kernels.agreement import DEVICE, assert_agrees

SHAPES = [(5, 7), (1, 1), (130, 16), (3, 2), (0, 4)]


def inputs(rows: int, steps: int) -> dict[str, Tensor]:
    return {
        "reward": torch.randn(rows, steps, dtype=torch.float64),
        "cont": torch.rand(rows, steps, dtype=torch.float64),
        "value": 5 * torch.randn(rows, steps, dtype=torch.float64),
    }


@pytest.mark.parametrize("lam", [0.95, 0.0, 1.0])
@pytest.mark.parametrize(("rows", "steps"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lambda_return_agrees(rows: int, steps: int, lam: float, dtype: torch.dtype) -> None:
    def returns(op, given):  # type: ignore[no-untyped-def]
        out = op(given["reward"], given["cont"], given["value"], 0.9, lam)
        # With one step there is no gradient to reward and continue; both twins say zero.
        return {"return": out + 0 * (given["reward"] + given["cont"])}

    assert_agrees(
        lambda given: returns(kernels.lambda_return, given),
        lambda given: returns(reference.lambda_return, given),
        inputs(rows, steps),
        dtype,
    )


@pytest.mark.parametrize(("rows", "steps"), [(5, 7), (3, 2)])
def test_lambda_return_agrees_where_episodes_begin(rows: int, steps: int) -> None:
    first = torch.rand(rows, steps) < 0.4
    first[:, 0] = True
    first[0, -1] = True

    def returns(op, given):  # type: ignore[no-untyped-def]
        is_first = first.to(given["value"].device)
        return {"return": op(given["reward"], given["cont"], given["value"], 0.9, 0.8, is_first)}

    assert_agrees(
        lambda given: returns(kernels.lambda_return, given),
        lambda given: returns(reference.lambda_return, given),
        inputs(rows, steps),
    )


def test_lambda_return_refuses_what_it_would_misread() -> None:
    given = {name: tensor.float().to(DEVICE) for name, tensor in inputs(4, 5).items()}
    value = given["value"]
    with pytest.raises(ValueError, match=r"reward must end in shape \(4, 5\), got \(4, 4\)"):
        kernels.lambda_return(given["reward"][:, :4].contiguous(), value, value, 0.9, 0.9)
    with pytest.raises(ValueError, match=r"is_first must be bool of shape \(4, 5\)"):
        kernels.lambda_return(value, value, value, 0.9, 0.9, value)
    with pytest.raises(ValueError, match="value must be contiguous"):
        kernels.lambda_return(value, value, torch.randn(5, 4, device=DEVICE).T, 0.9, 0.9)
    elsewhere = value.to("meta")
    with pytest.raises(ValueError, match="value must be on a CUDA device, got meta"):
        kernels.lambda_return(value, value, elsewhere, 0.9, 0.9)
    with pytest.raises(ValueError, match=f"reward must be on {value.device}, got meta"):
        kernels.lambda_return(elsewhere, value, value, 0.9, 0.9)
