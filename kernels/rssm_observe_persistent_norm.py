"""The norms of the persistent `rssm_observe`, forward and then backward.

A layer norm crosses programs as sums: each tile of columns leaves its own for every row, and who
reads the layer in the next phase puts them together. A batch norm needs no other program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mudreamer_fast.kernels.rssm_observe_persistent import dot, inner, load_rows, load_weight

SUMS = tl.constexpr(64)
"""Tiles whose sums a program holds at a time."""


@triton.jit
def store_sums(p_sums, b_x, m_tile, m_col, TILES: tl.constexpr):
    """Leave a tile's share of a layer norm's statistics: the sum, the squares about the mean.

    Args:
        p_sums: (rows,) pointers to the tile's sums, of (rows, 2, TILES).
        b_x: (rows, columns).
        m_tile: (rows, columns), which of them are there.
        m_col: (columns,), likewise.
        TILES: of the layer.
    """
    size = tl.sum(m_col.to(tl.float32))
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
def norm_act(b_x, b_mean, b_scale, layer, o_k, SIZE: tl.constexpr):
    """Layer norm and SiLU (SLICES, rows, SLICE), with the statistics (rows,) of whole rows."""
    m_k = o_k < SIZE
    b_x = (b_x.to(tl.float32) - b_mean[None, :, None]) * b_scale[None, :, None]
    b_x *= tl.load(layer.p_scale + o_k, mask=m_k, other=0.0).to(tl.float32)[:, None, :]
    b_x += tl.load(layer.p_shift + o_k, mask=m_k, other=0.0).to(tl.float32)[:, None, :]
    return b_x * tl.sigmoid(b_x)


@triton.jit
def normed_gates(p_gates, layer, o_col, m_col, m_tile, b_mean, b_scale, C: tl.constexpr):
    """Columns of all three gates behind the norm, each (rows, columns)."""
    b_gates: tl.tuple = ()
    for part in tl.static_range(3):
        p_scale, p_shift = layer.p_scale + part * C.DETER, layer.p_shift + part * C.DETER
        b_x = tl.load(p_gates + part * C.DETER, mask=m_tile, other=0.0).to(tl.float32)
        b_x = (b_x - b_mean[:, None]) * b_scale[:, None]
        b_x *= tl.load(p_scale + o_col, mask=m_col, other=0.0).to(tl.float32)[None, :]
        b_x += tl.load(p_shift + o_col, mask=m_col, other=0.0).to(tl.float32)[None, :]
        b_gates += (b_x,)
    return b_gates


@triton.jit
def batch_norm_act(step, p_saved, layer, p_running, o_col, m_col, C: tl.constexpr):
    """Columns of the hidden layer through batch norm and SiLU, all rows at once."""
    dtype: tl.constexpr = p_saved.acts.dtype.element_ty
    i_row = tl.arange(0, C.ALL)
    m_tile = (i_row < C.ROWS)[:, None] & m_col[None, :]
    o_tile = (step.start + i_row)[:, None] * C.HIDDEN + o_col[None, :]
    b_x = tl.load(p_saved.hidden_pre + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    b_mean = tl.sum(b_x, axis=0) / C.ROWS
    b_apart = tl.where(m_tile, b_x - b_mean[None, :], 0.0)
    b_var = tl.sum(b_apart * b_apart, axis=0) / C.ROWS
    o_step = tl.full((), step.t, tl.int64) * C.HIDDEN + o_col
    tl.store(p_saved.means + o_step, b_mean.to(dtype), mask=m_col)
    tl.store(p_saved.variances + o_step, b_var.to(dtype), mask=m_col)
    if C.NORM == "running":
        p_mean, p_var = p_running
        b_running = tl.load(p_mean + o_col, mask=m_col, other=0.0)
        # From x itself, so that no other row's share is added and taken away again.
        b_apart = b_x - b_running.to(tl.float32)[None, :]
        b_var = tl.load(p_var + o_col, mask=m_col, other=1.0).to(tl.float32)
    b_scale = tl.load(layer.p_scale + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_shift = tl.load(layer.p_shift + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_x = b_apart * (b_scale / tl.sqrt(b_var + step.eps))[None, :] + b_shift[None, :]
    tl.store(p_saved.acts + o_tile, (b_x * tl.sigmoid(b_x)).to(dtype), mask=m_tile)


@triton.jit
def before_norm_act(b_grad, b_x, b_scale, b_shift):
    """Take the gradient of `SiLU(scale x + shift)` to that of the normalised x."""
    b_y = b_x * b_scale + b_shift
    b_sigmoid = tl.sigmoid(b_y)
    return b_grad * b_sigmoid * (1.0 + b_y * (1.0 - b_sigmoid)) * b_scale


@triton.jit
def store_grad_sums(p_sums, b_grad, b_x, m_row, TILES: tl.constexpr):
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
def grad_means(p_sums, m_row, SIZE: tl.constexpr, TILES: tl.constexpr):
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
def product_through_norm(
    p_grad,  # (ROWS, HIDDEN), contiguous: of the layer's output
    p_x,  # (ROWS, HIDDEN), contiguous: the layer before its norm
    p_statistics,  # (ROWS, 2, tiles), of the layer
    p_sums,  # (ROWS, 2, tiles), of its gradient; see store_grad_sums
    layer,
    eps,
    i_row,
    o_col,
    m_col,
    C: tl.constexpr,
):
    """Rows and columns (rows, columns) of `x weight`, x the gradient before norm and SiLU."""
    m_row = i_row < C.ROWS
    o_sums = i_row * (2 * C.HIDDEN_TILES)
    b_mean, b_rate = statistics(p_statistics + o_sums, m_row, eps, C.HIDDEN, 1, C.COLUMNS)
    b_grad_mean, b_along = grad_means(p_sums + o_sums, m_row, C.HIDDEN, C.HIDDEN_TILES)
    b_sum = tl.zeros((C.SLICES, i_row.shape[0], o_col.shape[0]), tl.float32)
    for k in range(0, C.HIDDEN, C.SLICES * C.U_SLICE):
        o_k = k + inner(C.SLICES, C.U_SLICE)
        m_k = o_k < C.HIDDEN
        b_x = load_rows(p_x, C.HIDDEN, i_row, o_k, C.ROWS, C.HIDDEN).to(tl.float32)
        b_x = (b_x - b_mean[None, :, None]) * b_rate[None, :, None]
        b_scale = tl.load(layer.p_scale + o_k, mask=m_k, other=0.0).to(tl.float32)
        b_shift = tl.load(layer.p_shift + o_k, mask=m_k, other=0.0).to(tl.float32)
        b_grad = load_rows(p_grad, C.HIDDEN, i_row, o_k, C.ROWS, C.HIDDEN).to(tl.float32)
        b_grad = before_norm_act(b_grad, b_x, b_scale[:, None, :], b_shift[:, None, :])
        b_grad -= b_grad_mean[None, :, None] + b_x * b_along[None, :, None]
        b_grad = (b_grad * b_rate[None, :, None]).to(p_grad.dtype.element_ty)
        b_weight = load_weight(layer.p_weight, layer.s_weight, o_col, m_col, o_k, C.HIDDEN, False)
        b_sum = dot(b_grad, b_weight, b_sum, C)
    return tl.sum(b_sum, axis=0)


@triton.jit
def store_layer_grad_sums(
    p_x, p_statistics, p_sums, b_grad, b_scale, b_shift, m_row, m_tile, eps, C: tl.constexpr
):
    """Leave a tile's sums for the layer norm of HIDDEN columns.

    Args:
        p_x: (rows, columns) pointers to the layer before its norm.
        p_statistics: (rows,) pointers to its sums, of (rows, 2, tiles).
        p_sums: (rows,) pointers to the tile's sums; see `store_grad_sums`.
        b_grad: (rows, columns), of the layer's output.
        b_scale: (columns,), the norm's.
        b_shift: (columns,), likewise.
        m_row: (rows,), which rows are there.
        m_tile: (rows, columns), likewise.
        eps: added to the variance.
        C: see `Constants`.
    """
    b_mean, b_rate = statistics(p_statistics, m_row, eps, C.HIDDEN, 1, C.COLUMNS)
    b_x = tl.load(p_x, mask=m_tile, other=0.0).to(tl.float32)
    b_x = (b_x - b_mean[:, None]) * b_rate[:, None]
    b_grad = before_norm_act(b_grad, b_x, b_scale[None, :], b_shift[None, :])
    store_grad_sums(p_sums, b_grad, b_x, m_row, C.HIDDEN_TILES)


@triton.jit
def gates_and_norms(p_gates, layer, o_col, m_col, m_tile, b_mean, b_rate, C: tl.constexpr):
    """Columns of all three gates: normalised, the norm's scales, and behind it."""
    b_gates: tl.tuple = ()
    b_scales: tl.tuple = ()
    b_normed: tl.tuple = ()
    for part in tl.static_range(3):
        p_scale, p_shift = layer.p_scale + part * C.DETER, layer.p_shift + part * C.DETER
        b_x = tl.load(p_gates + part * C.DETER, mask=m_tile, other=0.0).to(tl.float32)
        b_x = tl.where(m_tile, (b_x - b_mean[:, None]) * b_rate[:, None], 0.0)
        b_scale = tl.load(p_scale + o_col, mask=m_col, other=0.0).to(tl.float32)[None, :]
        b_shift = tl.load(p_shift + o_col, mask=m_col, other=0.0).to(tl.float32)[None, :]
        b_gates += (b_x,)
        b_scales += (b_scale,)
        b_normed += (b_x * b_scale + b_shift,)
    return b_gates, b_scales, b_normed


