"""Scalars as distributions over fixed bins: two-hot cross entropy and mean, a row per program."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels import tiles
from mudreamer_fast.kernels.checks import check

LIMIT = 20.0
"""The bins span [-LIMIT, LIMIT] in symlog space."""


@triton.jit
def _position(b_target, LAST: tl.constexpr, LIMIT: tl.constexpr):
    """Bin below a target, and the share of its mass that goes to the bin above."""
    b_size = tl.log(tl.abs(b_target) + 1.0)
    b_symlog = tl.where(b_target < 0.0, -b_size, b_size)
    b_position = (tl.clamp(b_symlog, -LIMIT, LIMIT) + LIMIT) * (LAST / (2 * LIMIT))
    b_below = tl.minimum(tl.floor(b_position), LAST - 1.0)
    return b_below.to(tl.int32), b_position - b_below


@triton.jit
def _softmax(p_logits, i_row, o_bin, BINS: tl.constexpr):
    """A row's logits, their maximum, their exponentials above it and the sum of those."""
    b_logits = tl.load(p_logits + i_row * BINS + o_bin, mask=o_bin < BINS, other=float("-inf"))
    b_logits = b_logits.to(tl.float32)
    b_max = tl.max(b_logits)
    b_exp = tl.exp(b_logits - b_max)
    return b_logits, b_max, b_exp, tl.sum(b_exp)


@triton.jit
def two_hot_loss_fwd_kernel(
    p_logits,  # (rows, BINS), contiguous
    p_target,  # (rows,)
    p_out,  # (rows,)
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMIT: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_bin = tl.arange(0, BLOCK)
    b_logits, b_max, _, b_sum = _softmax(p_logits, i_row, o_bin, BINS)
    b_below, b_share = _position(tl.load(p_target + i_row).to(tl.float32), BINS - 1, LIMIT)
    b_mass = tl.where(o_bin == b_below, 1.0 - b_share, 0.0)
    b_mass += tl.where(o_bin == b_below + 1, b_share, 0.0)
    b_picked = tl.sum(b_mass * tl.where(o_bin < BINS, b_logits - b_max, 0.0))
    tl.store(p_out + i_row, (tl.log(b_sum) - b_picked).to(p_out.dtype.element_ty))


@triton.jit
def two_hot_loss_bwd_kernel(
    p_grad,  # (rows,)
    p_logits,  # (rows, BINS), contiguous
    p_target,  # (rows,)
    p_grad_logits,  # (rows, BINS), contiguous
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMIT: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_bin = tl.arange(0, BLOCK)
    _, _, b_exp, b_sum = _softmax(p_logits, i_row, o_bin, BINS)
    b_below, b_share = _position(tl.load(p_target + i_row).to(tl.float32), BINS - 1, LIMIT)
    b_grad = b_exp / b_sum
    b_grad -= tl.where(o_bin == b_below, 1.0 - b_share, 0.0)
    b_grad -= tl.where(o_bin == b_below + 1, b_share, 0.0)
    b_grad *= tl.load(p_grad + i_row).to(tl.float32)
    tl.store(
        p_grad_logits + i_row * BINS + o_bin,
        b_grad.to(p_grad_logits.dtype.element_ty),
        mask=o_bin < BINS,
    )


@triton.jit
def two_hot_mean_fwd_kernel(
    p_logits,  # (rows, BINS), contiguous
    p_out,  # (rows,)
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMIT: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_bin = tl.arange(0, BLOCK)
    _, _, b_exp, b_sum = _softmax(p_logits, i_row, o_bin, BINS)
    b_bin = o_bin.to(tl.float32) * (2 * LIMIT / (BINS - 1)) - LIMIT
    b_symlog = tl.sum(b_exp * b_bin) / b_sum
    b_size = tl.exp(tl.abs(b_symlog)) - 1.0
    tl.store(p_out + i_row, tl.where(b_symlog < 0.0, -b_size, b_size).to(p_out.dtype.element_ty))


@triton.jit
def two_hot_mean_bwd_kernel(
    p_grad,  # (rows,)
    p_logits,  # (rows, BINS), contiguous
    p_grad_logits,  # (rows, BINS), contiguous
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMIT: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_bin = tl.arange(0, BLOCK)
    _, _, b_exp, b_sum = _softmax(p_logits, i_row, o_bin, BINS)
    b_bin = o_bin.to(tl.float32) * (2 * LIMIT / (BINS - 1)) - LIMIT
    b_symlog = tl.sum(b_exp * b_bin) / b_sum
    b_grad = tl.load(p_grad + i_row).to(tl.float32) * tl.exp(tl.abs(b_symlog))
    b_grad = b_grad * (b_exp / b_sum) * (b_bin - b_symlog)
    tl.store(
        p_grad_logits + i_row * BINS + o_bin,
        b_grad.to(p_grad_logits.dtype.element_ty),
        mask=o_bin < BINS,
    )


def _row(bins: int) -> dict[str, Any]:
    return {
        "BINS": bins, "BLOCK": tiles.block(bins), "LIMIT": LIMIT, **tiles.launch(tiles.warps(bins)),
    }  # fmt: skip


class TwoHotLossFunction(torch.autograd.Function):
    """Cross entropy of rows (rows, K) to targets (rows,)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        out = logits.new_empty(len(logits))
        if len(logits):
            two_hot_loss_fwd_kernel[(len(logits),)](logits, target, out, **_row(logits.shape[1]))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,) = grads
        logits, target = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        if len(logits):
            two_hot_loss_bwd_kernel[(len(logits),)](
                grad_out.contiguous(), logits, target, grad_logits, **_row(logits.shape[1])
            )
        return grad_logits, None


class TwoHotMeanFunction(torch.autograd.Function):
    """Mean of rows (rows, K)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        out = logits.new_empty(len(logits))
        if len(logits):
            two_hot_mean_fwd_kernel[(len(logits),)](logits, out, **_row(logits.shape[1]))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad_out,) = grads
        (logits,) = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        if len(logits):
            two_hot_mean_bwd_kernel[(len(logits),)](
                grad_out.contiguous(), logits, grad_logits, **_row(logits.shape[1])
            )
        return grad_logits


def two_hot_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of a two-hot target: `-sum_k twohot(symlog y)_k ln softmax(l)_k`.

    The target's mass is split between the two bins beside it, by distance
    (DreamerV3, arXiv 2301.04104v1, eq. 9 and 10).

    Args:
        logits: (..., K), K bins evenly spaced over [-20, 20].
        target: (...), in plain units; no gradient flows to it.

    Returns:
        (...), in nats.
    """
    check("logits", logits, None)
    check("target", target, *logits.shape[:-1])
    out: Tensor = TwoHotLossFunction.apply(
        logits.view(-1, logits.shape[-1]), target.detach().view(-1)
    )
    return out.view(target.shape)


def two_hot_mean(logits: Tensor) -> Tensor:
    """Read a scalar back: `symexp(sum_k softmax(l)_k b_k)`.

    Source: DreamerV3 (arXiv 2301.04104v1), eq. 8.

    Args:
        logits: (..., K).

    Returns:
        (...), in plain units, with a gradient to the logits.
    """
    check("logits", logits, None)
    out: Tensor = TwoHotMeanFunction.apply(logits.view(-1, logits.shape[-1]))
    return out.view(logits.shape[:-1])
