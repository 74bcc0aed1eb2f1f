"""The recurrence of `rssm_observe` in one launch: see `rssm_observe_persistent` for its phases."""

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
from mudreamer_fast.kernels.layernorm_gru import next_state
from mudreamer_fast.kernels.rssm_observe_persistent import (
    BLOCK,
    COLUMNS,
    NARROW,
    OPTIONS,
    SLICES,
    Constants,
    Inputs,
    Layer,
    ObserveWeights,
    Saved,
    Step,
    Sums,
    classes,
    columns,
    constants,
    dot,
    inner,
    load_rows,
    load_weight,
    product,
    programs,
    shared_bytes,
    slice_of,
)
from mudreamer_fast.kernels.rssm_observe_persistent_norm import (
    batch_norm_act,
    norm_act,
    normed_gates,
    statistics,
    store_sums,
)
from mudreamer_fast.ops.signatures import BatchNormState, Linear

KEPT_DTYPES = (torch.bfloat16,)
"""Weights of which a program can hold all that it multiplies with, at size S."""
KEPT_BYTES = 131_072
"""Shared memory with which it can: 114,688 under Triton 3.9 and 3.6, 122 KB under 3.8. Cards of
compute capability 8.6, 8.9 and 12.0 have less."""


class Kept(NamedTuple):
    """Columns of the weights that a program holds from step to step, or None."""

    input: Any
    gates_u: Any
    """All three, of what they are multiplied with the input layer's output,"""
    gates_h: Any
    """and with h."""
    hidden: Any
    out: Any


@triton.jit
def _reset(step, p_inputs, b_new, p_fresh, i_row, o_col, m_col, C: tl.constexpr):
    """What the next step starts from: `b_new`, or the learned start where an episode begins."""
    p_first = p_inputs.is_first + step.t + 1 + i_row * step.STEPS
    b_first = tl.load(p_first, mask=i_row < C.ROWS, other=0).to(tl.int1)
    b_fresh = tl.load(p_fresh + o_col, mask=m_col, other=0.0).to(tl.float32)
    return tl.where(b_first[:, None], b_fresh[None, :], b_new)


@triton.jit
def _add_gates(
    b_gates, b_x, p_weight, o_col, m_col, b_kept, o_k, SIZE: tl.constexpr, C: tl.constexpr
):
    """Add a stretch of the inner axis to the sums of all three gates."""
    WIDTH: tl.constexpr = C.HIDDEN + C.DETER
    b_sums: tl.tuple = ()
    for part in tl.static_range(3):
        b_weight = b_kept[part]
        if b_weight is None:
            b_weight = load_weight(p_weight, WIDTH, o_col, m_col, o_k, SIZE, True)
        b_sums += (dot(b_x, b_weight, b_gates[part], C),)
        p_weight += C.DETER * WIDTH
    return b_sums


@triton.jit
def _keep(input_layer, gru_layer, hidden_layer, p_out, C: tl.constexpr):
    """Load all that a program multiplies with: it has no more than one tile of each layer."""
    WIDTH: tl.constexpr = C.HIDDEN + C.DETER
    i_program = tl.program_id(0)
    o_col, m_col = columns(i_program, C.HIDDEN, C.COLUMNS)
    o_z = inner(C.SLICES, C.Z_SLICE)
    o_u = inner(C.SLICES, C.U_SLICE)
    o_d = inner(C.SLICES, C.D_SLICE)
    p_weight, s_weight = input_layer.p_weight, input_layer.s_weight
    b_input = load_weight(p_weight, s_weight, o_col, m_col, o_z, C.LATENTS, True)
    p_weight, s_weight = hidden_layer.p_weight, hidden_layer.s_weight
    b_hidden = load_weight(p_weight, s_weight, o_col, m_col, o_d, C.DETER, True)
    m_col = o_col < C.DETER
    p_gate = gru_layer.p_weight
    b_gates_u: tl.tuple = ()
    b_gates_h: tl.tuple = ()
    for _ in tl.static_range(3):
        b_gates_u += (load_weight(p_gate, WIDTH, o_col, m_col, o_u, C.HIDDEN, True),)
        b_gates_h += (load_weight(p_gate + C.HIDDEN, WIDTH, o_col, m_col, o_d, C.DETER, True),)
        p_gate += C.DETER * WIDTH
    o_class = tl.arange(0, C.CLASS)
    m_col = o_class < tl.where(i_program < C.GROUPS, C.CLASSES, 0)
    o_col = i_program * C.CLASSES + o_class
    b_out = load_weight(p_out.weight, C.HIDDEN, o_col, m_col, o_u, C.HIDDEN, True)
    return Kept(b_input, b_gates_u, b_gates_h, b_hidden, b_out)


