"""The recurrence of `rssm_observe` in one launch: programs own columns, and meet five times a step.

A step is five phases. In each of them a program computes columns of its own for all rows, from
what all programs wrote in the phase before; between two phases stands a barrier. Every element is
written once, so that no program can read an old one.

| phase | reads | writes |
|---|---|---|
| input | z | columns of the input layer, before its norm |
| gates | the input layer, h | columns j of all three gates, and their part of the norm's sums |
| state | those sums | columns j of the next h |
| hidden | h | columns of the posterior's hidden layer, whose batch norm needs no other program |
| latents | the hidden layer | the logits of a group of latents, and its draw |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels import tiles
from mudreamer_fast.kernels.barrier import wait_for_all
from mudreamer_fast.kernels.categorical import drawn, probs
from mudreamer_fast.kernels.device import INTERPRETED
from mudreamer_fast.kernels.layernorm_gru import next_state
from mudreamer_fast.ops.signatures import BatchNormState, Linear, NormLinear

SLICES = 8
"""Warps of a program, each with a slice of a product's inner axis."""
NARROW = 512
"""Widest layers of which a program holds 32 elements of a slice at a time; of wider ones, 16."""
KEPT_DTYPES = (torch.bfloat16,)
"""Weights of which a program can hold all that it multiplies with, at size S."""
SUMS = tl.constexpr(64)
"""Tiles whose sums a program holds at a time."""
BLOCK = 16
"""Rows of a product: the least that tensor cores take."""
OPERANDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
COLUMNS = 8
"""Columns of a product: the least that they take, so that most programs have work."""
MAX_ROWS = 64
"""More of a column, for batch norm, does not fit a program's registers."""


class ObserveWeights(NamedTuple):
    """The weights of the recurrence."""

    input: NormLinear
    """Of the input layer."""
    gru: NormLinear
    """Of the cell."""
    hidden: NormLinear
    """Of the posterior's hidden layer, without the embedding's columns."""
    out: Linear
    """Of the posterior's output."""

    def tensors(self) -> list[Tensor]:
        """All eleven, in their order."""
        return [tensor for layer in self for tensor in layer]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> ObserveWeights:
        """What `tensors` gave, with names again."""
        return cls(
            NormLinear(*tensors[:3]),
            NormLinear(*tensors[3:6]),
            NormLinear(*tensors[6:9]),
            Linear(*tensors[9:]),
        )


class Inputs(NamedTuple):
    """What the recurrence reads of each step."""

    embed_part: Tensor
    """(B, T, U), the embeddings' share of the posterior's hidden layer."""
    action_part: Tensor
    """(B, T, U), the actions' share of the input layer."""
    is_first: Tensor
    """(B, T) bool."""
    uniforms: Tensor
    """(B, T, G)."""


class Sums(NamedTuple):
    """Sums by tile, of which layer norm's statistics are made."""

    input: Tensor
    """(T, B, 2, tiles), of the input layer."""
    gates: Tensor
    """(T, B, 2, tiles)."""
    hidden: Tensor
    """(T, B, 2, tiles), of the posterior's hidden layer; without meaning but under layer norm."""


class Saved(NamedTuple):
    """What the forward pass computes, step by step, and the backward pass needs."""

    buffer: Tensor
    """(T, B, U + D + G*C + A or more), `[u | h | z | a]` before each step; a is given."""
    input_pre: Tensor
    """(T, B, U), the input layer before its norm."""
    gates: Tensor
    """(T, B, 3D), before their norm."""
    deters: Tensor
    """(T, B, D), h after each step."""
    hidden_pre: Tensor
    """(T, B, U), the posterior's hidden layer before its norm."""
    acts: Tensor
    """(T, B, U), and behind it."""
    means: Tensor
    """(T, U), batch norm's, over the rows of a step; (T, 0) under layer norm."""
    variances: Tensor
    """(T, U), biased."""
    logits: Tensor
    """(T, B, G*C), the posterior's."""
    stochs: Tensor
    """(T, B, G*C), z after each step."""


@triton.jit
def inner(SLICES: tl.constexpr, SLICE: tl.constexpr):
    """Positions along a product's inner axis (SLICES, SLICE), a slice for each warp."""
    return tl.arange(0, SLICES)[:, None] * SLICE + tl.arange(0, SLICE)[None, :]


