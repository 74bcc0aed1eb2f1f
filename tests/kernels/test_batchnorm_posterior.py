from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mudreamer_fast import kernels, reference
from mudreamer_fast.ops.signatures import BatchNormState, NormLinear
from tests.kernels.agreement import DEVICE, assert_agrees

EPS = 1e-3


def inputs(rows: int, width: int) -> dict[str, Tensor]:
    return {
        "x": 2 + 3 * torch.randn(rows, width, dtype=torch.float64),
        "weight": 1 + 0.3 * torch.randn(width, dtype=torch.float64),
        "bias": 0.3 * torch.randn(width, dtype=torch.float64),
    }


def call(op: Any, given: dict[str, Tensor], use_batch: bool) -> dict[str, Tensor]:
    x = given["x"]
    draw = torch.Generator().manual_seed(3)
    mean, var = (torch.rand(x.shape[1], generator=draw).to(x) for _ in range(2))
    state = BatchNormState(mean, 0.5 + var, use_batch)
    layer = NormLinear(x.detach(), given["weight"], given["bias"])
    return dict(zip(("out", "mean", "var"), op(x, layer, state, EPS), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("use_batch", [True, False])
@pytest.mark.parametrize(("rows", "width"), [(7, 33), (1, 1), (130, 17), (16, 16)])
def test_batchnorm_posterior_agrees(
    rows: int, width: int, use_batch: bool, dtype: torch.dtype
) -> None:
    assert_agrees(
        lambda given: call(kernels.batchnorm_posterior, given, use_batch),
        lambda given: call(reference.batchnorm_posterior, given, use_batch),
        inputs(rows, width),
        dtype,
    )


def test_batchnorm_posterior_survives_a_constant_column() -> None:
    given = inputs(5, 6)
    given["x"][:, 2] = 4.0
    assert_agrees(
        lambda given: call(kernels.batchnorm_posterior, given, True),
        lambda given: call(reference.batchnorm_posterior, given, True),
        given,
    )


def test_batchnorm_posterior_refuses_what_it_would_misread() -> None:
    given = {name: tensor.float().to(DEVICE) for name, tensor in inputs(4, 5).items()}
    with pytest.raises(ValueError, match="x must have at least one row"):
        call(kernels.batchnorm_posterior, given | {"x": given["x"][:0]}, True)
    with pytest.raises(ValueError, match=r"norm_weight must end in shape \(5\), got \(4,\)"):
        call(kernels.batchnorm_posterior, given | {"weight": given["weight"][:4]}, True)