@triton.jit
def _input_phase(step, p_inputs, p_saved, p_sums, layer, b_kept, C: tl.constexpr):
    """The input layer before its norm.

    Reads this step's z (ROWS, LATENTS) in the buffer, and action_part (ROWS, HIDDEN).
    Writes input_pre (ROWS, HIDDEN), and its sums (ROWS, 2, tiles).
    """
    p_z = p_saved.buffer + step.start * step.s_buffer + C.HIDDEN + C.DETER
    tile = tl.program_id(0)
    while tile < C.HIDDEN_TILES:
        o_col, m_col = columns(tile, C.HIDDEN, C.COLUMNS)
        for i in range(0, C.ROWS, C.BLOCK):
            i_row = i + tl.arange(0, C.BLOCK)
            m_tile = (i_row < C.ROWS)[:, None] & m_col[None, :]
            b_x = product(
                p_z, step.s_buffer, i_row, layer.p_weight, layer.s_weight, o_col, m_col,
                b_kept.input, C.LATENTS, C.Z_SLICE, True, C,
            )  # fmt: skip
            o_part = (i_row * step.STEPS + step.t)[:, None] * C.HIDDEN + o_col[None, :]
            b_x += tl.load(p_inputs.action_part + o_part, mask=m_tile, other=0.0).to(tl.float32)
            p_tile = p_saved.input_pre + (step.start + i_row)[:, None] * C.HIDDEN + o_col[None, :]
            tl.store(p_tile, b_x.to(p_tile.dtype.element_ty), mask=m_tile)
            p_tiles = p_sums.input + (step.start + i_row) * (2 * C.HIDDEN_TILES)
            store_sums(p_tiles + tile, b_x, m_tile, m_col, C.HIDDEN_TILES)
        tile += tl.num_programs(0)


@triton.jit
def _gates_phase(step, p_saved, p_sums, input_layer, gru_layer, b_kept, C: tl.constexpr):
    """All three gates before their norm.

    Reads input_pre (ROWS, HIDDEN) and its sums, and this step's h (ROWS, DETER) in the buffer.
    Writes gates (ROWS, 3 * DETER), and their sums (ROWS, 2, 3 * tiles).
    """
    dtype: tl.constexpr = p_saved.gates.dtype.element_ty
    p_u = p_saved.input_pre + step.start * C.HIDDEN
    p_h = p_saved.buffer + step.start * step.s_buffer + C.HIDDEN
    tile = tl.program_id(0)
    while tile < C.DETER_TILES:
        o_col, m_col = columns(tile, C.DETER, C.COLUMNS)
        for i in range(0, C.ROWS, C.BLOCK):
            i_row = i + tl.arange(0, C.BLOCK)
            m_row = i_row < C.ROWS
            m_tile = m_row[:, None] & m_col[None, :]
            p_tiles = p_sums.input + (step.start + i_row) * (2 * C.HIDDEN_TILES)
            b_mean, b_scale = statistics(p_tiles, m_row, step.eps, C.HIDDEN, 1, C.COLUMNS)
            b_zero = tl.zeros((C.SLICES, C.BLOCK, C.COLUMNS), tl.float32)
            b_gates = (b_zero, b_zero, b_zero)
            for k in range(0, C.HIDDEN, C.SLICES * C.U_SLICE):
                o_k = k + inner(C.SLICES, C.U_SLICE)
                b_x = load_rows(p_u, C.HIDDEN, i_row, o_k, C.ROWS, C.HIDDEN)
                b_x = norm_act(b_x, b_mean, b_scale, input_layer, o_k, C.HIDDEN).to(dtype)
                b_gates = _add_gates(
                    b_gates, b_x, gru_layer.p_weight, o_col, m_col, b_kept.gates_u, o_k, C.HIDDEN, C
                )
            for k in range(0, C.DETER, C.SLICES * C.D_SLICE):
                o_k = k + inner(C.SLICES, C.D_SLICE)
                b_x = load_rows(p_h, step.s_buffer, i_row, o_k, C.ROWS, C.DETER)
                b_gates = _add_gates(
                    b_gates, b_x, gru_layer.p_weight + C.HIDDEN, o_col, m_col, b_kept.gates_h, o_k,
                    C.DETER, C,
                )  # fmt: skip
            b_r, b_c, b_u = b_gates
            b_gates = (tl.sum(b_r, axis=0), tl.sum(b_c, axis=0), tl.sum(b_u, axis=0))
            p_tile = p_saved.gates + (step.start + i_row)[:, None] * (3 * C.DETER) + o_col[None, :]
            for part in tl.static_range(3):
                tl.store(p_tile + part * C.DETER, b_gates[part].to(dtype), mask=m_tile)
            p_tiles = p_sums.gates + (step.start + i_row) * (6 * C.DETER_TILES) + tile
            for part in tl.static_range(3):
                p_part = p_tiles + part * C.DETER_TILES
                store_sums(p_part, b_gates[part], m_tile, m_col, 3 * C.DETER_TILES)
        tile += tl.num_programs(0)


