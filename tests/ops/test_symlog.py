from __future__ import annotations

import math

import pytest
import torch

from mudreamer_fast.ops.symlog import symexp, symlog
from tests.tolerances import HAND, assert_close


def test_symlog_matches_hand_worked_numbers() -> None:
    x = torch.tensor([0.0, math.e - 1, 1 - math.e**2, 1e-9], dtype=torch.float64)
    assert_close(symlog(x), torch.tensor([0.0, 1.0, -2.0, 1e-9], dtype=torch.float64), HAND)


def test_symexp_undoes_symlog() -> None:
    x = torch.tensor([0.0, -0.3, 7.0, -1e4, 1e-9, 4e8], dtype=torch.float64)
    assert_close(symexp(symlog(x)), x, HAND)


@pytest.mark.parametrize("function", [symlog, symexp])
def test_symlog_and_symexp_gradients_match_finite_differences(function: object) -> None:
    x = torch.tensor([-2.0, -0.1, 0.1, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,))
