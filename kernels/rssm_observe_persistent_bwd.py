"""The reverse of `rssm_observe`'s recurrence in one launch: five phases a step, from last to first.

The programs own columns and meet as they do forward. What needs no recurrence is left for all steps
at once: the gradients of the weights, and of the layer norms' scales and shifts.

| phase | reads | writes |
|---|---|---|
| latents | what the next step asks of its input layer | the gradient of a group's logits |
| hidden | those | columns of the posterior's hidden layer |
| state | the hidden layer's | columns j of h, and of the gates up to their norm's two sums |
| gates | those sums | columns j of all three gates |
| before | the gates' | columns of the input layer's output, and of the h before |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels.barrier import wait_for_all
from mudreamer_fast.kernels.categorical import probs, to_logits
from mudreamer_fast.kernels.rssm_observe_persistent_fwd import (
    COLUMNS,
    OPTIONS,
    SUMS,
    ObserveWeights,
    Saved,
    Sums,
    constants,
    dot,
    inner,
    load_rows,
    programs,
    slice_of,
    statistics,
)
from mudreamer_fast.ops.signatures import BatchNormState


class Gradients(NamedTuple):
    """Gradients by step, each (T, B, size)."""

    logits: Tensor
    """Of the posterior's logits."""
    acts: Tensor
    """Of the posterior's hidden layer's output."""
    hidden: Tensor
    """Of that layer before its batch norm; not filled in under layer norm."""
    affine: Tensor
    """(T, 2, U) float32, each step's share to the batch norm's scale and shift; likewise."""
    deter: Tensor
    """Of h after the step."""
    gates: Tensor
    """Of the gates before their norm."""
    input: Tensor
    """Of the input layer's output."""
    before: Tensor
    """Of the h that the step starts from, through the step."""


@triton.jit
def _load_transposed(p_weight, s_weight, o_col, m_col, o_k, SIZE: tl.constexpr):
    """Columns (SLICES, SLICE, columns) of a weight (SIZE, columns or more)."""
    m_weight = m_col[None, None, :] & (o_k < SIZE)[:, :, None]
    p_weight += o_k[:, :, None] * s_weight + o_col[None, None, :]
    return tl.load(p_weight, mask=m_weight, other=0.0)