@triton.jit
def _state_phase(step, p_inputs, p_saved, p_sums, layer, p_fresh_deter, C: tl.constexpr):
    """The next h.

    Reads gates (ROWS, 3 * DETER) and their sums, this step's h in the buffer, and is_first.
    Writes deters (ROWS, DETER), and the next step's h in the buffer.
    """
    p_h = p_saved.buffer + step.start * step.s_buffer
    p_next = p_h + C.ROWS * step.s_buffer
    tile = tl.program_id(0)
    while tile < C.DETER_TILES:
        o_col, m_col = columns(tile, C.DETER, C.COLUMNS)
        for i in range(0, C.ROWS, C.BLOCK):
            i_row = i + tl.arange(0, C.BLOCK)
            m_row = i_row < C.ROWS
            m_tile = m_row[:, None] & m_col[None, :]
            p_tiles = p_sums.gates + (step.start + i_row) * (6 * C.DETER_TILES)
            b_mean, b_scale = statistics(p_tiles, m_row, step.eps, C.DETER, 3, C.COLUMNS)
            p_tile = p_saved.gates + (step.start + i_row)[:, None] * (3 * C.DETER) + o_col[None, :]
            b_r, b_c, b_u = normed_gates(p_tile, layer, o_col, m_col, m_tile, b_mean, b_scale, C)
            p_state = p_h + C.HIDDEN + i_row[:, None] * step.s_buffer + o_col[None, :]
            b_h = tl.load(p_state, mask=m_tile, other=0.0).to(tl.float32)
            b_h = next_state(b_r, b_c, b_u, b_h)
            p_tile = p_saved.deters + (step.start + i_row)[:, None] * C.DETER + o_col[None, :]
            tl.store(p_tile, b_h.to(p_tile.dtype.element_ty), mask=m_tile)
            if step.t + 1 < step.STEPS:
                b_h = _reset(step, p_inputs, b_h, p_fresh_deter, i_row, o_col, m_col, C)
                p_tile = p_next + C.HIDDEN + i_row[:, None] * step.s_buffer + o_col[None, :]
                tl.store(p_tile, b_h.to(p_tile.dtype.element_ty), mask=m_tile)
        tile += tl.num_programs(0)


@triton.jit
def _hidden_phase(step, p_inputs, p_saved, p_sums, layer, p_running, b_kept, C: tl.constexpr):
    """The posterior's hidden layer before its norm and, but under layer norm, behind it.

    Reads deters (ROWS, DETER), and embed_part (ROWS, HIDDEN).
    Writes hidden_pre (ROWS, HIDDEN). Under layer norm its sums (ROWS, 2, tiles); else acts
    (ROWS, HIDDEN), and means and variances (HIDDEN,).
    """
    tile = tl.program_id(0)
    while tile < C.HIDDEN_TILES:
        o_col, m_col = columns(tile, C.HIDDEN, C.COLUMNS)
        for i in range(0, C.ROWS, C.BLOCK):
            i_row = i + tl.arange(0, C.BLOCK)
            m_tile = (i_row < C.ROWS)[:, None] & m_col[None, :]
            b_x = product(
                p_saved.deters + step.start * C.DETER, C.DETER, i_row, layer.p_weight,
                layer.s_weight, o_col, m_col, b_kept.hidden, C.DETER, C.D_SLICE, True, C,
            )  # fmt: skip
            o_part = (i_row * step.STEPS + step.t)[:, None] * C.HIDDEN + o_col[None, :]
            b_x += tl.load(p_inputs.embed_part + o_part, mask=m_tile, other=0.0).to(tl.float32)
            p_tile = p_saved.hidden_pre + (step.start + i_row)[:, None] * C.HIDDEN + o_col[None, :]
            tl.store(p_tile, b_x.to(p_tile.dtype.element_ty), mask=m_tile)
            if C.NORM == "layer":
                p_tiles = p_sums.hidden + (step.start + i_row) * (2 * C.HIDDEN_TILES)
                store_sums(p_tiles + tile, b_x, m_tile, m_col, C.HIDDEN_TILES)
        if C.NORM != "layer":
            # The rows of other warps, or of a block before, are in memory by now.
            tl.debug_barrier()
            batch_norm_act(step, p_saved, layer, p_running, o_col, m_col, C)
        tile += tl.num_programs(0)