@triton.jit
def before_batch_norm_act(step, p_past, p_grads, b_scale, b_shift, o_col, m_col, C: tl.constexpr):
    """Take columns of the hidden layer's gradient through SiLU and batch norm, all rows at once."""
    i_row = tl.arange(0, C.ALL)
    m_tile = (i_row < C.ROWS)[:, None] & m_col[None, :]
    o_tile = (step.start + i_row)[:, None] * C.HIDDEN + o_col[None, :]
    o_mean = o_col
    if C.NORM == "batch":
        o_mean += step.t * C.HIDDEN
    b_mean = tl.load(p_past.means + o_mean, mask=m_col, other=0.0).to(tl.float32)
    b_var = tl.load(p_past.variances + o_mean, mask=m_col, other=1.0).to(tl.float32)
    b_rate = 1.0 / tl.sqrt(b_var + step.eps)
    b_x = tl.load(p_past.hidden_pre + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    b_x = (b_x - b_mean[None, :]) * b_rate[None, :]
    b_grad = tl.load(p_grads.acts + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    b_y = b_x * b_scale[None, :] + b_shift[None, :]
    b_sigmoid = tl.sigmoid(b_y)
    b_grad *= b_sigmoid * (1.0 + b_y * (1.0 - b_sigmoid))
    b_sum_scale = tl.sum(b_grad * b_x, axis=0)
    b_sum_shift = tl.sum(b_grad, axis=0)
    p_step = p_grads.affine + tl.full((), step.t, tl.int64) * (2 * C.HIDDEN) + o_col
    tl.store(p_step, b_sum_scale, mask=m_col)
    tl.store(p_step + C.HIDDEN, b_sum_shift, mask=m_col)
    if C.NORM == "batch":
        b_grad -= (b_sum_shift[None, :] + b_x * b_sum_scale[None, :]) / C.ROWS
    b_grad *= (b_scale * b_rate)[None, :]
    p_tile = p_grads.hidden + o_tile
    tl.store(p_tile, b_grad.to(p_tile.dtype.element_ty), mask=m_tile)