@triton.jit
def load_rows(p_x, s_x, i_row, o_k, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """Elements (SLICES, rows, SLICE) of x (ROWS, SIZE)."""
    m_x = (i_row < ROWS)[None, :, None] & (o_k < SIZE)[:, None, :]
    return tl.load(p_x + i_row[None, :, None] * s_x + o_k[:, None, :], mask=m_x, other=0.0)


@triton.jit
def load_weight(p_weight, s_weight, o_col, m_col, o_k, SIZE: tl.constexpr):
    """Columns (SLICES, SLICE, columns) of the transpose of a weight (out, SIZE)."""
    m_weight = m_col[None, None, :] & (o_k < SIZE)[:, :, None]
    p_weight += o_col[None, None, :] * s_weight + o_k[:, :, None]
    return tl.load(p_weight, mask=m_weight, other=0.0)


@triton.jit
def _weight(b_kept, p_weight, s_weight, o_col, m_col, o_k, SIZE: tl.constexpr, KEEP: tl.constexpr):
    """What was kept of a weight, which is then all of it, or what `load_weight` gives."""
    if KEEP:
        return b_kept
    else:
        return load_weight(p_weight, s_weight, o_col, m_col, o_k, SIZE)


@triton.jit
def dot(b_x, b_weight, b_sum, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Add a product to the sums (SLICES, rows, columns), each warp's of its slice."""
    return tl.dot(b_x.to(OPERAND), b_weight.to(OPERAND), b_sum, input_precision=PRECISION)


@triton.jit
def product(
    p_x,  # (ROWS, SIZE), row stride s_x
    s_x,
    i_row,
    b_kept,  # the weight's columns, with KEEP
    p_weight,  # (out, SIZE), row stride s_weight
    s_weight,
    o_col,
    m_col,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    SLICES: tl.constexpr,
    SLICE: tl.constexpr,
    KEEP: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows and columns (rows, columns) of `x weight^T`, as float32."""
    b_sum = tl.zeros((SLICES, i_row.shape[0], o_col.shape[0]), tl.float32)
    for i in range(0, SIZE, SLICES * SLICE):
        o_k = i + inner(SLICES, SLICE)
        b_x = load_rows(p_x, s_x, i_row, o_k, ROWS, SIZE)
        b_weight = _weight(b_kept, p_weight, s_weight, o_col, m_col, o_k, SIZE, KEEP)
        b_sum = dot(b_x, b_weight, b_sum, OPERAND, PRECISION)
    return tl.sum(b_sum, axis=0)


@triton.jit
def store_sums(p_sums, b_x, m_tile, size, TILES: tl.constexpr):
    """Leave a tile's share of a layer norm's statistics: the sum, the squares about the mean.

    Args:
        p_sums: (rows,) pointers to the tile's sums, of (rows, 2, TILES).
        b_x: (rows, columns).
        m_tile: (rows, columns), which of them are there.
        size: columns that are.
        TILES: of the layer.
    """
    b_sum = tl.sum(b_x, axis=1)
    b_x = tl.where(m_tile, b_x - (b_sum / size)[:, None], 0.0)
    m_row = tl.max(m_tile.to(tl.int32), axis=1) > 0
    tl.store(p_sums, b_sum, mask=m_row)
    tl.store(p_sums + TILES, tl.sum(b_x * b_x, axis=1), mask=m_row)


@triton.jit
def statistics(p_sums, m_row, eps, SIZE: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Mean and inverse deviation (rows,) of PARTS times SIZE columns, from the sums of the tiles.

    Args:
        p_sums: (rows,) pointers to (2, PARTS * TILES) of each row.
        m_row: (rows,), which rows are there.
        eps: added to the variance.
        SIZE: columns of a part.
        PARTS: parts of a row.
        COLUMNS: of a tile; a part's last may be cut short.
    """
    TILES: tl.constexpr = (SIZE + COLUMNS - 1) // COLUMNS
    ALL: tl.constexpr = PARTS * TILES
    o_tile = tl.arange(0, SUMS)
    b_mean = tl.zeros_like(m_row.to(tl.float32))
    for k in range(0, ALL, SUMS):
        m_sums = m_row[:, None] & (k + o_tile < ALL)[None, :]
        b_sum = tl.load(p_sums[:, None] + (k + o_tile)[None, :], mask=m_sums, other=0.0)
        b_mean += tl.sum(b_sum, axis=1) / (PARTS * SIZE)
    b_variance = tl.zeros_like(b_mean)
    for k in range(0, ALL, SUMS):
        m_sums = m_row[:, None] & (k + o_tile < ALL)[None, :]
        p_tiles = p_sums[:, None] + (k + o_tile)[None, :]
        b_size = tl.minimum(SIZE - (k + o_tile) % TILES * COLUMNS, COLUMNS).to(tl.float32)
        b_apart = tl.load(p_tiles, mask=m_sums, other=0.0) / b_size[None, :] - b_mean[:, None]
        b_squares = tl.load(p_tiles + ALL, mask=m_sums, other=0.0)
        b_squares += tl.where(m_sums, b_size[None, :] * b_apart * b_apart, 0.0)
        b_variance += tl.sum(b_squares, axis=1) / (PARTS * SIZE)
    return b_mean, 1.0 / tl.sqrt(b_variance + eps)


@triton.jit
def norm_act(b_x, b_mean, b_scale, p_scale, p_shift, o_k, SIZE: tl.constexpr):
    """Layer norm and SiLU (SLICES, rows, SLICE), with the statistics (rows,) of whole rows."""
    m_k = o_k < SIZE
    b_x = (b_x.to(tl.float32) - b_mean[None, :, None]) * b_scale[None, :, None]
    b_x *= tl.load(p_scale + o_k, mask=m_k, other=0.0).to(tl.float32)[:, None, :]
    b_x += tl.load(p_shift + o_k, mask=m_k, other=0.0).to(tl.float32)[:, None, :]
    return b_x * tl.sigmoid(b_x)


@triton.jit
def _reset(b_new, p_first, s_first, p_fresh, i_row, o_col, m_col, ROWS: tl.constexpr):
    """What the next step starts from: `b_new`, or the learned start where an episode begins."""
    b_first = tl.load(p_first + i_row * s_first, mask=i_row < ROWS, other=0).to(tl.int1)
    b_fresh = tl.load(p_fresh + o_col, mask=m_col, other=0.0).to(tl.float32)
    return tl.where(b_first[:, None], b_fresh[None, :], b_new)


@triton.jit
def _gates(
    b_x, b_r, b_c, b_u, b_kept_r, b_kept_c, b_kept_u, p_weight, o_col, m_col, o_k,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, DETER: tl.constexpr, KEEP: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a stretch of the inner axis to the sums of all three gates."""
    b_weight = _weight(b_kept_r, p_weight, WIDTH, o_col, m_col, o_k, SIZE, KEEP)
    b_r = dot(b_x, b_weight, b_r, OPERAND, PRECISION)
    p_weight += DETER * WIDTH
    b_weight = _weight(b_kept_c, p_weight, WIDTH, o_col, m_col, o_k, SIZE, KEEP)
    b_c = dot(b_x, b_weight, b_c, OPERAND, PRECISION)
    p_weight += DETER * WIDTH
    b_weight = _weight(b_kept_u, p_weight, WIDTH, o_col, m_col, o_k, SIZE, KEEP)
    return b_r, b_c, dot(b_x, b_weight, b_u, OPERAND, PRECISION)


@triton.jit
def _normed_gate(p_gate, m_tile, b_mean, b_scale, p_scale, p_shift, o_col, m_col):
    """Columns of one gate behind the norm (rows, columns)."""
    b_x = tl.load(p_gate, mask=m_tile, other=0.0).to(tl.float32)
    b_x = (b_x - b_mean[:, None]) * b_scale[:, None]
    b_x *= tl.load(p_scale + o_col, mask=m_col, other=0.0).to(tl.float32)[None, :]
    return b_x + tl.load(p_shift + o_col, mask=m_col, other=0.0).to(tl.float32)[None, :]


@triton.jit
def rssm_observe_persistent_fwd_kernel(
    p_arrived,  # () int32, 0
    p_buffer,  # (STEPS, ROWS, s_buffer): [u | h | z | a] before each step; fills in h, z of t > 0
    p_action_part,  # (ROWS, STEPS, HIDDEN), the actions' share of the input layer
    p_embed_part,  # (ROWS, STEPS, HIDDEN), the embeddings' share of the posterior's hidden layer
    p_first,  # (ROWS, STEPS) bool
    p_uniforms,  # (ROWS, STEPS, GROUPS)
    p_first_deter,  # (DETER,)
    p_first_stoch,  # (LATENTS,)
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
    p_out_bias,  # (LATENTS,)
    p_running_mean,  # (HIDDEN,), read in the mode "running"
    p_running_var,  # (HIDDEN,), likewise
    p_input_pre,  # (STEPS, ROWS, HIDDEN), written, as all that follow
    p_input_sums,  # (STEPS, ROWS, 2, tiles) float32; see store_sums
    p_gates,  # (STEPS, ROWS, 3 * DETER)
    p_gate_sums,  # (STEPS, ROWS, 2, 3 * tiles) float32
    p_deters,  # (STEPS, ROWS, DETER)
    p_hidden_pre,  # (STEPS, ROWS, HIDDEN)
    p_hidden_sums,  # (STEPS, ROWS, 2, tiles) float32; in the mode "layer" only
    p_acts,  # (STEPS, ROWS, HIDDEN); in the other modes, as
    p_means,  # (STEPS, HIDDEN) and
    p_variances,  # (STEPS, HIDDEN)
    p_logits,  # (STEPS, ROWS, LATENTS)
    p_stochs,  # (STEPS, ROWS, LATENTS)
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
    Z_SLICE: tl.constexpr,  # elements of a slice of z,
    U_SLICE: tl.constexpr,  # of a hidden layer,
    D_SLICE: tl.constexpr,  # and of h
    KEEP: tl.constexpr,  # whether weights stay from step to step, and a slice is all of its row
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_program = tl.program_id(0)
    programs = tl.num_programs(0)
    LATENTS: tl.constexpr = GROUPS * CLASSES
    HIDDEN_TILES: tl.constexpr = (HIDDEN + COLUMNS - 1) // COLUMNS
    DETER_TILES: tl.constexpr = (DETER + COLUMNS - 1) // COLUMNS
    o_block = tl.arange(0, BLOCK)
    o_column = tl.arange(0, COLUMNS)
    dtype: tl.constexpr = p_deters.dtype.element_ty
    b_kept_z, b_kept_h, b_kept_o = 0, 0, 0
    b_kept_ru, b_kept_cu, b_kept_uu, b_kept_rh, b_kept_ch, b_kept_uh = 0, 0, 0, 0, 0, 0
    if KEEP:
        o_kept = i_program * COLUMNS + o_column
        m_kept = o_kept < HIDDEN
        o_z, o_u, o_d = inner(SLICES, Z_SLICE), inner(SLICES, U_SLICE), inner(SLICES, D_SLICE)
        b_kept_z = load_weight(p_input_weight, s_input_weight, o_kept, m_kept, o_z, LATENTS)
        b_kept_h = load_weight(p_hidden_weight, s_hidden_weight, o_kept, m_kept, o_d, DETER)
        m_kept = o_kept < DETER
        WIDTH: tl.constexpr = HIDDEN + DETER
        b_kept_ru = load_weight(p_gru_weight, WIDTH, o_kept, m_kept, o_u, HIDDEN)
        b_kept_rh = load_weight(p_gru_weight + HIDDEN, WIDTH, o_kept, m_kept, o_d, DETER)
        p_gate = p_gru_weight + DETER * WIDTH
        b_kept_cu = load_weight(p_gate, WIDTH, o_kept, m_kept, o_u, HIDDEN)
        b_kept_ch = load_weight(p_gate + HIDDEN, WIDTH, o_kept, m_kept, o_d, DETER)
        p_gate += DETER * WIDTH
        b_kept_uu = load_weight(p_gate, WIDTH, o_kept, m_kept, o_u, HIDDEN)
        b_kept_uh = load_weight(p_gate + HIDDEN, WIDTH, o_kept, m_kept, o_d, DETER)
        o_class = tl.arange(0, CLASS)
        m_class = o_class < tl.where(i_program < GROUPS, CLASSES, 0)
        o_class += i_program * CLASSES
        b_kept_o = load_weight(p_out_weight, HIDDEN, o_class, m_class, o_u, HIDDEN)
    met = 0
    t = 0
    while t < STEPS:
        i_step = tl.full((), t, tl.int64) * ROWS
        p_row = p_buffer + i_step * s_buffer
        p_next = p_row + ROWS * s_buffer

        tile = i_program
        while tile < HIDDEN_TILES:
            o_col = tile * COLUMNS + o_column
            m_col = o_col < HIDDEN
            for i in range(0, ROWS, BLOCK):
                i_row = i + o_block
                m_tile = (i_row < ROWS)[:, None] & m_col[None, :]
                b_x = product(
                    p_row + HIDDEN + DETER, s_buffer, i_row, b_kept_z, p_input_weight,
                    s_input_weight, o_col, m_col, ROWS, LATENTS, SLICES, Z_SLICE, KEEP, OPERAND,
                    PRECISION,
                )  # fmt: skip
                o_part = (i_row * STEPS + t)[:, None] * HIDDEN + o_col[None, :]
                b_x += tl.load(p_action_part + o_part, mask=m_tile, other=0.0).to(tl.float32)
                p_tile = p_input_pre + (i_step + i_row)[:, None] * HIDDEN + o_col[None, :]
                tl.store(p_tile, b_x.to(dtype), mask=m_tile)
                p_sums = p_input_sums + (i_step + i_row) * (2 * HIDDEN_TILES) + tile
                store_sums(p_sums, b_x, m_tile, tl.sum(m_col.to(tl.float32)), HIDDEN_TILES)
            tile += programs
        met += programs
        wait_for_all(p_arrived, met)

        tile = i_program
        while tile < DETER_TILES:
            o_col = tile * COLUMNS + o_column
            m_col = o_col < DETER
            for i in range(0, ROWS, BLOCK):
                i_row = i + o_block
                m_tile = (i_row < ROWS)[:, None] & m_col[None, :]
                b_mean, b_scale = statistics(
                    p_input_sums + (i_step + i_row) * (2 * HIDDEN_TILES), i_row < ROWS, eps, HIDDEN,
                    1, COLUMNS,
                )  # fmt: skip
                b_r = tl.zeros((SLICES, BLOCK, COLUMNS), tl.float32)
                b_c, b_u = b_r, b_r
                for k in range(0, HIDDEN, SLICES * U_SLICE):
                    o_k = k + inner(SLICES, U_SLICE)
                    p_x = p_input_pre + i_step * HIDDEN
                    b_x = load_rows(p_x, HIDDEN, i_row, o_k, ROWS, HIDDEN)
                    b_x = norm_act(b_x, b_mean, b_scale, p_input_scale, p_input_shift, o_k, HIDDEN)
                    b_r, b_c, b_u = _gates(
                        b_x.to(dtype), b_r, b_c, b_u, b_kept_ru, b_kept_cu, b_kept_uu,
                        p_gru_weight, o_col, m_col, o_k, HIDDEN, HIDDEN + DETER, DETER, KEEP,
                        OPERAND, PRECISION,
                    )  # fmt: skip
                for k in range(0, DETER, SLICES * D_SLICE):
                    o_k = k + inner(SLICES, D_SLICE)
                    b_x = load_rows(p_row + HIDDEN, s_buffer, i_row, o_k, ROWS, DETER)
                    b_r, b_c, b_u = _gates(
                        b_x, b_r, b_c, b_u, b_kept_rh, b_kept_ch, b_kept_uh,
                        p_gru_weight + HIDDEN, o_col, m_col, o_k, DETER, HIDDEN + DETER, DETER,
                        KEEP, OPERAND, PRECISION,
                    )  # fmt: skip
                b_r, b_c, b_u = tl.sum(b_r, axis=0), tl.sum(b_c, axis=0), tl.sum(b_u, axis=0)
                p_tile = p_gates + (i_step + i_row)[:, None] * (3 * DETER) + o_col[None, :]
                tl.store(p_tile, b_r.to(dtype), mask=m_tile)
                tl.store(p_tile + DETER, b_c.to(dtype), mask=m_tile)
                tl.store(p_tile + 2 * DETER, b_u.to(dtype), mask=m_tile)
                p_sums = p_gate_sums + (i_step + i_row) * (6 * DETER_TILES) + tile
                store_sums(p_sums, b_r, m_tile, tl.sum(m_col.to(tl.float32)), 3 * DETER_TILES)
                store_sums(
                    p_sums + DETER_TILES, b_c, m_tile, tl.sum(m_col.to(tl.float32)), 3 * DETER_TILES
                )
                store_sums(
                    p_sums + 2 * DETER_TILES,
                    b_u,
                    m_tile,
                    tl.sum(m_col.to(tl.float32)),
                    3 * DETER_TILES,
                )
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
                b_mean, b_scale = statistics(
                    p_gate_sums + (i_step + i_row) * (6 * DETER_TILES),
                    m_row,
                    eps,
                    DETER,
                    3,
                    COLUMNS,
                )
                p_tile = p_gates + (i_step + i_row)[:, None] * (3 * DETER) + o_col[None, :]
                b_r = _normed_gate(
                    p_tile, m_tile, b_mean, b_scale, p_gru_scale, p_gru_shift, o_col, m_col
                )
                b_c = _normed_gate(
                    p_tile + DETER, m_tile, b_mean, b_scale, p_gru_scale + DETER,
                    p_gru_shift + DETER, o_col, m_col,
                )  # fmt: skip
                b_u = _normed_gate(
                    p_tile + 2 * DETER, m_tile, b_mean, b_scale, p_gru_scale + 2 * DETER,
                    p_gru_shift + 2 * DETER, o_col, m_col,
                )  # fmt: skip
                p_state = p_row + HIDDEN + i_row[:, None] * s_buffer + o_col[None, :]
                b_h = tl.load(p_state, mask=m_tile, other=0.0).to(tl.float32)
                b_h = next_state(b_r, b_c, b_u, b_h)
                p_tile = p_deters + (i_step + i_row)[:, None] * DETER + o_col[None, :]
                tl.store(p_tile, b_h.to(dtype), mask=m_tile)
                if t + 1 < STEPS:
                    b_h = _reset(
                        b_h, p_first + t + 1, STEPS, p_first_deter, i_row, o_col, m_col, ROWS
                    )
                    p_tile = p_next + HIDDEN + i_row[:, None] * s_buffer + o_col[None, :]
                    tl.store(p_tile, b_h.to(dtype), mask=m_tile)
            tile += programs
        met += programs
        wait_for_all(p_arrived, met)

        tile = i_program
        while tile < HIDDEN_TILES:
            o_col = tile * COLUMNS + o_column
            m_col = o_col < HIDDEN
            for i in range(0, ROWS, BLOCK):
                i_row = i + o_block
                m_tile = (i_row < ROWS)[:, None] & m_col[None, :]
                b_x = product(
                    p_deters + i_step * DETER, DETER, i_row, b_kept_h, p_hidden_weight,
                    s_hidden_weight, o_col, m_col, ROWS, DETER, SLICES, D_SLICE, KEEP, OPERAND,
                    PRECISION,
                )  # fmt: skip
                o_part = (i_row * STEPS + t)[:, None] * HIDDEN + o_col[None, :]
                b_x += tl.load(p_embed_part + o_part, mask=m_tile, other=0.0).to(tl.float32)
                p_tile = p_hidden_pre + (i_step + i_row)[:, None] * HIDDEN + o_col[None, :]
                tl.store(p_tile, b_x.to(dtype), mask=m_tile)
                if NORM == "layer":
                    p_sums = p_hidden_sums + (i_step + i_row) * (2 * HIDDEN_TILES) + tile
                    store_sums(p_sums, b_x, m_tile, tl.sum(m_col.to(tl.float32)), HIDDEN_TILES)
            if NORM != "layer":
                # The rows of other warps, or of a block before, are in memory by now.
                tl.debug_barrier()
                i_row = tl.arange(0, ALL)
                m_tile = (i_row < ROWS)[:, None] & m_col[None, :]
                o_tile = (i_step + i_row)[:, None] * HIDDEN + o_col[None, :]
                b_x = tl.load(p_hidden_pre + o_tile, mask=m_tile, other=0.0).to(tl.float32)
                b_mean = tl.sum(b_x, axis=0) / ROWS
                b_apart = tl.where(m_tile, b_x - b_mean[None, :], 0.0)
                b_var = tl.sum(b_apart * b_apart, axis=0) / ROWS
                o_step = tl.full((), t, tl.int64) * HIDDEN + o_col
                tl.store(p_means + o_step, b_mean.to(dtype), mask=m_col)
                tl.store(p_variances + o_step, b_var.to(dtype), mask=m_col)
                if NORM == "running":
                    b_running = tl.load(p_running_mean + o_col, mask=m_col, other=0.0)
                    # From x itself, so that no other row's share is added and taken away again.
                    b_apart = b_x - b_running.to(tl.float32)[None, :]
                    b_var = tl.load(p_running_var + o_col, mask=m_col, other=1.0).to(tl.float32)
                b_scale = tl.load(p_hidden_scale + o_col, mask=m_col, other=0.0).to(tl.float32)
                b_shift = tl.load(p_hidden_shift + o_col, mask=m_col, other=0.0).to(tl.float32)
                b_x = b_apart * (b_scale / tl.sqrt(b_var + eps))[None, :] + b_shift[None, :]
                tl.store(p_acts + o_tile, (b_x * tl.sigmoid(b_x)).to(dtype), mask=m_tile)
            tile += programs
        met += programs
        wait_for_all(p_arrived, met)

        tile = i_program
        while tile < GROUPS:
            o_class = tl.arange(0, CLASS)
            o_col = tile * CLASSES + o_class
            m_col = o_class < CLASSES
            b_bias = tl.load(p_out_bias + o_col, mask=m_col, other=0.0).to(tl.float32)
            for i in range(0, ROWS, BLOCK):
                i_row = i + o_block
                m_row = i_row < ROWS
                m_tile = m_row[:, None] & m_col[None, :]
                if NORM == "layer":
                    b_mean, b_scale = statistics(
                        p_hidden_sums + (i_step + i_row) * (2 * HIDDEN_TILES), m_row, eps, HIDDEN,
                        1, COLUMNS,
                    )  # fmt: skip
                b_logits = tl.zeros((SLICES, BLOCK, CLASS), tl.float32)
                for k in range(0, HIDDEN, SLICES * U_SLICE):
                    o_k = k + inner(SLICES, U_SLICE)
                    b_weight = _weight(
                        b_kept_o, p_out_weight, HIDDEN, o_col, m_col, o_k, HIDDEN, KEEP
                    )
                    if NORM == "layer":
                        p_x = p_hidden_pre + i_step * HIDDEN
                        b_x = load_rows(p_x, HIDDEN, i_row, o_k, ROWS, HIDDEN)
                        b_x = norm_act(
                            b_x, b_mean, b_scale, p_hidden_scale, p_hidden_shift, o_k, HIDDEN
                        ).to(dtype)
                    else:
                        p_x = p_acts + i_step * HIDDEN
                        b_x = load_rows(p_x, HIDDEN, i_row, o_k, ROWS, HIDDEN)
                    b_logits = dot(b_x, b_weight, b_logits, OPERAND, PRECISION)
                b_logits = tl.sum(b_logits, axis=0)
                # Rounded as they are stored: what is drawn from is what has the gradient.
                b_logits = (b_logits + b_bias[None, :]).to(dtype)
                o_tile = (i_step + i_row)[:, None] * LATENTS + o_col[None, :]
                tl.store(p_logits + o_tile, b_logits, mask=m_tile)
                b_logits = tl.where(m_col[None, :], b_logits.to(tl.float32), float("-inf"))
                _, b_probs, _ = probs(b_logits, o_class, CLASSES, UNIMIX)
                p_uniform = p_uniforms + (i_row * STEPS + t) * GROUPS + tile
                b_uniform = tl.load(p_uniform, mask=m_row, other=0.0).to(tl.float32)
                b_index = drawn(b_probs, b_uniform, o_class, CLASSES)
                b_z = (o_class[None, :] == b_index[:, None]).to(tl.float32)
                tl.store(p_stochs + o_tile, b_z.to(dtype), mask=m_tile)
                if t + 1 < STEPS:
                    b_z = _reset(
                        b_z, p_first + t + 1, STEPS, p_first_stoch, i_row, o_col, m_col, ROWS
                    )
                    p_tile = p_next + HIDDEN + DETER + i_row[:, None] * s_buffer + o_col[None, :]
                    tl.store(p_tile, b_z.to(dtype), mask=m_tile)
            tile += programs
        met += programs
        wait_for_all(p_arrived, met)
        t += 1


OPTIONS = {"num_warps": SLICES, "num_stages": 1, "maxnreg": 255, "launch_cooperative_grid": True}
"""How the kernels are launched: the driver refuses a grid that can not be resident at once."""


def constants(
    rows: int, hidden: int, deter: int, groups: int, classes: int, dtype: torch.dtype
) -> dict[str, Any]:
    """What the kernels are compiled for: sizes, and how they multiply (as PyTorch does)."""
    return {
        "ROWS": rows,
        "HIDDEN": hidden,
        "DETER": deter,
        "GROUPS": groups,
        "CLASSES": classes,
        "BLOCK": BLOCK,
        "ALL": tiles.block(rows),
        "COLUMNS": COLUMNS,
        "CLASS": tiles.block(classes),
        "SLICES": SLICES,
        "OPERAND": OPERANDS[torch.float32 if INTERPRETED else dtype],
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
    }


def slice_of(*widths: int) -> int:
    """Elements of a slice that a program holds at a time, for layers of these widths."""
    return 32 if max(widths) <= NARROW else 16


def keeping(
    rows: int, hidden: int, deter: int, latents: int, dtype: torch.dtype, alone: bool
) -> dict[str, Any]:
    """Whether the forward kernel keeps its weights from step to step, and its slices.

    It does where a program has no more than one tile of a layer (`alone`) and registers and shared
    memory hold what it multiplies with, as at size S; a slice is then a warp's share of all.
    """
    fits = dtype in KEPT_DTYPES and rows <= BLOCK and max(hidden, deter, latents // 2) <= NARROW
    widths = {"Z_SLICE": latents, "U_SLICE": hidden, "D_SLICE": deter}
    if alone and fits:
        whole = {name: max(16, tiles.block(width) // SLICES) for name, width in widths.items()}
        return {"KEEP": True, **whole}
    return {"KEEP": False, **dict.fromkeys(widths, slice_of(hidden, deter))}


def programs(wanted: int, device: torch.device) -> int:
    """Programs of a launch: as many as find work, and as are resident at once.

    The interpreter runs one after another, so that there is a single one.
    """
    if device.type != "cuda":
        return 1
    return min(wanted, torch.cuda.get_device_properties(device).multi_processor_count)


def launch_forward(
    saved: Saved,
    inputs: Inputs,
    fresh: Sequence[Tensor],
    weights: ObserveWeights,
    batch_norm: BatchNormState | None,
    unimix: float,
    eps: float,
    stoch: Sequence[int],
) -> Sums:
    """Fill in all steps but the layers' activations under layer norm, which the caller makes.

    Args:
        saved: filled in; the first step's state and all actions are in its buffer.
        inputs: of all steps.
        fresh: h (D,) and z (G*C,), the learned start.
        weights: with the input layer's columns for the latents alone.
        batch_norm: what the posterior's batch norm uses, or None for layer norm.
        unimix: share of the uniform distribution.
        eps: added to the variances.
        stoch: G and C.
    """
    steps, rows, hidden = saved.input_pre.shape
    deter, device = saved.deters.shape[2], saved.deters.device
    groups, classes = stoch
    norm, running = "layer", (weights.hidden.norm_weight, weights.hidden.norm_bias)
    if batch_norm is not None:
        norm, running = "batch" if batch_norm.use_batch else "running", batch_norm[:2]
    tiles_of_hidden, tiles_of_deter = -(-hidden // COLUMNS), -(-deter // COLUMNS)
    input_sums, hidden_sums = torch.empty(2, steps, rows, 2, tiles_of_hidden, device=device)
    gate_sums = torch.empty(steps, rows, 2, 3 * tiles_of_deter, device=device)
    work = max(tiles_of_hidden, tiles_of_deter, groups)
    count, dtype = programs(work, device), saved.logits.dtype
    rssm_observe_persistent_fwd_kernel[(count,)](
        torch.zeros((), dtype=torch.int32, device=device), saved.buffer, inputs.action_part,
        inputs.embed_part, inputs.is_first, inputs.uniforms, *fresh, *weights.tensors(), *running,
        saved.input_pre, input_sums, saved.gates, gate_sums, saved.deters, saved.hidden_pre,
        hidden_sums, saved.acts, saved.means, saved.variances, saved.logits, saved.stochs,
        saved.buffer.stride(1), weights.input.weight.stride(0), weights.hidden.weight.stride(0),
        steps, eps, UNIMIX=unimix, NORM=norm,
        **constants(rows, hidden, deter, groups, classes, dtype),
        **keeping(rows, hidden, deter, groups * classes, dtype, count >= work), **OPTIONS,
    )  # fmt: skip
    return Sums(input_sums, gate_sums, hidden_sums)