@triton.jit
def _logits(step, p_saved, p_sums, layer, p_weight, i_row, o_col, m_col, b_kept, C: tl.constexpr):
    """The product of the hidden layer's output with the last weights (rows, columns)."""
    if C.NORM == "layer":
        p_tiles = p_sums.hidden + (step.start + i_row) * (2 * C.HIDDEN_TILES)
        b_mean, b_scale = statistics(p_tiles, i_row < C.ROWS, step.eps, C.HIDDEN, 1, C.COLUMNS)
    b_sum = tl.zeros((C.SLICES, i_row.shape[0], o_col.shape[0]), tl.float32)
    for k in range(0, C.HIDDEN, C.SLICES * C.U_SLICE):
        o_k = k + inner(C.SLICES, C.U_SLICE)
        b_weight = b_kept
        if b_kept is None:
            b_weight = load_weight(p_weight, C.HIDDEN, o_col, m_col, o_k, C.HIDDEN, True)
        if C.NORM == "layer":
            p_x = p_saved.hidden_pre + step.start * C.HIDDEN
            b_x = load_rows(p_x, C.HIDDEN, i_row, o_k, C.ROWS, C.HIDDEN)
            b_x = norm_act(b_x, b_mean, b_scale, layer, o_k, C.HIDDEN).to(p_x.dtype.element_ty)
        else:
            p_x = p_saved.acts + step.start * C.HIDDEN
            b_x = load_rows(p_x, C.HIDDEN, i_row, o_k, C.ROWS, C.HIDDEN)
        b_sum = dot(b_x, b_weight, b_sum, C)
    return tl.sum(b_sum, axis=0)


