from __future__ import annotations

import math

import torch

from mudreamer_fast.ops.signatures import NormLinear
from mudreamer_fast.reference import layernorm_gru
from tests import tiny
from tests.tolerances import HAND, assert_close

F64 = torch.float64


def test_layernorm_gru_matches_hand_worked_numbers() -> None:
    # u = 1 and h = 2 give W [u, h] = (1, 2, 3), which the norm over all three gates makes
    # (-1, 0, 1) with eps 1/3. The shift (1, 2, 1) leaves reset 0, candidate 2, update 2:
    # r = sigmoid(0) = 1/2, c = tanh(1), g = sigmoid(2 - 1); h' = g c + (1 - g) 2.
    layer = NormLinear(
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=F64),
        torch.ones(3, dtype=F64),
        torch.tensor([1.0, 2.0, 1.0], dtype=F64),
    )
    gate = 1 / (1 + math.exp(-1))
    expected = gate * math.tanh(1) + (1 - gate) * 2
    new = layernorm_gru(
        torch.tensor([1.0], dtype=F64), torch.tensor([2.0], dtype=F64), layer, 1 / 3
    )
    assert_close(new, torch.tensor([expected], dtype=F64), HAND)


def with_update_gate(bias: float) -> NormLinear:
    layer = tiny.norm_linear(9, 5 + 3)
    layer.norm_bias[6:] = bias
    return layer


def test_layernorm_gru_keeps_the_state_behind_a_closed_update_gate() -> None:
    u, h = torch.randn(7, 5, dtype=F64), torch.randn(7, 3, dtype=F64)
    assert_close(layernorm_gru(u, h, with_update_gate(-1e3), 1e-3), h, HAND)


def test_layernorm_gru_forgets_the_state_through_an_open_update_gate() -> None:
    layer = with_update_gate(1e3)
    u, h = torch.randn(7, 5, dtype=F64), torch.randn(7, 3, dtype=F64)
    p = torch.cat([u, h], -1) @ layer.weight.T
    p = (p - p.mean(-1, True)) / (p.var(-1, correction=0, keepdim=True) + 1e-3).sqrt()
    p = p * layer.norm_weight + layer.norm_bias
    reset = 1 / (1 + torch.exp(-p[:, :3]))
    assert_close(layernorm_gru(u, h, layer, 1e-3), torch.tanh(reset * p[:, 3:6]), HAND)


def test_layernorm_gru_gradients_match_finite_differences() -> None:
    layer = tiny.norm_linear(9, 5 + 3)
    tiny.require_gradients(layer)
    u = torch.randn(2, 5, dtype=F64, requires_grad=True)
    h = torch.randn(2, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda u, h, *weights: layernorm_gru(u, h, NormLinear(*weights), 1e-3), (u, h, *layer)
    )
