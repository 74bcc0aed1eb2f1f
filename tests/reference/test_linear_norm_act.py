from __future__ import annotations

import torch

from mudreamer_fast.ops.signatures import Linear, MlpWeights, NormLinear
from mudreamer_fast.reference import linear_norm_act, mlp
from tests import tiny
from tests.tolerances import HAND, assert_close

F64 = torch.float64

# W x = (1, 2, 3): mean 2, variance 2/3; with eps 1/3 the norm divides by one and leaves
# (-1, 0, 1). Scale (1, 2, 3) and shift (0, 1, -1) make (-1, 1, 2), and silu(x) = x / (1 + e^-x).
LAYER = NormLinear(
    torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=F64),
    torch.tensor([1.0, 2.0, 3.0], dtype=F64),
    torch.tensor([0.0, 1.0, -1.0], dtype=F64),
)
INPUT = torch.tensor([1.0, 2.0], dtype=F64)
OUTPUT = torch.tensor([-0.2689414213699951, 0.7310585786300049, 1.7615941559557649], dtype=F64)


def test_linear_norm_act_matches_hand_worked_numbers() -> None:
    assert_close(linear_norm_act(INPUT, LAYER, eps=1 / 3), OUTPUT, HAND)


def test_linear_norm_act_maps_each_row_alone() -> None:
    layer = tiny.norm_linear(7, 3)
    x = torch.randn(5, 1, 3, dtype=F64)
    rows = [linear_norm_act(row, layer, 1e-3) for row in x.view(5, 3)]
    assert_close(linear_norm_act(x, layer, 1e-3), torch.stack(rows)[:, None], HAND)


def test_linear_norm_act_gradients_match_finite_differences() -> None:
    layer = tiny.norm_linear(5, 3)
    tiny.require_gradients(layer)
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, *weights: linear_norm_act(x, NormLinear(*weights), 1e-3), (x, *layer)
    )


def test_mlp_is_hidden_layers_then_a_linear_map() -> None:
    out = Linear(torch.tensor([[1.0, -1.0, 0.5]], dtype=F64), torch.tensor([10.0], dtype=F64))
    # -0.26894... - 0.73105... + 1.76159... / 2 + 10
    expected = torch.tensor([9.8807970779778825], dtype=F64)
    assert_close(mlp(INPUT, MlpWeights((LAYER,), out), eps=1 / 3), expected, HAND)


def test_mlp_feeds_each_layer_with_the_one_before() -> None:
    weights = tiny.mlp_weights(3, 5, 2, 4)
    x = torch.randn(7, 3, dtype=F64)
    first = linear_norm_act(x, weights.hidden[0], 1e-3)
    second = linear_norm_act(first, weights.hidden[1], 1e-3)
    expected = second @ weights.out.weight.T + weights.out.bias
    assert_close(mlp(x, weights, 1e-3), expected, HAND)


def test_mlp_gradients_match_finite_differences() -> None:
    weights = tiny.mlp_weights(3, 5, 1, 2)
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)

    def run(x: torch.Tensor, *flat: torch.Tensor) -> torch.Tensor:
        return mlp(x, MlpWeights((NormLinear(*flat[:3]),), Linear(*flat[3:])), 1e-3)

    assert torch.autograd.gradcheck(run, (x, *weights.hidden[0], *weights.out))