@triton.jit
def _latents_phase(
    step, p_inputs, p_saved, p_sums, layer, p_out, p_fresh_stoch, b_kept, C: tl.constexpr
):
    """The posterior's logits, and the next z, drawn from them.

    Reads acts (ROWS, HIDDEN), or under layer norm hidden_pre and its sums; uniforms (ROWS, GROUPS)
    and is_first.
    Writes logits and stochs (ROWS, LATENTS), and the next step's z in the buffer.
    """
    dtype: tl.constexpr = p_saved.logits.dtype.element_ty
    p_next = p_saved.buffer + step.start * step.s_buffer + C.ROWS * step.s_buffer
    group = tl.program_id(0)
    while group < C.GROUPS:
        o_class, o_col, m_col = classes(group, C.CLASSES, C.CLASS)
        b_bias = tl.load(p_out.bias + o_col, mask=m_col, other=0.0).to(tl.float32)
        for i in range(0, C.ROWS, C.BLOCK):
            i_row = i + tl.arange(0, C.BLOCK)
            m_row = i_row < C.ROWS
            m_tile = m_row[:, None] & m_col[None, :]
            b_logits = _logits(
                step, p_saved, p_sums, layer, p_out.weight, i_row, o_col, m_col, b_kept.out, C
            )
            # Rounded as they are stored: what is drawn from is what has the gradient.
            b_logits = (b_logits + b_bias[None, :]).to(dtype)
            o_tile = (step.start + i_row)[:, None] * C.LATENTS + o_col[None, :]
            tl.store(p_saved.logits + o_tile, b_logits, mask=m_tile)
            b_logits = tl.where(m_col[None, :], b_logits.to(tl.float32), float("-inf"))
            _, b_probs, _ = probs(b_logits, o_class, C.CLASSES, C.UNIMIX)
            p_uniform = p_inputs.uniforms + (i_row * step.STEPS + step.t) * C.GROUPS + group
            b_uniform = tl.load(p_uniform, mask=m_row, other=0.0).to(tl.float32)
            b_index = drawn(b_probs, b_uniform, o_class, C.CLASSES)
            b_z = (o_class[None, :] == b_index[:, None]).to(tl.float32)
            tl.store(p_saved.stochs + o_tile, b_z.to(dtype), mask=m_tile)
            if step.t + 1 < step.STEPS:
                b_z = _reset(step, p_inputs, b_z, p_fresh_stoch, i_row, o_col, m_col, C)
                p_tile = (
                    p_next + C.HIDDEN + C.DETER + i_row[:, None] * step.s_buffer + o_col[None, :]
                )
                tl.store(p_tile, b_z.to(dtype), mask=m_tile)
        group += tl.num_programs(0)


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
    programs = tl.num_programs(0)
    C: tl.constexpr = Constants(
        ROWS, HIDDEN, DETER, GROUPS, CLASSES, GROUPS * CLASSES,
        (HIDDEN + COLUMNS - 1) // COLUMNS, (DETER + COLUMNS - 1) // COLUMNS, UNIMIX, NORM, BLOCK,
        ALL, COLUMNS, CLASS, SLICES, Z_SLICE, U_SLICE, D_SLICE, OPERAND, PRECISION,
    )  # fmt: skip
    p_inputs = Inputs(p_embed_part, p_action_part, p_first, p_uniforms)
    p_saved = Saved(
        p_buffer, p_input_pre, p_gates, p_deters, p_hidden_pre, p_acts, p_means, p_variances,
        p_logits, p_stochs,
    )  # fmt: skip
    p_sums = Sums(p_input_sums, p_gate_sums, p_hidden_sums)
    p_running = (p_running_mean, p_running_var)
    input_layer = Layer(p_input_weight, s_input_weight, p_input_scale, p_input_shift)
    gru_layer = Layer(p_gru_weight, HIDDEN + DETER, p_gru_scale, p_gru_shift)
    hidden_layer = Layer(p_hidden_weight, s_hidden_weight, p_hidden_scale, p_hidden_shift)
    p_out = Linear(p_out_weight, p_out_bias)
    b_kept = Kept(None, (None, None, None), (None, None, None), None, None)
    if KEEP:
        b_kept = _keep(input_layer, gru_layer, hidden_layer, p_out, C)
    met = 0
    t = 0
    while t < STEPS:
        step = Step(t, tl.full((), t, tl.int64) * ROWS, STEPS, s_buffer, eps)
        _input_phase(step, p_inputs, p_saved, p_sums, input_layer, b_kept, C)
        met += programs
        wait_for_all(p_arrived, met)
        _gates_phase(step, p_saved, p_sums, input_layer, gru_layer, b_kept, C)
        met += programs
        wait_for_all(p_arrived, met)
        _state_phase(step, p_inputs, p_saved, p_sums, gru_layer, p_first_deter, C)
        met += programs
        wait_for_all(p_arrived, met)
        _hidden_phase(step, p_inputs, p_saved, p_sums, hidden_layer, p_running, b_kept, C)
        met += programs
        wait_for_all(p_arrived, met)
        _latents_phase(
            step, p_inputs, p_saved, p_sums, hidden_layer, p_out, p_first_stoch, b_kept, C
        )
        met += programs
        wait_for_all(p_arrived, met)
        t += 1


def keeping(
    rows: int,
    hidden: int,
    deter: int,
    latents: int,
    dtype: torch.dtype,
    alone: bool,
    card_bytes: int,
) -> dict[str, Any]:
    """Whether the forward kernel keeps its weights from step to step, and its slices.

    It does where a program has no more than one tile of a layer (`alone`) and registers and the
    card's shared memory (`card_bytes`) hold what it multiplies with, as at size S; a slice is then
    a warp's share of all.
    """
    small = rows <= BLOCK and max(hidden, deter, latents // 2) <= NARROW
    widths = {"Z_SLICE": latents, "U_SLICE": hidden, "D_SLICE": deter}
    if alone and small and dtype in KEPT_DTYPES and card_bytes >= KEPT_BYTES:
        whole = {name: max(16, tiles.block(width) // SLICES) for name, width in widths.items()}
        return {"KEEP": True, **whole}
    return {"KEEP": False, **dict.fromkeys(widths, slice_of(hidden, deter))}


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
        **keeping(
            rows, hidden, deter, groups * classes, dtype, count >= work, shared_bytes(device)
        ), **OPTIONS,
    )  # fmt: skip
    return Sums(input_sums, gate_sums, hidden_sums)
