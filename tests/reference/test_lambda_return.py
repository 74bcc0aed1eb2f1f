from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mudreamer_fast.reference import lambda_return
from tests.tolerances import HAND, assert_close

F64 = torch.float64


def explicit_return(
    reward: list[float],
    cont: list[float],
    value: list[float],
    first: list[bool],
    start: int,
    discount: float,
    lam: float,
) -> float:
    """`(1 - l) sum_n l^(n-1) G_n + l^(N-1) G_N`, where G_n rolls n steps and then bootstraps."""
    end = start
    while end + 1 < len(reward) and not first[end + 1]:
        end += 1
    if end == start:
        return value[start]
    total, rewards, reached = 0.0, 0.0, 1.0
    longest = end - start
    for n in range(1, longest + 1):
        reached *= discount * cont[start + n]
        # The reward of a step is not discounted by that step's own factor.
        rewards += reward[start + n] * (reached / (discount * cont[start + n]))
        n_step = rewards + reached * value[start + n]
        share = lam ** (n - 1) * ((1 - lam) if n < longest else 1.0)
        total += share * n_step
    return total


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_lambda_return_is_the_weighted_sum_of_n_step_returns(lam: float, steps: int) -> None:
    reward, value = torch.randn(2, 3, steps, dtype=F64).unbind(0)
    cont = torch.rand(3, steps, dtype=F64) + 0.1
    first = torch.zeros(3, steps, dtype=torch.bool)
    first[:, 0] = True
    if steps > 4:
        first[1, 3] = first[2, 1] = first[2, 2] = first[2, -1] = True
    expected = [
        [
            explicit_return(*(x[row].tolist() for x in (reward, cont, value, first)), t, 0.9, lam)
            for t in range(steps)
        ]
        for row in range(3)
    ]
    returns = lambda_return(reward, cont, value, 0.9, lam, first)
    assert_close(returns, torch.tensor(expected, dtype=F64), HAND)


def test_lambda_return_matches_hand_worked_numbers() -> None:
    # Backwards with discount 1/2 and lambda 1/2: R_2 = 8; R_1 = 3 + 1/2 (4 + 4) = 7;
    # R_0 = 2 + 1/2 * 1/2 * (1/2 * 6 + 1/2 * 7) = 3.625.
    returns = lambda_return(
        torch.tensor([[100.0, 2.0, 3.0]], dtype=F64),
        torch.tensor([[0.0, 0.5, 1.0]], dtype=F64),
        torch.tensor([[-9.0, 6.0, 8.0]], dtype=F64),
        0.5,
        0.5,
    )
    assert_close(returns, torch.tensor([[3.625, 7.0, 8.0]], dtype=F64), HAND)


def test_lambda_return_of_one_step_is_its_value() -> None:
    value = torch.randn(5, 1)
    ones = torch.ones(5, 1)
    assert torch.equal(lambda_return(ones, ones, value, 0.9, 0.95), value)


def test_lambda_return_stops_where_the_episode_really_ends() -> None:
    reward = torch.tensor([[0.0, 1.0, 2.0, 5.0]], dtype=F64)
    value = torch.full((1, 4), 50.0, dtype=F64)
    cont = torch.tensor([[1.0, 1.0, 0.0, 1.0]], dtype=F64)
    returns = lambda_return(reward, cont, value, 1.0, 1.0)
    assert returns[0, 1].item() == 2.0
    assert returns[0, 0].item() == 3.0


def test_lambda_return_lets_nothing_across_a_first_step() -> None:
    reward, cont, value = torch.rand(3, 3, 7, dtype=F64).unbind(0)
    first = torch.zeros(3, 7, dtype=torch.bool)
    first[:, 4] = True
    before = lambda_return(reward, cont, value, 0.9, 0.95, first)
    changed = [torch.cat([x[:, :4], x[:, 4:] + 1.0], 1) for x in (reward, cont, value)]
    after = lambda_return(*changed, 0.9, 0.95, first)
    assert torch.equal(before[:, :4], after[:, :4])
    assert torch.equal(before[:, 3], value[:, 3])
    assert (before[:, 4:] != after[:, 4:]).all()


@pytest.mark.parametrize("resets", [False, True])
def test_lambda_return_gradients_match_finite_differences(resets: bool) -> None:
    inputs = [torch.rand(2, 5, dtype=F64, requires_grad=True) for _ in range(3)]
    first = torch.zeros(2, 5, dtype=torch.bool)
    first[1, 2] = True

    def run(reward: Tensor, cont: Tensor, value: Tensor) -> Tensor:
        return lambda_return(reward, cont, value, 0.9, 0.7, first if resets else None)

    assert torch.autograd.gradcheck(run, inputs)
