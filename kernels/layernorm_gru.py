"""One step of the recurrent cell: the layer norm over three gates and the gates in one kernel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels import tiles
from mudreamer_fast.kernels.checks import check
from mudreamer_fast.ops.signatures import NormLinear


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def next_state(b_reset, b_candidate, b_update, b_state):
    """The state after a step, from the gates behind their norm and the state before."""
    b_candidate = _tanh(tl.sigmoid(b_reset) * b_candidate)
    return b_state + tl.sigmoid(b_update - 1.0) * (b_candidate - b_state)


@triton.jit
def layernorm_gru_fwd_kernel(
    p_gates,  # (rows, 3 * WIDTH), contiguous: reset, candidate, update before the norm
    p_state,  # (rows, WIDTH), row stride s_state
    p_weight,  # (3 * WIDTH,)
    p_bias,  # (3 * WIDTH,)
    p_out,  # (rows, WIDTH), row stride s_out
    s_state,
    s_out,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_col = tl.arange(0, BLOCK)
    m_col = o_col < WIDTH
    p_row = p_gates + i_row * (3 * WIDTH) + o_col
    b_reset = tl.load(p_row, mask=m_col, other=0.0).to(tl.float32)
    b_candidate = tl.load(p_row + WIDTH, mask=m_col, other=0.0).to(tl.float32)
    b_update = tl.load(p_row + 2 * WIDTH, mask=m_col, other=0.0).to(tl.float32)
    b_mean = tl.sum(b_reset + b_candidate + b_update) / (3 * WIDTH)
    b_reset = tl.where(m_col, b_reset - b_mean, 0.0)
    b_candidate = tl.where(m_col, b_candidate - b_mean, 0.0)
    b_update = tl.where(m_col, b_update - b_mean, 0.0)
    b_square = b_reset * b_reset + b_candidate * b_candidate + b_update * b_update
    b_scale = 1.0 / tl.sqrt(tl.sum(b_square) / (3 * WIDTH) + eps)
    p_weight += o_col
    p_bias += o_col
    b_reset = b_reset * b_scale * tl.load(p_weight, mask=m_col, other=0.0).to(tl.float32)
    b_reset += tl.load(p_bias, mask=m_col, other=0.0).to(tl.float32)
    b_candidate *= b_scale * tl.load(p_weight + WIDTH, mask=m_col, other=0.0).to(tl.float32)
    b_candidate += tl.load(p_bias + WIDTH, mask=m_col, other=0.0).to(tl.float32)
    b_update *= b_scale * tl.load(p_weight + 2 * WIDTH, mask=m_col, other=0.0).to(tl.float32)
    b_update += tl.load(p_bias + 2 * WIDTH, mask=m_col, other=0.0).to(tl.float32)
    b_state = tl.load(p_state + i_row * s_state + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_out = next_state(b_reset, b_candidate, b_update, b_state)
    tl.store(p_out + i_row * s_out + o_col, b_out.to(p_out.dtype.element_ty), mask=m_col)


@triton.jit
def layernorm_gru_bwd_kernel(
    p_grad,  # (rows, WIDTH), contiguous
    p_gates,  # (rows, 3 * WIDTH), contiguous
    p_state,  # (rows, WIDTH), row stride s_state
    p_weight,  # (3 * WIDTH,)
    p_bias,  # (3 * WIDTH,)
    p_grad_gates,  # (rows, 3 * WIDTH), contiguous
    p_grad_state,  # (rows, WIDTH), contiguous
    p_partial,  # (programs, 6, WIDTH), float32: shares of the gradients of weight and bias
    s_state,
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
    p_weight += o_col
    p_bias += o_col
    b_weight_r = tl.load(p_weight, mask=m_col, other=0.0).to(tl.float32)
    b_weight_c = tl.load(p_weight + WIDTH, mask=m_col, other=0.0).to(tl.float32)
    b_weight_u = tl.load(p_weight + 2 * WIDTH, mask=m_col, other=0.0).to(tl.float32)
    b_bias_r = tl.load(p_bias, mask=m_col, other=0.0).to(tl.float32)
    b_bias_c = tl.load(p_bias + WIDTH, mask=m_col, other=0.0).to(tl.float32)
    b_bias_u = tl.load(p_bias + 2 * WIDTH, mask=m_col, other=0.0).to(tl.float32)
    b_sum_wr = tl.zeros((BLOCK,), tl.float32)
    b_sum_wc = tl.zeros((BLOCK,), tl.float32)
    b_sum_wu = tl.zeros((BLOCK,), tl.float32)
    b_sum_br = tl.zeros((BLOCK,), tl.float32)
    b_sum_bc = tl.zeros((BLOCK,), tl.float32)
    b_sum_bu = tl.zeros((BLOCK,), tl.float32)
    for i in range(ROWS):
        i_row = i_program * ROWS + i
        m_row = o_col < tl.where(i_row < rows, WIDTH, 0)
        p_row = p_gates + i_row * (3 * WIDTH) + o_col
        b_r = tl.load(p_row, mask=m_row, other=0.0).to(tl.float32)
        b_c = tl.load(p_row + WIDTH, mask=m_row, other=0.0).to(tl.float32)
        b_u = tl.load(p_row + 2 * WIDTH, mask=m_row, other=0.0).to(tl.float32)
        b_mean = tl.sum(b_r + b_c + b_u) / (3 * WIDTH)
        b_r = tl.where(m_col, b_r - b_mean, 0.0)
        b_c = tl.where(m_col, b_c - b_mean, 0.0)
        b_u = tl.where(m_col, b_u - b_mean, 0.0)
        b_scale = 1.0 / tl.sqrt(tl.sum(b_r * b_r + b_c * b_c + b_u * b_u) / (3 * WIDTH) + eps)
        b_r *= b_scale
        b_c *= b_scale
        b_u *= b_scale
        b_reset = tl.sigmoid(b_r * b_weight_r + b_bias_r)
        b_inner = b_c * b_weight_c + b_bias_c
        b_candidate = _tanh(b_reset * b_inner)
        b_update = tl.sigmoid(b_u * b_weight_u + b_bias_u - 1.0)
        b_state = tl.load(p_state + i_row * s_state + o_col, mask=m_row, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad + i_row * WIDTH + o_col, mask=m_row, other=0.0).to(tl.float32)
        tl.store(
            p_grad_state + i_row * WIDTH + o_col,
            (b_grad * (1.0 - b_update)).to(p_grad_state.dtype.element_ty),
            mask=m_row,
        )
        b_grad_u = b_grad * (b_candidate - b_state) * b_update * (1.0 - b_update)
        b_grad_c = b_grad * b_update * (1.0 - b_candidate * b_candidate)
        b_grad_r = b_grad_c * b_inner * b_reset * (1.0 - b_reset)
        b_grad_c = b_grad_c * b_reset
        if AFFINE:
            b_sum_wr += b_grad_r * b_r
            b_sum_wc += b_grad_c * b_c
            b_sum_wu += b_grad_u * b_u
            b_sum_br += b_grad_r
            b_sum_bc += b_grad_c
            b_sum_bu += b_grad_u
        b_grad_r *= b_weight_r
        b_grad_c *= b_weight_c
        b_grad_u *= b_weight_u
        b_mean = tl.sum(b_grad_r + b_grad_c + b_grad_u) / (3 * WIDTH)
        b_along = tl.sum(b_grad_r * b_r + b_grad_c * b_c + b_grad_u * b_u) / (3 * WIDTH)
        p_row = p_grad_gates + i_row * (3 * WIDTH) + o_col
        dtype: tl.constexpr = p_grad_gates.dtype.element_ty
        tl.store(p_row, ((b_grad_r - b_mean - b_r * b_along) * b_scale).to(dtype), mask=m_row)
        tl.store(
            p_row + WIDTH, ((b_grad_c - b_mean - b_c * b_along) * b_scale).to(dtype), mask=m_row
        )
        tl.store(
            p_row + 2 * WIDTH, ((b_grad_u - b_mean - b_u * b_along) * b_scale).to(dtype), mask=m_row
        )
    if AFFINE:
        p_partial += i_program * 6 * WIDTH + o_col
        tl.store(p_partial, b_sum_wr, mask=m_col)
        tl.store(p_partial + WIDTH, b_sum_wc, mask=m_col)
        tl.store(p_partial + 2 * WIDTH, b_sum_wu, mask=m_col)
        tl.store(p_partial + 3 * WIDTH, b_sum_br, mask=m_col)
        tl.store(p_partial + 4 * WIDTH, b_sum_bc, mask=m_col)
        tl.store(p_partial + 5 * WIDTH, b_sum_bu, mask=m_col)


class GruCellFunction(torch.autograd.Function):
    """The cell behind its matrix product, on (rows, 3D) and (rows, D)."""

    @staticmethod
    def launch_forward(
        gates: Tensor, state: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor
    ) -> Tensor:
        """Fill `out` (rows, D) from gates (rows, 3D), contiguous, and state (rows, D)."""
        rows, width = state.shape
        if rows:
            layernorm_gru_fwd_kernel[(rows,)](
                gates, state, weight, bias, out, state.stride(0), out.stride(0), eps, width,
                tiles.block(width), num_warps=tiles.warps(3 * width),
            )  # fmt: skip
        return out

    @staticmethod
    def launch_backward(
        grad: Tensor,
        gates: Tensor,
        state: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        affine: bool = True,
    ) -> tuple[Tensor, ...]:
        """Gradients of gates and state, and with `affine` those of weight and bias."""
        rows, width = state.shape
        grad_gates, grad_state = torch.empty_like(gates), torch.empty_like(grad)
        each = tiles.rows_each(rows)
        programs = -(-rows // each)
        partial = torch.empty(programs if affine else 0, 2, 3 * width, device=gates.device)
        if rows:
            layernorm_gru_bwd_kernel[(programs,)](
                grad, gates, state, weight, bias, grad_gates, grad_state, partial, state.stride(0),
                rows, eps, width, tiles.block(width), each, affine,
                num_warps=tiles.warps(6 * width),
            )  # fmt: skip
        if not affine:
            return grad_gates, grad_state
        grad_weight, grad_bias = partial.sum(0).to(weight.dtype)
        return grad_gates, grad_state, grad_weight, grad_bias

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, state: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(gates, state, weight, bias)
        ctx.eps = eps
        return GruCellFunction.launch_forward(
            gates, state, weight, bias, eps, torch.empty_like(state)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,) = grads
        affine = any(ctx.needs_input_grad[2:4])
        gates, state, weight, bias = ctx.saved_tensors
        grad = grad_out.contiguous()
        out = GruCellFunction.launch_backward(grad, gates, state, weight, bias, ctx.eps, affine)
        return *out, *([] if affine else [None, None]), None


def layernorm_gru(u: Tensor, h: Tensor, layer: NormLinear, eps: float) -> Tensor:
    """Advance the state: `h' = g c + (1 - g) h`.

    `p = LN(W [u, h])`, split in three; `r = sigmoid(p_r)`, `c = tanh(r p_c)`,
    `g = sigmoid(p_g - 1)` (DreamerV2, arXiv 2010.02193, kept in DreamerV3). The shift by one
    makes an untrained cell remember.

    Args:
        u: (..., U), the input.
        h: (..., D), the state.
        layer: W (3D, U + D), rows in the order reset, candidate, update; norm (3D,).
        eps: added to the variance.

    Returns:
        (..., D), the next state.
    """
    check("layer.weight", layer.weight, None, None)
    width = h.shape[-1]
    check("layer.weight", layer.weight, 3 * width, u.shape[-1] + width)
    for name, tensor in (("norm_weight", layer.norm_weight), ("norm_bias", layer.norm_bias)):
        check(f"layer.{name}", tensor, 3 * width, like=layer.weight)
    check("u", u, u.shape[-1], like=layer.weight)
    check("h", h, width, like=layer.weight)
    if u.shape[:-1] != h.shape[:-1]:
        raise ValueError(f"u and h must have the same rows, got {tuple(u.shape)}, {tuple(h.shape)}")
    gates = F.linear(torch.cat([u, h], dim=-1), layer.weight)
    out: Tensor = GruCellFunction.apply(
        gates.view(-1, 3 * width), h.view(-1, width), layer.norm_weight, layer.norm_bias, eps
    )
    return out.view_as(h)
