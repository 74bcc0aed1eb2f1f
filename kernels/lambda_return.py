"""Lambda-returns: each program walks back in time over a tile of rows."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels import tiles
from mudreamer_fast.kernels.checks import check

TILE = 64
"""Rows of a program: few, so that a thousand rows reach as many multiprocessors as there are."""


@triton.jit
def lambda_return_fwd_kernel(
    p_reward,  # (rows, STEPS), contiguous, like all of them
    p_cont,
    p_value,
    p_first,  # bool; unread without FIRST
    p_out,
    rows,
    discount,
    lam,
    STEPS: tl.constexpr,
    FIRST: tl.constexpr,
    TILE: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    m_row = i_row < rows
    o_last = i_row * STEPS + STEPS - 1
    b_next = tl.load(p_value + o_last, mask=m_row, other=0.0).to(tl.float32)
    b_return = b_next
    tl.store(p_out + o_last, b_return.to(p_out.dtype.element_ty), mask=m_row)
    for i in range(STEPS - 1):
        o_here = o_last - 1 - i
        b_reward = tl.load(p_reward + o_here + 1, mask=m_row, other=0.0).to(tl.float32)
        b_cont = tl.load(p_cont + o_here + 1, mask=m_row, other=0.0).to(tl.float32)
        b_value = tl.load(p_value + o_here, mask=m_row, other=0.0).to(tl.float32)
        b_return = b_reward + discount * b_cont * (b_next + lam * (b_return - b_next))
        if FIRST:
            m_first = tl.load(p_first + o_here + 1, mask=m_row, other=0).to(tl.int1)
            b_return = tl.where(m_first, b_value, b_return)
        tl.store(p_out + o_here, b_return.to(p_out.dtype.element_ty), mask=m_row)
        b_next = b_value


@triton.jit
def lambda_return_bwd_kernel(
    p_grad,  # (rows, STEPS), contiguous, like all of them
    p_cont,
    p_value,
    p_first,  # bool; unread without FIRST
    p_return,
    p_grad_reward,
    p_grad_cont,
    p_grad_value,
    rows,
    discount,
    lam,
    STEPS: tl.constexpr,
    FIRST: tl.constexpr,
    TILE: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    m_row = i_row < rows
    o_first = i_row * STEPS
    b_zero = tl.zeros((TILE,), tl.float32)
    tl.store(p_grad_reward + o_first, b_zero.to(p_grad_reward.dtype.element_ty), mask=m_row)
    tl.store(p_grad_cont + o_first, b_zero.to(p_grad_cont.dtype.element_ty), mask=m_row)
    b_carry = b_zero  # what earlier returns ask of this step's return
    b_to_value = b_zero  # what the step before asks of this step's value
    for i in range(STEPS - 1):
        o_here = o_first + i
        b_grad = tl.load(p_grad + o_here, mask=m_row, other=0.0).to(tl.float32) + b_carry
        b_own = b_to_value
        if FIRST:
            m_first = tl.load(p_first + o_here + 1, mask=m_row, other=0).to(tl.int1)
            b_own += tl.where(m_first, b_grad, 0.0)
            b_grad = tl.where(m_first, 0.0, b_grad)
        tl.store(p_grad_value + o_here, b_own.to(p_grad_value.dtype.element_ty), mask=m_row)
        b_cont = tl.load(p_cont + o_here + 1, mask=m_row, other=0.0).to(tl.float32)
        b_next = tl.load(p_value + o_here + 1, mask=m_row, other=0.0).to(tl.float32)
        b_return = tl.load(p_return + o_here + 1, mask=m_row, other=0.0).to(tl.float32)
        b_future = b_next + lam * (b_return - b_next)
        b_grad_cont = b_grad * discount * b_future
        tl.store(p_grad_reward + o_here + 1, b_grad.to(p_grad_reward.dtype.element_ty), mask=m_row)
        tl.store(p_grad_cont + o_here + 1, b_grad_cont.to(p_grad_cont.dtype.element_ty), mask=m_row)
        b_carry = b_grad * discount * b_cont * lam
        b_to_value = b_grad * discount * b_cont * (1.0 - lam)
    o_last = o_first + STEPS - 1
    b_grad = tl.load(p_grad + o_last, mask=m_row, other=0.0).to(tl.float32)
    b_grad += b_carry + b_to_value
    tl.store(p_grad_value + o_last, b_grad.to(p_grad_value.dtype.element_ty), mask=m_row)


class LambdaReturnFunction(torch.autograd.Function):
    """Returns of rows (N, T)."""

    @staticmethod
    def forward(
        ctx: Any,
        reward: Tensor,
        cont: Tensor,
        value: Tensor,
        is_first: Tensor | None,
        discount: float,
        lam: float,
    ) -> Tensor:
        rows, steps = value.shape
        out = torch.empty_like(value)
        first = value if is_first is None else is_first
        if rows:
            lambda_return_fwd_kernel[(triton.cdiv(rows, TILE),)](
                reward, cont, value, first, out, rows, discount, lam, steps, is_first is not None,
                TILE, **tiles.launch(2),
            )  # fmt: skip
        ctx.save_for_backward(cont, value, first, out)
        ctx.arguments = (is_first is not None, discount, lam)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,) = grads
        cont, value, first, returns = ctx.saved_tensors
        has_first, discount, lam = ctx.arguments
        rows, steps = value.shape
        out = [torch.empty_like(value) for _ in range(3)]
        if rows:
            lambda_return_bwd_kernel[(triton.cdiv(rows, TILE),)](
                grad_out.contiguous(), cont, value, first, returns, *out, rows, discount, lam,
                steps, has_first, TILE, **tiles.launch(2),
            )  # fmt: skip
        return *out, None, None, None


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
    """
    check("value", value, None, None)
    check("reward", reward, *value.shape, like=value)
    check("cont", cont, *value.shape, like=value)
    if is_first is not None:
        if is_first.dtype != torch.bool or is_first.shape != value.shape:
            raise ValueError(
                f"is_first must be bool of shape {tuple(value.shape)}, got {is_first.dtype} of "
                f"{tuple(is_first.shape)}"
            )
        is_first = is_first.contiguous()
    out: Tensor = LambdaReturnFunction.apply(reward, cont, value, is_first, discount, lam)
    return out
