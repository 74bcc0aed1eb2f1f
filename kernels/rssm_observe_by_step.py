"""The recurrence of `rssm_observe` step by step: nine launches forward, and its reverse."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels import tiles
from mudreamer_fast.kernels.batchnorm_posterior import BatchNormActFunction
from mudreamer_fast.kernels.categorical import SampleFunction
from mudreamer_fast.kernels.layernorm_gru import GruCellFunction
from mudreamer_fast.kernels.linear_norm_act import NormActFunction
from mudreamer_fast.kernels.rssm_observe_persistent import (
    Gradients,
    ObserveWeights,
    Saved,
    Wanted,
)
from mudreamer_fast.ops.signatures import BatchNormState, NormLinear

TILE = 1024


@triton.jit
def rssm_observe_reset_kernel(
    p_deter,  # (rows, DETER), row stride s_deter
    p_stoch,  # (rows, LATENTS), row stride s_stoch
    p_first,  # (rows,) bool, element stride s_first
    p_first_deter,  # (DETER,)
    p_first_stoch,  # (LATENTS,)
    p_row,  # (rows, DETER + LATENTS), row stride s_row: where the next step starts from
    s_deter,
    s_stoch,
    s_first,
    s_row,
    DETER: tl.constexpr,
    LATENTS: tl.constexpr,
    TILE: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_col = tl.program_id(1) * TILE + tl.arange(0, TILE)
    m_deter = o_col < DETER
    m_stoch = (o_col >= DETER) & (o_col < DETER + LATENTS)
    o_stoch = tl.where(m_stoch, o_col - DETER, 0)
    b_first = tl.load(p_first + i_row * s_first).to(tl.int1)
    b_kept = tl.load(p_deter + i_row * s_deter + o_col, mask=m_deter, other=0.0).to(tl.float32)
    b_kept += tl.load(p_stoch + i_row * s_stoch + o_stoch, mask=m_stoch, other=0.0).to(tl.float32)
    b_fresh = tl.load(p_first_deter + o_col, mask=m_deter, other=0.0).to(tl.float32)
    b_fresh += tl.load(p_first_stoch + o_stoch, mask=m_stoch, other=0.0).to(tl.float32)
    b_state = tl.where(b_first, b_fresh, b_kept).to(p_row.dtype.element_ty)
    tl.store(p_row + i_row * s_row + o_col, b_state, mask=m_deter | m_stoch)


@triton.jit
def rssm_observe_carry_kernel(
    p_input,  # (rows, HIDDEN), contiguous: a step's gradient, 0 afterwards where it begins anew
    p_before,  # (rows, DETER), contiguous: of the h that the step starts from, through the step
    p_wanted,  # (rows, DETER), contiguous: what else is asked of that h
    p_first,  # (rows,) bool, element stride s_first
    p_deter,  # (rows, DETER), contiguous: of h after the step before
    s_first,
    HIDDEN: tl.constexpr,
    DETER: tl.constexpr,
    TILE: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_col = tl.program_id(1) * TILE + tl.arange(0, TILE)
    b_first = tl.load(p_first + i_row * s_first).to(tl.int1)
    m_input = o_col < HIDDEN
    o_input = i_row * HIDDEN + o_col
    b_grad = tl.load(p_input + o_input, mask=m_input, other=0.0)
    tl.store(p_input + o_input, tl.where(b_first, 0.0, b_grad), mask=m_input)
    m_deter = o_col < DETER
    o_deter = i_row * DETER + o_col
    b_grad = tl.load(p_before + o_deter, mask=m_deter, other=0.0).to(tl.float32)
    b_grad = tl.where(b_first, 0.0, b_grad)
    b_grad += tl.load(p_wanted + o_deter, mask=m_deter, other=0.0).to(tl.float32)
    tl.store(p_deter + o_deter, b_grad.to(p_deter.dtype.element_ty), mask=m_deter)


class Shape(NamedTuple):
    """What the loops need besides tensors."""

    batch_norm: BatchNormState | None
    unimix: float
    eps: float
    persistent: bool


class Start(NamedTuple):
    """Where sequences start from, and where episodes do."""

    deter: Tensor
    """(B, D), h before the first step."""
    stoch: Tensor
    """(B, G*C), z before it."""
    fresh_deter: Tensor
    """(D,), the learned start."""
    fresh_stoch: Tensor
    """(G*C,)."""


def start_from(
    row: Tensor,
    first: Tensor,
    deter: Tensor,
    stoch: Tensor,
    start: Start,
    hidden: int,
) -> None:
    """Write where a step starts from: the state before, or the learned one in a new episode.

    Args:
        row: (B, U + D + G*C + A), the step's `[u | h | z | a]`; h and z are written.
        first: (B,) bool, where an episode begins.
        deter: (B, D), h after the step before.
        stoch: (B, G*C), z after it.
        start: has the learned start.
        hidden: U.
    """
    width, latents = deter.shape[1], stoch.shape[1]
    rssm_observe_reset_kernel[(len(row), triton.cdiv(width + latents, TILE))](
        deter, stoch, first, start.fresh_deter, start.fresh_stoch, row[:, hidden:],
        deter.stride(0), stoch.stride(0), first.stride(0), row.stride(0), width, latents, TILE,
        **tiles.launch(4),
    )  # fmt: skip


def forward_by_step(
    saved: Saved,
    embed_part: Tensor,
    is_first: Tensor,
    uniforms: Tensor,
    start: Start,
    weights: ObserveWeights,
    shape: Shape,
    groups: torch.Size,
) -> None:
    """Run the recurrence in nine launches a step."""
    hidden, width = saved.input_pre.shape[2], saved.deters.shape[2]
    columns = saved.buffer.shape[2] - hidden - width
    input_weight = F.pad(weights.input.weight, (0, columns - weights.input.weight.shape[1]))
    deter, stoch = start.deter, start.stoch
    for t, row in enumerate(saved.buffer):
        start_from(row, is_first[:, t], deter, stoch, start, hidden)
        input_pre, gates, hidden_pre = saved.input_pre[t], saved.gates[t], saved.hidden_pre[t]
        act, before = saved.acts[t], row[:, hidden : hidden + width]
        deter, stoch = saved.deters[t], saved.stochs[t]

        torch.mm(row[:, hidden + width :], input_weight.t(), out=input_pre)
        layer = weights.input
        NormActFunction.launch_forward(
            input_pre, layer.norm_weight, layer.norm_bias, shape.eps, row[:, :hidden]
        )
        torch.mm(row[:, : hidden + width], weights.gru.weight.t(), out=gates)
        layer = weights.gru
        GruCellFunction.launch_forward(
            gates, before, layer.norm_weight, layer.norm_bias, shape.eps, deter
        )
        torch.addmm(embed_part[:, t], deter, weights.hidden.weight.t(), out=hidden_pre)
        layer = weights.hidden
        if shape.batch_norm is None:
            NormActFunction.launch_forward(
                hidden_pre, layer.norm_weight, layer.norm_bias, shape.eps, act
            )
        else:
            BatchNormActFunction.launch_forward(
                hidden_pre, layer.norm_weight, layer.norm_bias, shape.batch_norm, shape.eps,
                (act, saved.means[t], saved.variances[t]),
            )  # fmt: skip
        torch.addmm(weights.out.bias, act, weights.out.weight.t(), out=saved.logits[t])
        by_group = saved.logits[t].view(len(row), *groups)
        SampleFunction.launch_forward(by_group, uniforms[:, t], shape.unimix, stoch)


def backward_by_step(
    saved: Saved,
    wanted: Wanted,
    reset: Tensor,
    weights: ObserveWeights,
    shape: Shape,
    groups: torch.Size,
) -> Gradients:
    """Walk back through the recurrence in ten launches a step, each result in its place.

    Args:
        saved: by the forward pass.
        wanted: of its results, but by later steps.
        reset: (T, B, 1) bool, where an episode begins.
        weights: with the input layer's columns for the latents alone.
        shape: norm and constants.
        groups: G and C.
    """
    hidden, width = saved.input_pre.shape[2], saved.deters.shape[2]
    gradients = Gradients.like(saved)
    states = saved.buffer[:, :, hidden : hidden + width]
    by_group = saved.logits.unflatten(-1, groups)
    gates_to_input, gates_to_state = weights.gru.weight.split((hidden, width), dim=1)
    grad_deter, grad_stoch = wanted.deter[-1], wanted.stoch[-1]
    for t in reversed(range(len(states))):
        of = Gradients(*(gradient[t] for gradient in gradients))
        SampleFunction.launch_backward(
            grad_stoch, by_group[t], shape.unimix, wanted.logits[t], of.logits.view(-1, *groups)
        )
        torch.mm(of.logits, weights.out.weight, out=of.acts)
        _hidden_backward(of, saved, t, weights.hidden, shape)
        torch.addmm(grad_deter, of.hidden, weights.hidden.weight, out=of.deter)
        layer = weights.gru
        _, grad_kept, _ = GruCellFunction.launch_backward(
            of.deter, saved.gates[t], states[t], layer.norm_weight, layer.norm_bias, shape.eps,
            of.gates,
        )  # fmt: skip
        torch.mm(of.gates, gates_to_input, out=of.input)
        torch.addmm(grad_kept, of.gates, gates_to_state, out=of.before)
        if not t:
            break
        layer = weights.input
        (grad_input,) = NormActFunction.launch_backward(
            of.input, saved.input_pre[t], layer.norm_weight, layer.norm_bias, shape.eps,
            affine=False,
        )  # fmt: skip
        grad_deter = _carried_back(grad_input, of.before, wanted.deter[t - 1], reset[t])
        grad_stoch = torch.addmm(wanted.stoch[t - 1], grad_input, layer.weight)
    return gradients


def _carried_back(grad_input: Tensor, before: Tensor, wanted: Tensor, first: Tensor) -> Tensor:
    """The gradient (B, D) of h after the step before; of `grad_input`, rows that begin become 0."""
    rows, hidden = grad_input.shape
    width = before.shape[1]
    out = torch.empty_like(before)
    rssm_observe_carry_kernel[(rows, triton.cdiv(max(hidden, width), TILE))](
        grad_input, before, wanted, first, out, first.stride(0), hidden, width, TILE,
        **tiles.launch(4),
    )  # fmt: skip
    return out


def _hidden_backward(
    of: Gradients, saved: Saved, step: int, layer: NormLinear, shape: Shape
) -> None:
    """Through the posterior's hidden layer's norm, from its output's gradient."""
    hidden_pre = saved.hidden_pre[step]
    if shape.batch_norm is None:
        NormActFunction.launch_backward(
            of.acts, hidden_pre, layer.norm_weight, layer.norm_bias, shape.eps, False, of.hidden
        )
        return
    mean, var, use_batch = shape.batch_norm
    if use_batch:
        mean, var = saved.means[step], saved.variances[step]
    BatchNormActFunction.launch_backward(
        of.acts, hidden_pre, layer.norm_weight, layer.norm_bias, mean, var, use_batch, shape.eps,
        (of.hidden, of.affine[0], of.affine[1]),
    )  # fmt: skip
