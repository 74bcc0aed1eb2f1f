from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mudreamer_fast import kernels, reference
from mudreamer_fast.ops.signatures import Linear, MlpWeights, NormLinear
from tests.kernels.agreement import DEVICE, assert_agrees

EPS = 1e-3


def inputs(rows: tuple[int, ...], width: int, size: int) -> dict[str, Tensor]:
    return {
        "x": torch.randn(*rows, width, dtype=torch.float64),
        "weight": torch.randn(size, width, dtype=torch.float64) / width**0.5,
        "norm_weight": 1 + 0.3 * torch.randn(size, dtype=torch.float64),
        "norm_bias": 0.3 * torch.randn(size, dtype=torch.float64),
    }


def layer(given: dict[str, Tensor]) -> NormLinear:
    return NormLinear(given["weight"], given["norm_weight"], given["norm_bias"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "width", "size"),
    [((7,), 5, 33), ((1,), 1, 1), ((2, 3), 16, 64), ((600,), 3, 17), ((0,), 4, 8)],
)
def test_linear_norm_act_agrees(
    rows: tuple[int, ...], width: int, size: int, dtype: torch.dtype
) -> None:
    assert_agrees(
        lambda given: {"y": kernels.linear_norm_act(given["x"], layer(given), EPS)},
        lambda given: {"y": reference.linear_norm_act(given["x"], layer(given), EPS)},
        inputs(rows, width, size),
        dtype,
    )


def test_mlp_agrees() -> None:
    given = inputs((9,), 5, 12)
    given |= {f"second {name}": tensor for name, tensor in inputs((9,), 12, 10).items()}
    given["out"] = torch.randn(3, 10, dtype=torch.float64)
    given["bias"] = torch.randn(3, dtype=torch.float64)
    del given["second x"]

    def weights(given: dict[str, Tensor]) -> MlpWeights:
        second = {name.removeprefix("second "): given[name] for name in given if "second" in name}
        return MlpWeights((layer(given), layer(second)), Linear(given["out"], given["bias"]))

    assert_agrees(
        lambda given: {"y": kernels.mlp(given["x"], weights(given), EPS)},
        lambda given: {"y": reference.mlp(given["x"], weights(given), EPS)},
        given,
    )


def test_linear_norm_act_refuses_what_it_would_misread() -> None:
    given = {name: tensor.float().to(DEVICE) for name, tensor in inputs((4,), 5, 8).items()}
    x, weights = given["x"], layer(given)
    with pytest.raises(ValueError, match=r"x must end in shape \(5\), got \(4, 4\)"):
        kernels.linear_norm_act(x[:, :4].contiguous(), weights, EPS)
    with pytest.raises(ValueError, match="x must be contiguous, got shape"):
        kernels.linear_norm_act(torch.randn(5, 4, device=DEVICE).T, weights, EPS)
    with pytest.raises(TypeError, match=r"x must be torch\.float32, got torch\.bfloat16"):
        kernels.linear_norm_act(x.bfloat16(), weights, EPS)
    double = NormLinear(*(tensor.double() for tensor in weights))
    with pytest.raises(TypeError, match=r"weight must be float32 or bfloat16, got torch\.float64"):
        kernels.linear_norm_act(x.double(), double, EPS)
