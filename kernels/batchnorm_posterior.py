"""The posterior's hidden norm and activation; a program owns columns, and so needs no other."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels import tiles
from mudreamer_fast.kernels.checks import check
from mudreamer_fast.ops.signatures import BatchNormState, NormLinear

COLUMNS = 16
"""Columns of a program: few, as the 512 of size S are all there is to share out."""
ROWS = 64
"""Rows that a program holds at a time."""


@triton.jit
def _statistics(
    p_x, s_x, o_row, o_col, m_col, ROWS_ALL: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr
):
    """Mean and biased variance of columns, in two passes."""
    b_sum = tl.zeros_like(o_col).to(tl.float32)
    for i in range(CHUNKS):
        i_row = o_row + i * ROWS
        m_tile = (i_row < ROWS_ALL)[:, None] & m_col[None, :]
        b_x = tl.load(p_x + i_row[:, None] * s_x + o_col[None, :], mask=m_tile, other=0.0)
        b_sum += tl.sum(b_x.to(tl.float32), axis=0)
    b_mean = b_sum / ROWS_ALL
    b_sum = tl.zeros_like(o_col).to(tl.float32)
    for i in range(CHUNKS):
        i_row = o_row + i * ROWS
        m_tile = (i_row < ROWS_ALL)[:, None] & m_col[None, :]
        b_x = tl.load(p_x + i_row[:, None] * s_x + o_col[None, :], mask=m_tile, other=0.0)
        b_x = tl.where(m_tile, b_x.to(tl.float32) - b_mean[None, :], 0.0)
        b_sum += tl.sum(b_x * b_x, axis=0)
    return b_mean, b_sum / ROWS_ALL


@triton.jit
def batchnorm_posterior_fwd_kernel(
    p_x,  # (ROWS_ALL, width), row stride s_x
    p_weight,  # (width,)
    p_bias,  # (width,)
    p_running_mean,  # (width,), unread with USE_BATCH
    p_running_var,  # (width,), likewise
    p_out,  # (ROWS_ALL, width), contiguous
    p_mean,  # (width,), of the rows
    p_var,  # (width,), biased
    s_x,
    width,
    eps,
    ROWS_ALL: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    USE_BATCH: tl.constexpr,
):
    o_col = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    m_col = o_col < width
    o_row = tl.arange(0, ROWS)
    b_mean, b_var = _statistics(p_x, s_x, o_row, o_col, m_col, ROWS_ALL, CHUNKS, ROWS)
    tl.store(p_mean + o_col, b_mean.to(p_mean.dtype.element_ty), mask=m_col)
    tl.store(p_var + o_col, b_var.to(p_var.dtype.element_ty), mask=m_col)
    if not USE_BATCH:
        b_mean = tl.load(p_running_mean + o_col, mask=m_col, other=0.0).to(tl.float32)
        b_var = tl.load(p_running_var + o_col, mask=m_col, other=1.0).to(tl.float32)
    b_scale = 1.0 / tl.sqrt(b_var + eps)
    b_scale *= tl.load(p_weight + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_col, mask=m_col, other=0.0).to(tl.float32)
    for i in range(CHUNKS):
        i_row = o_row + i * ROWS
        m_tile = (i_row < ROWS_ALL)[:, None] & m_col[None, :]
        b_x = tl.load(p_x + i_row[:, None] * s_x + o_col[None, :], mask=m_tile, other=0.0)
        b_y = (b_x.to(tl.float32) - b_mean[None, :]) * b_scale[None, :] + b_bias[None, :]
        b_y = b_y * tl.sigmoid(b_y)
        p_tile = p_out + i_row[:, None] * width + o_col[None, :]
        tl.store(p_tile, b_y.to(p_out.dtype.element_ty), mask=m_tile)


@triton.jit
def batchnorm_posterior_bwd_kernel(
    p_grad,  # (ROWS_ALL, width), contiguous
    p_x,  # (ROWS_ALL, width), row stride s_x
    p_weight,  # (width,)
    p_bias,  # (width,)
    p_mean,  # (width,), what the forward pass took away
    p_var,  # (width,), likewise
    p_grad_x,  # (ROWS_ALL, width), contiguous
    p_grad_weight,  # (width,), float32
    p_grad_bias,  # (width,), float32
    s_x,
    width,
    eps,
    ROWS_ALL: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    USE_BATCH: tl.constexpr,
):
    o_col = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    m_col = o_col < width
    o_row = tl.arange(0, ROWS)
    b_mean = tl.load(p_mean + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_var = tl.load(p_var + o_col, mask=m_col, other=1.0).to(tl.float32)
    b_scale = 1.0 / tl.sqrt(b_var + eps)
    b_weight = tl.load(p_weight + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_sum_weight = tl.zeros_like(b_mean)
    b_sum_bias = tl.zeros_like(b_mean)
    for i in range(CHUNKS):
        i_row = o_row + i * ROWS
        m_tile = (i_row < ROWS_ALL)[:, None] & m_col[None, :]
        b_x = tl.load(p_x + i_row[:, None] * s_x + o_col[None, :], mask=m_tile, other=0.0)
        b_x = (b_x.to(tl.float32) - b_mean[None, :]) * b_scale[None, :]
        b_y = b_x * b_weight[None, :] + b_bias[None, :]
        b_sigmoid = tl.sigmoid(b_y)
        p_tile = p_grad + i_row[:, None] * width + o_col[None, :]
        b_grad = tl.load(p_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_grad *= b_sigmoid * (1.0 + b_y * (1.0 - b_sigmoid))
        b_sum_weight += tl.sum(b_grad * b_x, axis=0)
        b_sum_bias += tl.sum(b_grad, axis=0)
    tl.store(p_grad_weight + o_col, b_sum_weight, mask=m_col)
    tl.store(p_grad_bias + o_col, b_sum_bias, mask=m_col)
    for i in range(CHUNKS):
        i_row = o_row + i * ROWS
        m_tile = (i_row < ROWS_ALL)[:, None] & m_col[None, :]
        b_x = tl.load(p_x + i_row[:, None] * s_x + o_col[None, :], mask=m_tile, other=0.0)
        b_x = (b_x.to(tl.float32) - b_mean[None, :]) * b_scale[None, :]
        b_y = b_x * b_weight[None, :] + b_bias[None, :]
        b_sigmoid = tl.sigmoid(b_y)
        p_tile = p_grad + i_row[:, None] * width + o_col[None, :]
        b_grad = tl.load(p_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_grad *= b_sigmoid * (1.0 + b_y * (1.0 - b_sigmoid))
        if USE_BATCH:
            b_grad -= (b_sum_bias[None, :] + b_x * b_sum_weight[None, :]) / ROWS_ALL
        b_grad *= (b_weight * b_scale)[None, :]
        p_tile = p_grad_x + i_row[:, None] * width + o_col[None, :]
        tl.store(p_tile, b_grad.to(p_grad_x.dtype.element_ty), mask=m_tile)


class BatchNormActFunction(torch.autograd.Function):
    """`SiLU(BN(x))` of (rows, width), with the mean and the biased variance of the rows."""

    @staticmethod
    def launch_forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        state: BatchNormState,
        eps: float,
        out: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Fill `out`: activations (rows, width), means (width,) and variances (width,)."""
        rows, width = x.shape
        batchnorm_posterior_fwd_kernel[(triton.cdiv(width, COLUMNS),)](
            x, weight, bias, state.running_mean, state.running_var, *out, x.stride(0), width, eps,
            rows, triton.cdiv(rows, ROWS), ROWS, COLUMNS, state.use_batch, **tiles.launch(4),
        )  # fmt: skip

    @staticmethod
    def launch_backward(
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        use_batch: bool,
        eps: float,
        out: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Fill `out`: gradients of x (rows, width), and of weight and bias (width,) in float32.

        `mean` and `var` are those that were taken away.
        """
        rows, width = x.shape
        batchnorm_posterior_bwd_kernel[(triton.cdiv(width, COLUMNS),)](
            grad, x, weight, bias, mean, var, *out, x.stride(0), width, eps, rows,
            triton.cdiv(rows, ROWS), ROWS, COLUMNS, use_batch, **tiles.launch(4),
        )  # fmt: skip

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, state: BatchNormState, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        out = torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
        BatchNormActFunction.launch_forward(x, weight, bias, state, eps, out)
        mean, var = out[1:] if state.use_batch else state[:2]
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.arguments = (state.use_batch, eps)
        ctx.mark_non_differentiable(*out[1:])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_out, *_ = grads
        x, weight, bias, mean, var = ctx.saved_tensors
        use_batch, eps = ctx.arguments
        grad = grad_out.contiguous()
        out = torch.empty_like(grad), *torch.empty(2, x.shape[1], device=x.device)
        BatchNormActFunction.launch_backward(grad, x, weight, bias, mean, var, use_batch, eps, out)
        grad_x, grad_weight, grad_bias = out
        return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None, None


def batchnorm_posterior(
    x: Tensor, layer: NormLinear, state: BatchNormState, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply `SiLU(BN(x))` over the rows of one time step.

    `BN(x) = w (x - mean) / sqrt(var + eps) + b`, by column (MuDreamer, arXiv 2405.15083,
    section 3.2).

    Args:
        x: (B, U), one row per sequence; B at least one.
        layer: the norm's scale and shift (U,).
        state: running statistics, and whether the rows' own are used instead.
        eps: added to the variance.

    Returns:
        The activations (B, U), and the mean and the biased variance (U,) of the rows, without
        gradient.
    """
    check("x", x, None, None)
    if not len(x):
        raise ValueError("x must have at least one row")
    width = x.shape[1]
    for name, tensor in (
        ("layer.norm_weight", layer.norm_weight),
        ("layer.norm_bias", layer.norm_bias),
        ("state.running_mean", state.running_mean),
        ("state.running_var", state.running_var),
    ):
        check(name, tensor, width, like=x)
    out, mean, var = BatchNormActFunction.apply(x, layer.norm_weight, layer.norm_bias, state, eps)
    return out, mean, var
