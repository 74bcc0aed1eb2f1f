"""The reverse of `rssm_observe`'s recurrence in one launch: see `rssm_observe_persistent`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels.barrier import wait_for_all
from mudreamer_fast.kernels.categorical import probs, to_logits
from mudreamer_fast.kernels.layernorm_gru import gate_gradients
from mudreamer_fast.kernels.rssm_observe_persistent import (
    COLUMNS,
    OPTIONS,
    Between,
    Constants,
    Gradients,
    Layer,
    ObserveWeights,
    Past,
    Saved,
    Step,
    Sums,
    Wanted,
    classes,
    columns,
    constants,
    product,
    programs,
    slice_of,
)
from mudreamer_fast.kernels.rssm_observe_persistent_norm import (
    before_batch_norm_act,
    gates_and_norms,
    grad_means,
    product_through_norm,
    statistics,
    store_grad_sums,
    store_layer_grad_sums,
)
from mudreamer_fast.ops.signatures import BatchNormState


@triton.jit
def _from_next(step, p_past, b_grad, i_row, C: tl.constexpr):
    """What the next step asks of this: nothing, where an episode begins there."""
    p_first = p_past.is_first + step.t + 1 + i_row * step.STEPS
    b_first = tl.load(p_first, mask=i_row < C.ROWS, other=1).to(tl.int1)
    return tl.where(b_first[:, None], 0.0, b_grad)


@triton.jit
def _latents_phase(
    step, p_wanted, p_past, p_statistics, p_grads, p_sums, input_layer, C: tl.constexpr
):
    """The gradient of the posterior's logits.

    Reads what is wanted of z and of the logits (ROWS, LATENTS), the logits, and is_first; of the
    next step the gradient of the input layer's output (ROWS, HIDDEN), with its sums.
    Writes grads.logits (ROWS, LATENTS).
    """
    i_next = step.start + C.ROWS
    group = tl.program_id(0)
    while group < C.GROUPS:
        o_class, o_col, m_col = classes(group, C.CLASSES, C.CLASS)
        for i in range(0, C.ROWS, C.BLOCK):
            i_row = i + tl.arange(0, C.BLOCK)
            m_tile = (i_row < C.ROWS)[:, None] & m_col[None, :]
            o_tile = (step.start + i_row)[:, None] * C.LATENTS + o_col[None, :]
            b_grad = tl.load(p_wanted.stoch + o_tile, mask=m_tile, other=0.0).to(tl.float32)
            if step.t + 1 < step.STEPS:
                b_next = product_through_norm(
                    p_grads.input + i_next * C.HIDDEN, p_past.input_pre + i_next * C.HIDDEN,
                    p_statistics.input + i_next * (2 * C.HIDDEN_TILES),
                    p_sums.input + i_next * (2 * C.HIDDEN_TILES), input_layer, step.eps, i_row,
                    o_col, m_col, C,
                )  # fmt: skip
                b_grad += _from_next(step, p_past, b_next, i_row, C)
            b_logits = tl.load(p_past.logits + o_tile, mask=m_tile, other=0.0).to(tl.float32)
            b_logits = tl.where(m_col[None, :], b_logits, float("-inf"))
            b_soft, _, _ = probs(b_logits, o_class, C.CLASSES, C.UNIMIX)
            b_grad = to_logits(b_grad, b_soft, C.UNIMIX)
            b_grad += tl.load(p_wanted.logits + o_tile, mask=m_tile, other=0.0).to(tl.float32)
            p_tile = p_grads.logits + o_tile
            tl.store(p_tile, b_grad.to(p_tile.dtype.element_ty), mask=m_tile)
        group += tl.num_programs(0)


@triton.jit
def _hidden_phase(
    step, p_past, p_statistics, p_grads, p_sums, hidden_layer, p_out_weight, C: tl.constexpr
):
    """The gradient of the posterior's hidden layer's output and, but under layer norm, before it.

    Reads grads.logits (ROWS, LATENTS), hidden_pre (ROWS, HIDDEN), and the statistics of its norm.
    Writes grads.acts (ROWS, HIDDEN). Under layer norm its sums (ROWS, 2, tiles); else grads.hidden
    (ROWS, HIDDEN), and grads.affine (2, HIDDEN).
    """
    tile = tl.program_id(0)
    while tile < C.HIDDEN_TILES:
        o_col, m_col = columns(tile, C.HIDDEN, C.COLUMNS)
        b_scale = tl.load(hidden_layer.p_scale + o_col, mask=m_col, other=0.0).to(tl.float32)
        b_shift = tl.load(hidden_layer.p_shift + o_col, mask=m_col, other=0.0).to(tl.float32)
        for i in range(0, C.ROWS, C.BLOCK):
            i_row = i + tl.arange(0, C.BLOCK)
            m_row = i_row < C.ROWS
            m_tile = m_row[:, None] & m_col[None, :]
            o_tile = (step.start + i_row)[:, None] * C.HIDDEN + o_col[None, :]
            b_grad = product(
                p_grads.logits + step.start * C.LATENTS, C.LATENTS, i_row, p_out_weight, C.HIDDEN,
                o_col, m_col, None, C.LATENTS, C.Z_SLICE, False, C,
            )  # fmt: skip
            p_tile = p_grads.acts + o_tile
            tl.store(p_tile, b_grad.to(p_tile.dtype.element_ty), mask=m_tile)
            if C.NORM == "layer":
                o_sums = (step.start + i_row) * (2 * C.HIDDEN_TILES)
                store_layer_grad_sums(
                    p_past.hidden_pre + o_tile, p_statistics.hidden + o_sums,
                    p_sums.hidden + o_sums + tile, b_grad, b_scale, b_shift, m_row, m_tile,
                    step.eps, C,
                )  # fmt: skip
        if C.NORM != "layer":
            # The rows of other warps, or of a block before, are in memory by now.
            tl.debug_barrier()
            before_batch_norm_act(step, p_past, p_grads, b_scale, b_shift, o_col, m_col, C)
        tile += tl.num_programs(0)


@triton.jit
def _state_phase(
    step,
    p_wanted,
    p_past,
    p_statistics,
    p_grads,
    p_sums,
    p_between,
    hidden_layer,
    gru_layer,
    C: tl.constexpr,
):
    """The gradients of h after the step and of the normalised gates.

    Reads grads.hidden (ROWS, HIDDEN), or under layer norm grads.acts and its sums; what is wanted
    of h (ROWS, DETER), and of the next step grads.before; is_first; the gates and their sums; and h
    before the step, in the buffer.
    Writes grads.deter and between.kept (ROWS, DETER), between.raw_gates (ROWS, 3 * DETER), and the
    sums of the gates' gradient (ROWS, 2, 3 * tiles).
    """
    tile = tl.program_id(0)
    while tile < C.DETER_TILES:
        o_col, m_col = columns(tile, C.DETER, C.COLUMNS)
        for i in range(0, C.ROWS, C.BLOCK):
            i_row = i + tl.arange(0, C.BLOCK)
            m_tile = (i_row < C.ROWS)[:, None] & m_col[None, :]
            if C.NORM == "layer":
                b_grad = product_through_norm(
                    p_grads.acts + step.start * C.HIDDEN, p_past.hidden_pre + step.start * C.HIDDEN,
                    p_statistics.hidden + step.start * (2 * C.HIDDEN_TILES),
                    p_sums.hidden + step.start * (2 * C.HIDDEN_TILES), hidden_layer, step.eps,
                    i_row, o_col, m_col, C,
                )  # fmt: skip
            else:
                b_grad = product(
                    p_grads.hidden + step.start * C.HIDDEN, C.HIDDEN, i_row, hidden_layer.p_weight,
                    hidden_layer.s_weight, o_col, m_col, None, C.HIDDEN, C.U_SLICE, False, C,
                )  # fmt: skip
            o_tile = (step.start + i_row)[:, None] * C.DETER + o_col[None, :]
            b_grad += tl.load(p_wanted.deter + o_tile, mask=m_tile, other=0.0).to(tl.float32)
            if step.t + 1 < step.STEPS:
                p_next = p_grads.before + C.ROWS * C.DETER + o_tile
                b_next = tl.load(p_next, mask=m_tile, other=0.0).to(tl.float32)
                b_grad += _from_next(step, p_past, b_next, i_row, C)
            p_tile = p_grads.deter + o_tile
            tl.store(p_tile, b_grad.to(p_tile.dtype.element_ty), mask=m_tile)
            _through_state(
                step, p_past, p_statistics, p_sums, p_between, gru_layer, b_grad, i_row, tile, C
            )
        tile += tl.num_programs(0)


@triton.jit
def _through_state(
    step, p_past, p_statistics, p_sums, p_between, layer, b_grad, i_row, tile, C: tl.constexpr
):
    """Take the gradient of h (rows, columns) to the h before, past the gates, and to the gates."""
    dtype: tl.constexpr = p_between.kept.dtype.element_ty
    o_col, m_col = columns(tile, C.DETER, C.COLUMNS)
    m_row = i_row < C.ROWS
    m_tile = m_row[:, None] & m_col[None, :]
    o_sums = (step.start + i_row) * (6 * C.DETER_TILES)
    b_mean, b_rate = statistics(p_statistics.gates + o_sums, m_row, step.eps, C.DETER, 3, C.COLUMNS)
    p_gates = p_past.gates + (step.start + i_row)[:, None] * (3 * C.DETER) + o_col[None, :]
    b_gates, b_scales, b_normed = gates_and_norms(
        p_gates, layer, o_col, m_col, m_tile, b_mean, b_rate, C
    )
    b_scale_r, b_scale_c, b_scale_u = b_scales
    b_reset, b_inner, b_update = b_normed
    p_state = (
        p_past.buffer + (step.start + i_row)[:, None] * step.s_buffer + C.HIDDEN + o_col[None, :]
    )
    b_state = tl.load(p_state, mask=m_tile, other=0.0).to(tl.float32)
    o_tile = (step.start + i_row)[:, None] * C.DETER + o_col[None, :]
    b_grad_r, b_grad_c, b_grad_u, b_kept = gate_gradients(
        b_grad, b_reset, b_inner, b_update, b_state
    )
    tl.store(p_between.kept + o_tile, b_kept.to(dtype), mask=m_tile)
    b_grads = (b_grad_r * b_scale_r, b_grad_c * b_scale_c, b_grad_u * b_scale_u)
    p_raw = p_between.raw_gates + (step.start + i_row)[:, None] * (3 * C.DETER) + o_col[None, :]
    for part in tl.static_range(3):
        tl.store(p_raw + part * C.DETER, b_grads[part].to(dtype), mask=m_tile)
    for part in tl.static_range(3):
        p_part = p_sums.gates + o_sums + tile + part * C.DETER_TILES
        store_grad_sums(p_part, b_grads[part], b_gates[part], m_row, 3 * C.DETER_TILES)


@triton.jit
def _gates_phase(step, p_past, p_statistics, p_grads, p_sums, p_between, C: tl.constexpr):
    """The gradient of the gates before their norm.

    Reads between.raw_gates and gates (ROWS, 3 * DETER), with the sums of both.
    Writes grads.gates (ROWS, 3 * DETER).
    """
    tile = tl.program_id(0)
    while tile < C.DETER_TILES:
        o_col, m_col = columns(tile, C.DETER, C.COLUMNS)
        for i in range(0, C.ROWS, C.BLOCK):
            i_row = i + tl.arange(0, C.BLOCK)
            m_row = i_row < C.ROWS
            m_tile = m_row[:, None] & m_col[None, :]
            o_sums = (step.start + i_row) * (6 * C.DETER_TILES)
            b_mean, b_rate = statistics(
                p_statistics.gates + o_sums, m_row, step.eps, C.DETER, 3, C.COLUMNS
            )
            b_grad_mean, b_along = grad_means(
                p_sums.gates + o_sums, m_row, 3 * C.DETER, 3 * C.DETER_TILES
            )
            o_gate = (step.start + i_row)[:, None] * (3 * C.DETER) + o_col[None, :]
            for part in range(3):
                p_grad = p_grads.gates + o_gate + part * C.DETER
                p_raw = p_between.raw_gates + o_gate + part * C.DETER
                p_gate = p_past.gates + o_gate + part * C.DETER
                b_x = tl.load(p_gate, mask=m_tile, other=0.0).to(tl.float32)
                b_x = (b_x - b_mean[:, None]) * b_rate[:, None]
                b_grad = tl.load(p_raw, mask=m_tile, other=0.0).to(tl.float32)
                b_grad = b_grad - b_grad_mean[:, None] - b_x * b_along[:, None]
                b_grad *= b_rate[:, None]
                tl.store(p_grad, b_grad.to(p_grad.dtype.element_ty), mask=m_tile)
        tile += tl.num_programs(0)


@triton.jit
def _input_phase(
    step, p_past, p_statistics, p_grads, p_sums, p_between, input_layer, gru_layer, C: tl.constexpr
):
    """The gradients of the input layer's output and of the h before the step.

    Reads grads.gates (ROWS, 3 * DETER), input_pre (ROWS, HIDDEN) with its sums, and between.kept
    (ROWS, DETER).
    Writes grads.input (ROWS, HIDDEN) with its sums (ROWS, 2, tiles), and grads.before
    (ROWS, DETER).
    """
    p_gates = p_grads.gates + step.start * (3 * C.DETER)
    tile = tl.program_id(0)
    while tile < C.HIDDEN_TILES + C.DETER_TILES:
        if tile < C.HIDDEN_TILES:
            o_col, m_col = columns(tile, C.HIDDEN, C.COLUMNS)
            b_scale = tl.load(input_layer.p_scale + o_col, mask=m_col, other=0.0).to(tl.float32)
            b_shift = tl.load(input_layer.p_shift + o_col, mask=m_col, other=0.0).to(tl.float32)
            for i in range(0, C.ROWS, C.BLOCK):
                i_row = i + tl.arange(0, C.BLOCK)
                m_row = i_row < C.ROWS
                m_tile = m_row[:, None] & m_col[None, :]
                b_grad = product(
                    p_gates, 3 * C.DETER, i_row, gru_layer.p_weight, gru_layer.s_weight, o_col,
                    m_col, None, 3 * C.DETER, C.D_SLICE, False, C,
                )  # fmt: skip
                o_tile = (step.start + i_row)[:, None] * C.HIDDEN + o_col[None, :]
                p_tile = p_grads.input + o_tile
                tl.store(p_tile, b_grad.to(p_tile.dtype.element_ty), mask=m_tile)
                o_sums = (step.start + i_row) * (2 * C.HIDDEN_TILES)
                store_layer_grad_sums(
                    p_past.input_pre + o_tile, p_statistics.input + o_sums,
                    p_sums.input + o_sums + tile, b_grad, b_scale, b_shift, m_row, m_tile, step.eps,
                    C,
                )  # fmt: skip
        else:
            o_col, m_col = columns(tile - C.HIDDEN_TILES, C.DETER, C.COLUMNS)
            for i in range(0, C.ROWS, C.BLOCK):
                i_row = i + tl.arange(0, C.BLOCK)
                m_tile = (i_row < C.ROWS)[:, None] & m_col[None, :]
                b_grad = product(
                    p_gates, 3 * C.DETER, i_row, gru_layer.p_weight + C.HIDDEN, gru_layer.s_weight,
                    o_col, m_col, None, 3 * C.DETER, C.D_SLICE, False, C,
                )  # fmt: skip
                o_tile = (step.start + i_row)[:, None] * C.DETER + o_col[None, :]
                b_grad += tl.load(p_between.kept + o_tile, mask=m_tile, other=0.0).to(tl.float32)
                p_tile = p_grads.before + o_tile
                tl.store(p_tile, b_grad.to(p_tile.dtype.element_ty), mask=m_tile)
        tile += tl.num_programs(0)


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
    programs = tl.num_programs(0)
    C: tl.constexpr = Constants(
        ROWS, HIDDEN, DETER, GROUPS, CLASSES, GROUPS * CLASSES,
        (HIDDEN + COLUMNS - 1) // COLUMNS, (DETER + COLUMNS - 1) // COLUMNS, UNIMIX, NORM, BLOCK,
        ALL, COLUMNS, CLASS, SLICES, SLICE, SLICE, SLICE, OPERAND, PRECISION,
    )  # fmt: skip
    p_wanted = Wanted(p_wanted_deter, p_wanted_stoch, p_wanted_logits)
    p_past = Past(
        p_buffer, p_first, p_input_pre, p_gates, p_hidden_pre, p_means, p_variances, p_logits
    )
    p_statistics = Sums(p_input_statistics, p_gate_statistics, p_hidden_statistics)
    p_grads = Gradients(
        p_grad_logits, p_grad_acts, p_grad_hidden, p_affine, p_grad_deter, p_grad_gates,
        p_grad_input, p_grad_before,
    )  # fmt: skip
    p_sums = Sums(p_input_sums, p_gate_sums, p_hidden_sums)
    p_between = Between(p_kept, p_raw_gates)
    input_layer = Layer(p_input_weight, s_input_weight, p_input_scale, p_input_shift)
    gru_layer = Layer(p_gru_weight, HIDDEN + DETER, p_gru_scale, p_gru_shift)
    hidden_layer = Layer(p_hidden_weight, s_hidden_weight, p_hidden_scale, p_hidden_shift)
    met = 0
    t = STEPS - 1
    while t >= 0:
        step = Step(t, tl.full((), t, tl.int64) * ROWS, STEPS, s_buffer, eps)
        _latents_phase(step, p_wanted, p_past, p_statistics, p_grads, p_sums, input_layer, C)
        met += programs
        wait_for_all(p_arrived, met)
        _hidden_phase(step, p_past, p_statistics, p_grads, p_sums, hidden_layer, p_out_weight, C)
        met += programs
        wait_for_all(p_arrived, met)
        _state_phase(
            step, p_wanted, p_past, p_statistics, p_grads, p_sums, p_between, hidden_layer,
            gru_layer, C,
        )  # fmt: skip
        met += programs
        wait_for_all(p_arrived, met)
        _gates_phase(step, p_past, p_statistics, p_grads, p_sums, p_between, C)
        met += programs
        wait_for_all(p_arrived, met)
        _input_phase(
            step, p_past, p_statistics, p_grads, p_sums, p_between, input_layer, gru_layer, C
        )
        met += programs
        wait_for_all(p_arrived, met)
        t -= 1


def launch_backward(
    saved: Saved,
    sums: Sums,
    wanted: Wanted,
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
        wanted: of its results, but by later steps.
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
    gradients, empty = Gradients.like(saved), torch.empty_like
    of_input, of_gates, of_hidden = (empty(tensor) for tensor in sums)
    *multiplied, _ = weights.tensors()  # all but the output's bias
    work = -(-hidden // COLUMNS) - (-deter // COLUMNS)
    rssm_observe_persistent_bwd_kernel[(programs(max(work, groups), device),)](
        torch.zeros((), dtype=torch.int32, device=device), *wanted, saved.buffer, is_first,
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
