from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mudreamer_fast import kernels, reference
from mudreamer_fast.ops.signatures import NormLinear
from tests.kernels.agreement import DEVICE, assert_agrees

EPS = 1e-3


def inputs(rows: tuple[int, ...], width: int, deter: int) -> dict[str, Tensor]:
    size = 3 * deter
    return {
        "u": torch.randn(*rows, width, dtype=torch.float64),
        "h": torch.tanh(torch.randn(*rows, deter, dtype=torch.float64)),
        "weight": torch.randn(size, width + deter, dtype=torch.float64) / (width + deter) ** 0.5,
        "norm_weight": 1 + 0.3 * torch.randn(size, dtype=torch.float64),
        "norm_bias": 0.3 * torch.randn(size, dtype=torch.float64),
    }


def layer(given: dict[str, Tensor]) -> NormLinear:
    return NormLinear(given["weight"], given["norm_weight"], given["norm_bias"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "width", "deter"),
    [((5,), 7, 19), ((1,), 1, 1), ((2, 3), 16, 32), ((520,), 3, 5), ((0,), 4, 8)],
)
def test_layernorm_gru_agrees(
    rows: tuple[int, ...], width: int, deter: int, dtype: torch.dtype
) -> None:
    assert_agrees(
        lambda given: {"h": kernels.layernorm_gru(given["u"], given["h"], layer(given), EPS)},
        lambda given: {"h": reference.layernorm_gru(given["u"], given["h"], layer(given), EPS)},
        inputs(rows, width, deter),
        dtype,
    )


def test_layernorm_gru_survives_saturated_gates() -> None:
    given = inputs((4,), 3, 8)
    given["norm_bias"] *= 300
    assert_agrees(
        lambda given: {"h": kernels.layernorm_gru(given["u"], given["h"], layer(given), EPS)},
        lambda given: {"h": reference.layernorm_gru(given["u"], given["h"], layer(given), EPS)},
        given,
    )


def test_layernorm_gru_refuses_what_it_would_misread() -> None:
    given = {name: tensor.float().to(DEVICE) for name, tensor in inputs((4,), 5, 8).items()}
    weights = layer(given)
    with pytest.raises(ValueError, match=r"layer\.weight must end in shape \(21, 12\), got"):
        kernels.layernorm_gru(given["u"], given["h"][:, :7].contiguous(), weights, EPS)
    with pytest.raises(ValueError, match=r"same rows, got \(3, 5\), \(4, 8\)"):
        kernels.layernorm_gru(given["u"][:3], given["h"], weights, EPS)
    with pytest.raises(ValueError, match="h must be contiguous"):
        kernels.layernorm_gru(given["u"], torch.randn(8, 4, device=DEVICE).T, weights, EPS)