@triton.jit
def _product(
    p_x,  # (ROWS, SIZE), row stride s_x
    s_x,
    i_row,
    p_weight,  # (SIZE, columns or more), row stride s_weight
    s_weight,
    o_col,
    m_col,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    SLICES: tl.constexpr,
    SLICE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows and columns (rows, columns) of `x weight`, as float32."""
    b_sum = tl.zeros((SLICES, i_row.shape[0], o_col.shape[0]), tl.float32)
    for k in range(0, SIZE, SLICES * SLICE):
        o_k = k + inner(SLICES, SLICE)
        b_x = load_rows(p_x, s_x, i_row, o_k, ROWS, SIZE)
        b_weight = _load_transposed(p_weight, s_weight, o_col, m_col, o_k, SIZE)
        b_sum = dot(b_x, b_weight, b_sum, OPERAND, PRECISION)
    return tl.sum(b_sum, axis=0)


@triton.jit
def _before_norm(b_grad, b_x, b_scale, b_shift):
    """Take the gradient of `SiLU(scale x + shift)` to that of the normalised x."""
    b_y = b_x * b_scale + b_shift
    b_sigmoid = tl.sigmoid(b_y)
    return b_grad * b_sigmoid * (1.0 + b_y * (1.0 - b_sigmoid)) * b_scale


@triton.jit
def _store_sums(p_sums, b_grad, b_x, m_row, TILES: tl.constexpr):
    """Leave a tile's share of what a layer norm's gradient needs of whole rows.

    Args:
        p_sums: (rows,) pointers to the tile's sums, of (rows, 2, TILES).
        b_grad: (rows, columns), of the normalised x.
        b_x: (rows, columns), the normalised x.
        m_row: (rows,), which rows are there.
        TILES: of the layer.
    """
    tl.store(p_sums, tl.sum(b_grad, axis=1), mask=m_row)
    tl.store(p_sums + TILES, tl.sum(b_grad * b_x, axis=1), mask=m_row)


@triton.jit
def _means(p_sums, m_row, SIZE: tl.constexpr, TILES: tl.constexpr):
    """Means (rows,) over rows of SIZE, of the gradient and of its product with x."""
    o_tile = tl.arange(0, SUMS)
    b_grad = tl.zeros_like(m_row.to(tl.float32))
    b_along = b_grad
    for k in range(0, TILES, SUMS):
        m_sums = m_row[:, None] & (k + o_tile < TILES)[None, :]
        p_tiles = p_sums[:, None] + (k + o_tile)[None, :]
        b_grad += tl.sum(tl.load(p_tiles, mask=m_sums, other=0.0), axis=1) / SIZE
        b_along += tl.sum(tl.load(p_tiles + TILES, mask=m_sums, other=0.0), axis=1) / SIZE
    return b_grad, b_along


@triton.jit
def _product_through_norm(
    p_grad,  # (ROWS, SIZE), contiguous: of the layer's output
    p_x,  # (ROWS, SIZE), contiguous: the layer before its norm
    p_statistics,  # (ROWS, 2, tiles), of the layer
    p_sums,  # (ROWS, 2, tiles), of its gradient; see _store_sums
    p_scale,
    p_shift,
    eps,
    i_row,
    p_weight,  # (SIZE, columns or more), row stride s_weight
    s_weight,
    o_col,
    m_col,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLICES: tl.constexpr,
    SLICE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows and columns (rows, columns) of `x weight`, x the gradient before norm and SiLU."""
    TILES: tl.constexpr = (SIZE + COLUMNS - 1) // COLUMNS
    m_row = i_row < ROWS
    b_mean, b_rate = statistics(p_statistics + i_row * (2 * TILES), m_row, eps, SIZE, 1, COLUMNS)
    b_grad_mean, b_along = _means(p_sums + i_row * (2 * TILES), m_row, SIZE, TILES)
    dtype: tl.constexpr = p_grad.dtype.element_ty
    b_sum = tl.zeros((SLICES, i_row.shape[0], o_col.shape[0]), tl.float32)
    for k in range(0, SIZE, SLICES * SLICE):
        o_k = k + inner(SLICES, SLICE)
        m_k = o_k < SIZE
        b_x = load_rows(p_x, SIZE, i_row, o_k, ROWS, SIZE).to(tl.float32)
        b_x = (b_x - b_mean[None, :, None]) * b_rate[None, :, None]
        b_scale = tl.load(p_scale + o_k, mask=m_k, other=0.0).to(tl.float32)
        b_shift = tl.load(p_shift + o_k, mask=m_k, other=0.0).to(tl.float32)
        b_grad = load_rows(p_grad, SIZE, i_row, o_k, ROWS, SIZE).to(tl.float32)
        b_grad = _before_norm(b_grad, b_x, b_scale[:, None, :], b_shift[:, None, :])
        b_grad -= b_grad_mean[None, :, None] + b_x * b_along[None, :, None]
        b_grad = (b_grad * b_rate[None, :, None]).to(dtype)
        b_weight = _load_transposed(p_weight, s_weight, o_col, m_col, o_k, SIZE)
        b_sum = dot(b_grad, b_weight, b_sum, OPERAND, PRECISION)
    return tl.sum(b_sum, axis=0)


@triton.jit
def _from_next(b_grad, p_first, s_first, i_row, ROWS: tl.constexpr):
    """What the next step asks of this: nothing, where an episode begins there."""
    b_first = tl.load(p_first + i_row * s_first, mask=i_row < ROWS, other=1).to(tl.int1)
    return tl.where(b_first[:, None], 0.0, b_grad)


@triton.jit
def _gate(p_gate, m_tile, b_mean, b_rate, p_scale, p_shift, o_col, m_col):
    """Columns of one gate (rows, columns): normalised, its scale, and both applied."""
    b_x = tl.load(p_gate, mask=m_tile, other=0.0).to(tl.float32)
    b_x = tl.where(m_tile, (b_x - b_mean[:, None]) * b_rate[:, None], 0.0)
    b_scale = tl.load(p_scale + o_col, mask=m_col, other=0.0).to(tl.float32)[None, :]
    b_shift = tl.load(p_shift + o_col, mask=m_col, other=0.0).to(tl.float32)[None, :]
    return b_x, b_scale, b_x * b_scale + b_shift


@triton.jit
def _finish_gate(
    p_grad, p_raw, p_gate, m_tile, b_mean, b_rate, b_grad_mean, b_along
):  # fmt: skip
    """Take one gate's columns through the norm."""
    b_x = tl.load(p_gate, mask=m_tile, other=0.0).to(tl.float32)
    b_x = (b_x - b_mean[:, None]) * b_rate[:, None]
    b_grad = tl.load(p_raw, mask=m_tile, other=0.0).to(tl.float32)
    b_grad = (b_grad - b_grad_mean[:, None] - b_x * b_along[:, None]) * b_rate[:, None]
    tl.store(p_grad, b_grad.to(p_grad.dtype.element_ty), mask=m_tile)


@triton.jit
def rssm_observe_persistent_bwd_kernel(
    p_arrived,  # () int32, 0
    p_wanted_deter,  # (STEPS, ROWS, DETER), what is asked of h but by later steps
    p_wanted_stoch,  # (STEPS, ROWS, LATENTS), of z
    p_wanted_logits,  # (STEPS, ROWS, LATENTS), of the posterior's logits
    p_buffer,  # (STEPS, ROWS, s_buffer): [u | h | z | a] before each step
    p_first,  # (ROWS, STEPS) bool
    p_input_pre,  # (STEPS, ROWS, HIDDEN)
    p_input_statistics,  # (STEPS, ROWS, 2, tiles) float32
    p_gates,  # (STEPS, ROWS, 3 * DETER)
    p_gate_statistics,  # (STEPS, ROWS, 2, 3 * tiles) float32
    p_hidden_pre,  # (STEPS, ROWS, HIDDEN)
    p_hidden_statistics,  # (STEPS, ROWS, 2, tiles) float32; in the mode "layer" only
    p_means,  # (STEPS, HIDDEN) or, in the mode "running", (HIDDEN,)
    p_variances,  # as the means
    p_logits,  # (STEPS, ROWS, LATENTS)
    p_input_weight,  # (HIDDEN, LATENTS), row stride s_input_weight
    p_input_scale,  # (HIDDEN,)
    p_input_shift,  # (HIDDEN,)
    p_gru_weight,  # (3 * DETER, HIDDEN + DETER), contiguous
    p_gru_scale,  # (3 * DETER,)
    p_gru_shift,  # (3 * DETER,)
    p_hidden_weight,  # (HIDDEN, DETER), row stride s_hidden_weight
    p_hidden_scale,  # (HIDDEN,)
    p_hidden_shift,  # (HIDDEN,)
    p_out_weight,  # (LATENTS, HIDDEN), contiguous
    p_grad_logits,  # (STEPS, ROWS, LATENTS), written, as all that follow
    p_grad_acts,  # (STEPS, ROWS, HIDDEN), of the posterior's hidden layer's output
    p_hidden_sums,  # (STEPS, ROWS, 2, tiles) float32; in the mode "layer" only
    p_grad_hidden,  # (STEPS, ROWS, HIDDEN), before its batch norm; in the other modes, as
    p_affine,  # (STEPS, 2, HIDDEN) float32, a step's share of the batch norm's scale and shift
    p_grad_deter,  # (STEPS, ROWS, DETER), of h
    p_kept,  # (STEPS, ROWS, DETER), its share to the h before that passes the gates by
    p_raw_gates,  # (STEPS, ROWS, 3 * DETER), of the normalised gates
    p_gate_sums,  # (STEPS, ROWS, 2, 3 * tiles) float32
    p_grad_gates,  # (STEPS, ROWS, 3 * DETER), of the gates before their norm
    p_grad_input,  # (STEPS, ROWS, HIDDEN), of the input layer's output
    p_input_sums,  # (STEPS, ROWS, 2, tiles) float32
    p_grad_before,  # (STEPS, ROWS, DETER), of the h that a step starts from
    s_buffer,
    s_input_weight,
    s_hidden_weight,
    STEPS,
    eps,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    DETER: tl.constexpr,
    GROUPS: tl.constexpr,
    CLASSES: tl.constexpr,
    UNIMIX: tl.constexpr,
    NORM: tl.constexpr,  # "batch", "running" or "layer"
    BLOCK: tl.constexpr,  # rows of a product
    ALL: tl.constexpr,  # ROWS, padded
    COLUMNS: tl.constexpr,
    CLASS: tl.constexpr,  # CLASSES, padded
    SLICES: tl.constexpr,
    SLICE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_program = tl.program_id(0)
    programs = tl.num_programs(0)
    LATENTS: tl.constexpr = GROUPS * CLASSES
    HIDDEN_TILES: tl.constexpr = (HIDDEN + COLUMNS - 1) // COLUMNS
    DETER_TILES: tl.constexpr = (DETER + COLUMNS - 1) // COLUMNS
    WIDTH: tl.constexpr = HIDDEN + DETER
    o_block = tl.arange(0, BLOCK)
    o_column = tl.arange(0, COLUMNS)
    dtype: tl.constexpr = p_grad_logits.dtype.element_ty
    met = 0
    t = STEPS - 1
    while t >= 0:
        i_step = tl.full((), t, tl.int64) * ROWS
        i_next = i_step + ROWS

        tile = i_program
        while tile < GROUPS:
            o_class = tl.arange(0, CLASS)
            o_col = tile * CLASSES + o_class
            m_col = o_class < CLASSES
            for i in range(0, ROWS, BLOCK):
                i_row = i + o_block
                m_tile = (i_row < ROWS)[:, None] & m_col[None, :]
                o_tile = (i_step + i_row)[:, None] * LATENTS + o_col[None, :]
                b_grad = tl.load(p_wanted_stoch + o_tile, mask=m_tile, other=0.0).to(tl.float32)
                if t + 1 < STEPS:
                    b_next = _product_through_norm(
                        p_grad_input + i_next * HIDDEN, p_input_pre + i_next * HIDDEN,
                        p_input_statistics + i_next * (2 * HIDDEN_TILES),
                        p_input_sums + i_next * (2 * HIDDEN_TILES), p_input_scale, p_input_shift,
                        eps, i_row, p_input_weight, s_input_weight, o_col, m_col, ROWS, HIDDEN,
                        COLUMNS, SLICES, SLICE, OPERAND, PRECISION,
                    )  # fmt: skip
                    b_grad += _from_next(b_next, p_first + t + 1, STEPS, i_row, ROWS)
                b_logits = tl.load(p_logits + o_tile, mask=m_tile, other=0.0).to(tl.float32)
                b_logits = tl.where(m_col[None, :], b_logits, float("-inf"))
                b_soft, _, _ = probs(b_logits, o_class, CLASSES, UNIMIX)
                b_grad = to_logits(b_grad, b_soft, UNIMIX)
                b_grad += tl.load(p_wanted_logits + o_tile, mask=m_tile, other=0.0).to(tl.float32)
                tl.store(p_grad_logits + o_tile, b_grad.to(dtype), mask=m_tile)
            tile += programs
        met += programs
        wait_for_all(p_arrived, met)

        tile = i_program
        while tile < HIDDEN_TILES:
            o_col = tile * COLUMNS + o_column
            m_col = o_col < HIDDEN
            b_scale = tl.load(p_hidden_scale + o_col, mask=m_col, other=0.0).to(tl.float32)
            b_shift = tl.load(p_hidden_shift + o_col, mask=m_col, other=0.0).to(tl.float32)
            for i in range(0, ROWS, BLOCK):
                i_row = i + o_block
                m_row = i_row < ROWS
                m_tile = m_row[:, None] & m_col[None, :]
                o_tile = (i_step + i_row)[:, None] * HIDDEN + o_col[None, :]
                b_grad = _product(
                    p_grad_logits + i_step * LATENTS, LATENTS, i_row, p_out_weight, HIDDEN, o_col,
                    m_col, ROWS, LATENTS, SLICES, SLICE, OPERAND, PRECISION,
                )  # fmt: skip
                tl.store(p_grad_acts + o_tile, b_grad.to(dtype), mask=m_tile)
                if NORM == "layer":
                    o_sums = (i_step + i_row) * (2 * HIDDEN_TILES)
                    b_mean, b_rate = statistics(
                        p_hidden_statistics + o_sums, m_row, eps, HIDDEN, 1, COLUMNS
                    )
                    b_x = tl.load(p_hidden_pre + o_tile, mask=m_tile, other=0.0).to(tl.float32)
                    b_x = (b_x - b_mean[:, None]) * b_rate[:, None]
                    b_grad = _before_norm(b_grad, b_x, b_scale[None, :], b_shift[None, :])
                    _store_sums(p_hidden_sums + o_sums + tile, b_grad, b_x, m_row, HIDDEN_TILES)
            if NORM != "layer":
                # The rows of other warps, or of a block before, are in memory by now.
                tl.debug_barrier()
                i_row = tl.arange(0, ALL)
                m_tile = (i_row < ROWS)[:, None] & m_col[None, :]
                o_tile = (i_step + i_row)[:, None] * HIDDEN + o_col[None, :]
                o_mean = o_col
                if NORM == "batch":
                    o_mean += t * HIDDEN
                b_mean = tl.load(p_means + o_mean, mask=m_col, other=0.0).to(tl.float32)
                b_var = tl.load(p_variances + o_mean, mask=m_col, other=1.0).to(tl.float32)
                b_rate = 1.0 / tl.sqrt(b_var + eps)
                b_x = tl.load(p_hidden_pre + o_tile, mask=m_tile, other=0.0).to(tl.float32)
                b_x = (b_x - b_mean[None, :]) * b_rate[None, :]
                b_grad = tl.load(p_grad_acts + o_tile, mask=m_tile, other=0.0).to(tl.float32)
                b_y = b_x * b_scale[None, :] + b_shift[None, :]
                b_sigmoid = tl.sigmoid(b_y)
                b_grad *= b_sigmoid * (1.0 + b_y * (1.0 - b_sigmoid))
                b_sum_scale = tl.sum(b_grad * b_x, axis=0)
                b_sum_shift = tl.sum(b_grad, axis=0)
                p_step = p_affine + tl.full((), t, tl.int64) * (2 * HIDDEN) + o_col
                tl.store(p_step, b_sum_scale, mask=m_col)
                tl.store(p_step + HIDDEN, b_sum_shift, mask=m_col)
                if NORM == "batch":
                    b_grad -= (b_sum_shift[None, :] + b_x * b_sum_scale[None, :]) / ROWS
                b_grad *= (b_scale * b_rate)[None, :]
                tl.store(p_grad_hidden + o_tile, b_grad.to(dtype), mask=m_tile)
            tile += programs
        met += programs
        wait_for_all(p_arrived, met)

        tile = i_program
        while tile < DETER_TILES:
            o_col = tile * COLUMNS + o_column
            m_col = o_col < DETER
            for i in range(0, ROWS, BLOCK):
                i_row = i + o_block
                m_row = i_row < ROWS
                m_tile = m_row[:, None] & m_col[None, :]
                if NORM == "layer":
                    b_grad = _product_through_norm(
                        p_grad_acts + i_step * HIDDEN, p_hidden_pre + i_step * HIDDEN,
                        p_hidden_statistics + i_step * (2 * HIDDEN_TILES),
                        p_hidden_sums + i_step * (2 * HIDDEN_TILES), p_hidden_scale,
                        p_hidden_shift, eps, i_row, p_hidden_weight, s_hidden_weight, o_col, m_col,
                        ROWS, HIDDEN, COLUMNS, SLICES, SLICE, OPERAND, PRECISION,
                    )  # fmt: skip
                else:
                    b_grad = _product(
                        p_grad_hidden + i_step * HIDDEN, HIDDEN, i_row, p_hidden_weight,
                        s_hidden_weight, o_col, m_col, ROWS, HIDDEN, SLICES, SLICE, OPERAND,
                        PRECISION,
                    )  # fmt: skip
                o_tile = (i_step + i_row)[:, None] * DETER + o_col[None, :]
                b_grad += tl.load(p_wanted_deter + o_tile, mask=m_tile, other=0.0).to(tl.float32)
                if t + 1 < STEPS:
                    p_next = p_grad_before + ROWS * DETER + o_tile
                    b_next = tl.load(p_next, mask=m_tile, other=0.0).to(tl.float32)
                    b_grad += _from_next(b_next, p_first + t + 1, STEPS, i_row, ROWS)
                tl.store(p_grad_deter + o_tile, b_grad.to(dtype), mask=m_tile)

                o_sums = (i_step + i_row) * (6 * DETER_TILES)
                b_mean, b_rate = statistics(
                    p_gate_statistics + o_sums, m_row, eps, DETER, 3, COLUMNS
                )
                p_gate = p_gates + (i_step + i_row)[:, None] * (3 * DETER) + o_col[None, :]
                b_r, b_scale_r, b_reset = _gate(
                    p_gate, m_tile, b_mean, b_rate, p_gru_scale, p_gru_shift, o_col, m_col
                )
                b_c, b_scale_c, b_inner = _gate(
                    p_gate + DETER, m_tile, b_mean, b_rate, p_gru_scale + DETER,
                    p_gru_shift + DETER, o_col, m_col,
                )  # fmt: skip
                b_u, b_scale_u, b_update = _gate(
                    p_gate + 2 * DETER, m_tile, b_mean, b_rate, p_gru_scale + 2 * DETER,
                    p_gru_shift + 2 * DETER, o_col, m_col,
                )  # fmt: skip
                b_reset = tl.sigmoid(b_reset)
                b_candidate = 2.0 * tl.sigmoid(2.0 * b_reset * b_inner) - 1.0
                b_update = tl.sigmoid(b_update - 1.0)
                p_state = p_buffer + (i_step + i_row)[:, None] * s_buffer + HIDDEN + o_col[None, :]
                b_state = tl.load(p_state, mask=m_tile, other=0.0).to(tl.float32)
                tl.store(p_kept + o_tile, (b_grad * (1.0 - b_update)).to(dtype), mask=m_tile)
                b_grad_u = b_grad * (b_candidate - b_state) * b_update * (1.0 - b_update)
                b_grad_c = b_grad * b_update * (1.0 - b_candidate * b_candidate)
                b_grad_r = b_grad_c * b_inner * b_reset * (1.0 - b_reset) * b_scale_r
                b_grad_c = b_grad_c * b_reset * b_scale_c
                b_grad_u = b_grad_u * b_scale_u
                p_raw = p_raw_gates + (i_step + i_row)[:, None] * (3 * DETER) + o_col[None, :]
                tl.store(p_raw, b_grad_r.to(dtype), mask=m_tile)
                tl.store(p_raw + DETER, b_grad_c.to(dtype), mask=m_tile)
                tl.store(p_raw + 2 * DETER, b_grad_u.to(dtype), mask=m_tile)
                p_sums = p_gate_sums + o_sums + tile
                T3: tl.constexpr = 3 * DETER_TILES
                _store_sums(p_sums, b_grad_r, b_r, m_row, T3)
                _store_sums(p_sums + DETER_TILES, b_grad_c, b_c, m_row, T3)
                _store_sums(p_sums + 2 * DETER_TILES, b_grad_u, b_u, m_row, T3)
            tile += programs
        met += programs
        wait_for_all(p_arrived, met)

        tile = i_program
        while tile < DETER_TILES:
            o_col = tile * COLUMNS + o_column
            m_col = o_col < DETER
            for i in range(0, ROWS, BLOCK):
                i_row = i + o_block
                m_row = i_row < ROWS
                m_tile = m_row[:, None] & m_col[None, :]
                o_sums = (i_step + i_row) * (6 * DETER_TILES)
                b_mean, b_rate = statistics(
                    p_gate_statistics + o_sums, m_row, eps, DETER, 3, COLUMNS
                )
                b_grad, b_along = _means(p_gate_sums + o_sums, m_row, 3 * DETER, 3 * DETER_TILES)
                o_gate = (i_step + i_row)[:, None] * (3 * DETER) + o_col[None, :]
                for part in range(3):
                    _finish_gate(
                        p_grad_gates + o_gate + part * DETER, p_raw_gates + o_gate + part * DETER,
                        p_gates + o_gate + part * DETER, m_tile, b_mean, b_rate, b_grad, b_along,
                    )  # fmt: skip
            tile += programs
        met += programs
        wait_for_all(p_arrived, met)

        tile = i_program
        while tile < HIDDEN_TILES + DETER_TILES:
            if tile < HIDDEN_TILES:
                o_col = tile * COLUMNS + o_column
                m_col = o_col < HIDDEN
                b_scale = tl.load(p_input_scale + o_col, mask=m_col, other=0.0).to(tl.float32)
                b_shift = tl.load(p_input_shift + o_col, mask=m_col, other=0.0).to(tl.float32)
                for i in range(0, ROWS, BLOCK):
                    i_row = i + o_block
                    m_row = i_row < ROWS
                    m_tile = m_row[:, None] & m_col[None, :]
                    b_grad = _product(
                        p_grad_gates + i_step * (3 * DETER), 3 * DETER, i_row, p_gru_weight, WIDTH,
                        o_col, m_col, ROWS, 3 * DETER, SLICES, SLICE, OPERAND, PRECISION,
                    )  # fmt: skip
                    o_tile = (i_step + i_row)[:, None] * HIDDEN + o_col[None, :]
                    tl.store(p_grad_input + o_tile, b_grad.to(dtype), mask=m_tile)
                    o_sums = (i_step + i_row) * (2 * HIDDEN_TILES)
                    b_mean, b_rate = statistics(
                        p_input_statistics + o_sums, m_row, eps, HIDDEN, 1, COLUMNS
                    )
                    b_x = tl.load(p_input_pre + o_tile, mask=m_tile, other=0.0).to(tl.float32)
                    b_x = (b_x - b_mean[:, None]) * b_rate[:, None]
                    b_grad = _before_norm(b_grad, b_x, b_scale[None, :], b_shift[None, :])
                    _store_sums(p_input_sums + o_sums + tile, b_grad, b_x, m_row, HIDDEN_TILES)
            else:
                o_col = (tile - HIDDEN_TILES) * COLUMNS + o_column
                m_col = o_col < DETER
                for i in range(0, ROWS, BLOCK):
                    i_row = i + o_block
                    m_tile = (i_row < ROWS)[:, None] & m_col[None, :]
                    b_grad = _product(
                        p_grad_gates + i_step * (3 * DETER), 3 * DETER, i_row,
                        p_gru_weight + HIDDEN, WIDTH, o_col, m_col, ROWS, 3 * DETER, SLICES, SLICE,
                        OPERAND, PRECISION,
                    )  # fmt: skip
                    o_tile = (i_step + i_row)[:, None] * DETER + o_col[None, :]
                    b_grad += tl.load(p_kept + o_tile, mask=m_tile, other=0.0).to(tl.float32)
                    tl.store(p_grad_before + o_tile, b_grad.to(dtype), mask=m_tile)
            tile += programs
        met += programs
        wait_for_all(p_arrived, met)
        t -= 1


def launch_backward(
    saved: Saved,
    sums: Sums,
    grad_outputs: Sequence[Tensor],
    is_first: Tensor,
    weights: ObserveWeights,
    batch_norm: BatchNormState | None,
    unimix: float,
    eps: float,
    stoch: Sequence[int],
) -> Gradients:
    """Walk back through all steps that `launch_forward` filled in.

    Args:
        saved: by it.
        sums: that it gave.
        grad_outputs: gradients (T, B, D), (T, B, G*C), (T, B, G*C) of h, z and the posterior's
            logits.
        is_first: (B, T) bool.
        weights: as it took them.
        batch_norm: likewise.
        unimix: likewise.
        eps: likewise.
        stoch: G and C.
    """
    steps, rows, hidden = saved.input_pre.shape
    deter, device = saved.deters.shape[2], saved.deters.device
    groups, classes = stoch
    norm, means = "layer", (weights.hidden.norm_weight, weights.hidden.norm_bias)
    if batch_norm is not None:
        norm = "batch" if batch_norm.use_batch else "running"
        means = (saved.means, saved.variances) if norm == "batch" else batch_norm[:2]
    empty = torch.empty_like
    gradients = Gradients(
        logits=empty(saved.logits),
        acts=empty(saved.acts),
        hidden=empty(saved.hidden_pre),
        affine=torch.empty(steps, 2, hidden, device=device),
        deter=empty(saved.deters),
        gates=empty(saved.gates),
        input=empty(saved.input_pre),
        before=empty(saved.deters),
    )
    of_input, of_gates, of_hidden = (empty(tensor) for tensor in sums)
    *multiplied, _ = weights.tensors()  # all but the output's bias
    work = -(-hidden // COLUMNS) - (-deter // COLUMNS)
    rssm_observe_persistent_bwd_kernel[(programs(max(work, groups), device),)](
        torch.zeros((), dtype=torch.int32, device=device), *grad_outputs, saved.buffer, is_first,
        saved.input_pre, sums.input, saved.gates, sums.gates, saved.hidden_pre, sums.hidden,
        *means, saved.logits, *multiplied, gradients.logits, gradients.acts, of_hidden,
        gradients.hidden, gradients.affine, gradients.deter, empty(saved.deters),
        empty(saved.gates), of_gates, gradients.gates, gradients.input, of_input,
        gradients.before, saved.buffer.stride(1), weights.input.weight.stride(0),
        weights.hidden.weight.stride(0), steps, eps, UNIMIX=unimix, NORM=norm,
        **constants(rows, hidden, deter, groups, classes, saved.logits.dtype),
        SLICE=slice_of(hidden, deter), **OPTIONS,
    )  # fmt: skip
    return gradients
