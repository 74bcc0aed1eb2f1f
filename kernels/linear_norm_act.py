"""Hidden layer of every network: linear, layer norm, SiLU; the last two in one kernel.

The matrix products are the library's; what they leave to do is one pass over each row, forward
and backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels import tiles
from mudreamer_fast.kernels.checks import check
from mudreamer_fast.ops.signatures import MlpWeights, NormLinear


@triton.jit
def linear_norm_act_fwd_kernel(
    p_x,  # (rows, WIDTH), row stride s_x
    p_weight,  # (WIDTH,)
    p_bias,  # (WIDTH,)
    p_out,  # (rows, WIDTH), row stride s_out
    s_x,
    s_out,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_col = tl.arange(0, BLOCK)
    m_col = o_col < WIDTH
    b_x = tl.load(p_x + i_row * s_x + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_weight = tl.load(p_weight + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_x = tl.where(m_col, b_x - tl.sum(b_x) / WIDTH, 0.0)
    b_y = b_x / tl.sqrt(tl.sum(b_x * b_x) / WIDTH + eps) * b_weight + b_bias
    b_y = b_y * tl.sigmoid(b_y)
    tl.store(p_out + i_row * s_out + o_col, b_y.to(p_out.dtype.element_ty), mask=m_col)


@triton.jit
def linear_norm_act_bwd_kernel(
    p_grad,  # (rows, WIDTH), row stride s_grad
    p_x,  # (rows, WIDTH), row stride s_x
    p_weight,  # (WIDTH,)
    p_bias,  # (WIDTH,)
    p_grad_x,  # (rows, WIDTH), contiguous
    p_partial,  # (programs, 2, WIDTH), float32: shares of the gradients of weight and bias
    s_grad,
    s_x,
    rows,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    AFFINE: tl.constexpr,
):
    i_program = tl.program_id(0).to(tl.int64)
    o_col = tl.arange(0, BLOCK)
    m_col = o_col < WIDTH
    b_weight = tl.load(p_weight + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_grad_weight = tl.zeros((BLOCK,), tl.float32)
    b_grad_bias = tl.zeros((BLOCK,), tl.float32)
    for i in range(ROWS):
        i_row = i_program * ROWS + i
        m_row = o_col < tl.where(i_row < rows, WIDTH, 0)
        b_x = tl.load(p_x + i_row * s_x + o_col, mask=m_row, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad + i_row * s_grad + o_col, mask=m_row, other=0.0).to(tl.float32)
        b_x = tl.where(m_col, b_x - tl.sum(b_x) / WIDTH, 0.0)
        b_scale = 1.0 / tl.sqrt(tl.sum(b_x * b_x) / WIDTH + eps)
        b_x = b_x * b_scale
        b_y = b_x * b_weight + b_bias
        b_sigmoid = tl.sigmoid(b_y)
        b_grad = b_grad * b_sigmoid * (1.0 + b_y * (1.0 - b_sigmoid))
        if AFFINE:
            b_grad_weight += b_grad * b_x
            b_grad_bias += b_grad
        b_grad = b_grad * b_weight
        b_mean = tl.sum(b_grad) / WIDTH
        b_along = tl.sum(b_grad * b_x) / WIDTH
        b_grad = (b_grad - b_mean - b_x * b_along) * b_scale
        tl.store(p_grad_x + i_row * WIDTH + o_col, b_grad.to(p_grad_x.dtype.element_ty), mask=m_row)
    if AFFINE:
        o_partial = i_program * 2 * WIDTH + o_col
        tl.store(p_partial + o_partial, b_grad_weight, mask=m_col)
        tl.store(p_partial + o_partial + WIDTH, b_grad_bias, mask=m_col)


class NormActFunction(torch.autograd.Function):
    """`SiLU(LN(x))` over the last axis; the backward pass normalises anew instead of saving."""

    @staticmethod
    def launch_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> Tensor:
        """Fill `out` with `SiLU(LN(x))`, both (rows, width) with any row stride."""
        rows, width = x.shape
        if rows:
            linear_norm_act_fwd_kernel[(rows,)](
                x, weight, bias, out, x.stride(0), out.stride(0), eps, width, tiles.block(width),
                **tiles.launch(tiles.warps(width)),
            )  # fmt: skip
        return out

    @staticmethod
    def launch_backward(
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        affine: bool = True,
        out: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Gradients of x, weight and bias; of x alone without `affine`.

        That of x is written into `out` where that is given, contiguous.
        """
        rows, width = x.shape
        grad_x = out
        if grad_x is None:
            grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        each = tiles.rows_each(rows)
        programs = -(-rows // each)
        partial = torch.empty(programs if affine else 0, 2, width, device=x.device)
        if rows:
            linear_norm_act_bwd_kernel[(programs,)](
                grad, x, weight, bias, grad_x, partial, grad.stride(0), x.stride(0), rows, eps,
                width, tiles.block(width), each, affine, **tiles.launch(tiles.warps(width)),
            )  # fmt: skip
        if not affine:
            return (grad_x,)
        grad_weight, grad_bias = partial.sum(0).to(weight.dtype)
        return grad_x, grad_weight, grad_bias

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        rows = x.view(-1, x.shape[-1])
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        return NormActFunction.launch_forward(
            rows, weight, bias, eps, torch.empty_like(rows)
        ).view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,) = grads
        x, weight, bias = ctx.saved_tensors
        rows = x.view(-1, x.shape[-1])
        affine = any(ctx.needs_input_grad[1:3])
        grad = grad_out.reshape(rows.shape).contiguous()
        out = NormActFunction.launch_backward(grad, rows, weight, bias, ctx.eps, affine)
        grad_weight, grad_bias = out[1:] if affine else (None, None)
        return out[0].view_as(x), grad_weight, grad_bias, None


def linear_norm_act(x: Tensor, layer: NormLinear, eps: float) -> Tensor:
    """Apply `SiLU(LN(W x))` (DreamerV3, arXiv 2301.04104v1, appendix B).

    Args:
        x: (..., in).
        layer: W (out, in) and the norm's scale and shift (out,).
        eps: added to the variance.

    Returns:
        (..., out).
    """
    check("layer.weight", layer.weight, None, None)
    size, inputs = layer.weight.shape
    check("x", x, inputs, like=layer.weight)
    check("layer.norm_weight", layer.norm_weight, size, like=layer.weight)
    check("layer.norm_bias", layer.norm_bias, size, like=layer.weight)
    y = F.linear(x, layer.weight)
    out: Tensor = NormActFunction.apply(y, layer.norm_weight, layer.norm_bias, eps)
    return out


def mlp(x: Tensor, weights: MlpWeights, eps: float) -> Tensor:
    """Hidden layers `SiLU(LN(W x))`, then a linear output, on (..., in)."""
    for layer in weights.hidden:
        x = linear_norm_act(x, layer, eps)
    return F.linear(x, weights.out.weight, weights.out.bias)
