"""Lambda-returns, along imagined rollouts and along replayed sequences."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_return(
    reward: Tensor,
    cont: Tensor,
    value: Tensor,
    discount: float,
    lam: float,
    is_first: Tensor | None = None,
) -> Tensor:
    """Mix bootstrapped returns of all lengths, backwards in time.

    `R_t = r_{t+1} + d c_{t+1} ((1 - l) v_{t+1} + l R_{t+1})`, `R_T = v_T`; where step t+1 begins
    an episode `R_t = v_t`, so that nothing flows across (DreamerV3, arXiv 2301.04104v1, eq. 7;
    MuDreamer, arXiv 2405.15083, eq. 5, uses them for the value targets as well).

    Args:
        reward: (N, T), the reward that arrives with each state.
        cont: (N, T), the probability that the episode goes on after each state, in [0, 1].
        value: (N, T), bootstraps.
        discount: d, of one step.
        lam: l, 0 for one-step targets and 1 for Monte Carlo.
        is_first: (N, T) bool, or None where no episode begins inside.

    Returns:
        (N, T), the return from each state on; the last column is the last value.

    Example:
        >>> reward, value = torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[7.0, 7.0, 4.0]])
        >>> lambda_return(reward, torch.ones(1, 3), value, discount=0.5, lam=1.0)
        tensor([[2.5000, 3.0000, 4.0000]])
    """
    step_discount = discount * cont
    returns = [value[:, -1]]
    for t in range(value.shape[1] - 2, -1, -1):
        future = torch.lerp(value[:, t + 1], returns[-1], lam)
        target = reward[:, t + 1] + step_discount[:, t + 1] * future
        if is_first is not None:
            target = torch.where(is_first[:, t + 1], value[:, t], target)
        returns.append(target)
    return torch.stack(returns[::-1], dim=1)
