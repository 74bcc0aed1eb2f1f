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

AFFINE_ROWS, AFFINE_COLUMNS = 8, 64
"""Rows and columns of a tile of the kernel that sums over rows."""


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def next_state(b_reset, b_candidate, b_update, b_state):
    """The state after a step, from the gates behind their norm and the state before."""
    b_candidate = _tanh(tl.sigmoid(b_reset) * b_candidate)
    return b_state + tl.sigmoid(b_update - 1.0) * (b_candidate - b_state)


@triton.jit
def gate_gradients(b_grad, b_reset, b_inner, b_update, b_state):
    """Gradients of the gates behind their norm, and of the state before, from the state after's."""
    b_reset = tl.sigmoid(b_reset)
    b_candidate = _tanh(b_reset * b_inner)
    b_update = tl.sigmoid(b_update - 1.0)
    b_grad_u = b_grad * (b_candidate - b_state) * b_update * (1.0 - b_update)
    b_grad_c = b_grad * b_update * (1.0 - b_candidate * b_candidate)
    b_grad_r = b_grad_c * b_inner * b_reset * (1.0 - b_reset)
    return b_grad_r, b_grad_c * b_reset, b_grad_u, b_grad * (1.0 - b_update)


@triton.jit
def _load_gates(p_gates, m_col, WIDTH: tl.constexpr):
    """Reset, candidate and update of whatever has all three side by side."""
    b_reset = tl.load(p_gates, mask=m_col, other=0.0).to(tl.float32)
    b_candidate = tl.load(p_gates + WIDTH, mask=m_col, other=0.0).to(tl.float32)
    b_update = tl.load(p_gates + 2 * WIDTH, mask=m_col, other=0.0).to(tl.float32)
    return b_reset, b_candidate, b_update


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
    b_reset, b_candidate, b_update = _load_gates(
        p_gates + i_row * (3 * WIDTH) + o_col, m_col, WIDTH
    )
    b_mean = tl.sum(b_reset + b_candidate + b_update) / (3 * WIDTH)
    b_reset = tl.where(m_col, b_reset - b_mean, 0.0)
    b_candidate = tl.where(m_col, b_candidate - b_mean, 0.0)
    b_update = tl.where(m_col, b_update - b_mean, 0.0)
    b_square = b_reset * b_reset + b_candidate * b_candidate + b_update * b_update
    b_scale = 1.0 / tl.sqrt(tl.sum(b_square) / (3 * WIDTH) + eps)
    b_weight_r, b_weight_c, b_weight_u = _load_gates(p_weight + o_col, m_col, WIDTH)
    b_bias_r, b_bias_c, b_bias_u = _load_gates(p_bias + o_col, m_col, WIDTH)
    b_reset = b_reset * b_scale * b_weight_r + b_bias_r
    b_candidate = b_candidate * b_scale * b_weight_c + b_bias_c
    b_update = b_update * b_scale * b_weight_u + b_bias_u
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
    p_statistics,  # (rows, 2) float32: the norm's mean and inverse deviation
    s_state,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_col = tl.arange(0, BLOCK)
    m_col = o_col < WIDTH
    b_r, b_c, b_u = _load_gates(p_gates + i_row * (3 * WIDTH) + o_col, m_col, WIDTH)
    b_mean = tl.sum(b_r + b_c + b_u) / (3 * WIDTH)
    b_r = tl.where(m_col, b_r - b_mean, 0.0)
    b_c = tl.where(m_col, b_c - b_mean, 0.0)
    b_u = tl.where(m_col, b_u - b_mean, 0.0)
    b_scale = 1.0 / tl.sqrt(tl.sum(b_r * b_r + b_c * b_c + b_u * b_u) / (3 * WIDTH) + eps)
    tl.store(p_statistics + i_row * 2, b_mean)
    tl.store(p_statistics + i_row * 2 + 1, b_scale)
    b_r *= b_scale
    b_c *= b_scale
    b_u *= b_scale
    b_weight_r, b_weight_c, b_weight_u = _load_gates(p_weight + o_col, m_col, WIDTH)
    b_bias_r, b_bias_c, b_bias_u = _load_gates(p_bias + o_col, m_col, WIDTH)
    b_state = tl.load(p_state + i_row * s_state + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_grad = tl.load(p_grad + i_row * WIDTH + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_grad_r, b_grad_c, b_grad_u, b_grad = gate_gradients(
        b_grad,
        b_r * b_weight_r + b_bias_r,
        b_c * b_weight_c + b_bias_c,
        b_u * b_weight_u + b_bias_u,
        b_state,
    )
    p_grad_state += i_row * WIDTH + o_col
    tl.store(p_grad_state, b_grad.to(p_grad_state.dtype.element_ty), mask=m_col)
    b_grad_r *= b_weight_r
    b_grad_c *= b_weight_c
    b_grad_u *= b_weight_u
    b_mean = tl.sum(b_grad_r + b_grad_c + b_grad_u) / (3 * WIDTH)
    b_along = tl.sum(b_grad_r * b_r + b_grad_c * b_c + b_grad_u * b_u) / (3 * WIDTH)
    p_row = p_grad_gates + i_row * (3 * WIDTH) + o_col
    dtype: tl.constexpr = p_grad_gates.dtype.element_ty
    tl.store(p_row, ((b_grad_r - b_mean - b_r * b_along) * b_scale).to(dtype), mask=m_col)
    p_row += WIDTH
    tl.store(p_row, ((b_grad_c - b_mean - b_c * b_along) * b_scale).to(dtype), mask=m_col)
    p_row += WIDTH
    tl.store(p_row, ((b_grad_u - b_mean - b_u * b_along) * b_scale).to(dtype), mask=m_col)


@triton.jit
def layernorm_gru_affine_kernel(
    p_grad,  # (rows, WIDTH), contiguous
    p_gates,  # (rows, 3 * WIDTH), contiguous
    p_state,  # (rows, WIDTH), row stride s_state
    p_weight,  # (3 * WIDTH,)
    p_bias,  # (3 * WIDTH,)
    p_statistics,  # (rows, 2) float32, as the backward kernel left them
    p_partial,  # (programs, 2, 3 * WIDTH) float32: shares of the gradients of weight and bias
    s_state,
    rows,
    WIDTH: tl.constexpr,
    EACH: tl.constexpr,  # rows of a program
    ROWS: tl.constexpr,  # of them at a time
    COLUMNS: tl.constexpr,
):
    i_program = tl.program_id(0)
    o_col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_col = o_col < WIDTH
    b_weight_r, b_weight_c, b_weight_u = _load_gates(p_weight + o_col, m_col, WIDTH)
    b_bias_r, b_bias_c, b_bias_u = _load_gates(p_bias + o_col, m_col, WIDTH)
    b_zeros = tl.zeros((COLUMNS,), tl.float32)
    b_scale_r, b_scale_c, b_scale_u = b_zeros, b_zeros, b_zeros
    b_shift_r, b_shift_c, b_shift_u = b_zeros, b_zeros, b_zeros
    for i in range(0, EACH, ROWS):
        o_row = (i_program * EACH + i + tl.arange(0, ROWS)).to(tl.int64)
        m_row = o_row < rows
        m_tile = m_row[:, None] & m_col[None, :]
        b_mean = tl.load(p_statistics + o_row * 2, mask=m_row, other=0.0)
        b_rate = tl.load(p_statistics + o_row * 2 + 1, mask=m_row, other=0.0)
        p_row = p_gates + o_row[:, None] * (3 * WIDTH) + o_col[None, :]
        b_r, b_c, b_u = _load_gates(p_row, m_tile, WIDTH)
        b_r = (b_r - b_mean[:, None]) * b_rate[:, None]
        b_c = (b_c - b_mean[:, None]) * b_rate[:, None]
        b_u = (b_u - b_mean[:, None]) * b_rate[:, None]
        p_row = p_state + o_row[:, None] * s_state + o_col[None, :]
        b_state = tl.load(p_row, mask=m_tile, other=0.0).to(tl.float32)
        p_row = p_grad + o_row[:, None] * WIDTH + o_col[None, :]
        b_grad = tl.load(p_row, mask=m_tile, other=0.0).to(tl.float32)
        b_grad_r, b_grad_c, b_grad_u, _ = gate_gradients(
            b_grad,
            b_r * b_weight_r[None, :] + b_bias_r[None, :],
            b_c * b_weight_c[None, :] + b_bias_c[None, :],
            b_u * b_weight_u[None, :] + b_bias_u[None, :],
            b_state,
        )
        b_scale_r += tl.sum(b_grad_r * b_r, 0)
        b_scale_c += tl.sum(b_grad_c * b_c, 0)
        b_scale_u += tl.sum(b_grad_u * b_u, 0)
        b_shift_r += tl.sum(b_grad_r, 0)
        b_shift_c += tl.sum(b_grad_c, 0)
        b_shift_u += tl.sum(b_grad_u, 0)
    p_partial += i_program * 6 * WIDTH + o_col
    tl.store(p_partial, b_scale_r, mask=m_col)
    tl.store(p_partial + WIDTH, b_scale_c, mask=m_col)
    tl.store(p_partial + 2 * WIDTH, b_scale_u, mask=m_col)
    tl.store(p_partial + 3 * WIDTH, b_shift_r, mask=m_col)
    tl.store(p_partial + 4 * WIDTH, b_shift_c, mask=m_col)
    tl.store(p_partial + 5 * WIDTH, b_shift_u, mask=m_col)


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
                tiles.block(width), **tiles.launch(tiles.warps(3 * width)),
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
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of gates and state, and the norm's statistics, which `launch_affine` reads.

        Args:
            grad: (rows, D), contiguous.
            gates: (rows, 3D), contiguous.
            state: (rows, D).
            weight: (3D,), of the norm.
            bias: (3D,).
            eps: added to the variance.
            out: where the gradient of the gates is written, contiguous; None makes room.
        """
        rows, width = state.shape
        grad_gates = torch.empty_like(gates) if out is None else out
        grad_state, statistics = torch.empty_like(grad), torch.empty(rows, 2, device=gates.device)
        if rows:
            layernorm_gru_bwd_kernel[(rows,)](
                grad, gates, state, weight, bias, grad_gates, grad_state, statistics,
                state.stride(0), eps, width, tiles.block(width),
                **tiles.launch(tiles.warps(3 * width)),
            )  # fmt: skip
        return grad_gates, grad_state, statistics

    @staticmethod
    def launch_affine(
        grad: Tensor, gates: Tensor, state: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the norm's weight and bias, summed over rows.

        Apart from `launch_backward`, so that a sequence needs one launch for all of its steps.
        """
        rows, width = state.shape
        across = triton.cdiv(width, AFFINE_COLUMNS)
        each = max(AFFINE_ROWS, tiles.rows_each(rows * across))
        programs = triton.cdiv(rows, each)
        partial = torch.empty(programs, 2, 3 * width, device=gates.device)
        if rows:
            layernorm_gru_affine_kernel[(programs, across)](
                grad, gates, state, weight, bias, statistics, partial, state.stride(0), rows,
                width, each, AFFINE_ROWS, AFFINE_COLUMNS, **tiles.launch(4),
            )  # fmt: skip
        grad_weight, grad_bias = partial.sum(0).to(weight.dtype)
        return grad_weight, grad_bias

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
        gates, state, weight, bias = ctx.saved_tensors
        grad = grad_out.contiguous()
        grad_gates, grad_state, statistics = GruCellFunction.launch_backward(
            grad, gates, state, weight, bias, ctx.eps
        )
        affine: tuple[Tensor | None, ...] = (None, None)
        if any(ctx.needs_input_grad[2:4]):
            affine = GruCellFunction.launch_affine(grad, gates, state, weight, bias, statistics)
        return grad_gates, grad_state, *affine, None


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
