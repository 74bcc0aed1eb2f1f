"""The recurrence of `rssm_observe` step by step: nine launches forward, and its reverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels.batchnorm_posterior import BatchNormActFunction
from mudreamer_fast.kernels.categorical import SampleFunction
from mudreamer_fast.kernels.layernorm_gru import GruCellFunction
from mudreamer_fast.kernels.linear_norm_act import NormActFunction
from mudreamer_fast.kernels.rssm_observe_persistent import ObserveWeights, Saved
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


class GradOutputs(NamedTuple):
    """Gradients (T, B, size) of what `forward` gave, None of what is not used."""

    deter: Tensor | None
    stoch: Tensor | None
    posterior: Tensor | None
    previous_deter: Tensor | None
    previous_stoch: Tensor | None


class Gradients(NamedTuple):
    """What the backward pass through the recurrence gives."""

    input: Tensor
    """(T, B, U), of the input layer before its norm."""
    gates: Tensor
    """(T, B, 3D), before their norm."""
    hidden: Tensor
    """(T, B, U), of the posterior's hidden layer before its norm."""
    logits: Tensor
    """(T, B, G*C), of the posterior."""
    input_norm: Sequence[Tensor]
    """Of scale and shift of the input layer's norm."""
    gates_norm: Sequence[Tensor]
    """Of the gates' norm."""
    hidden_norm: Sequence[Tensor]
    """Of the posterior's hidden layer's."""
    deter: Tensor
    """(B, D), of the h before the first step."""
    stoch: Tensor
    """(B, G*C), of the z before it."""
    first: Tensor
    """(D,), of the learned start."""


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
        num_warps=4,
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
    grad_outputs: GradOutputs,
    is_first: Tensor,
    weights: ObserveWeights,
    shape: Shape,
    groups: torch.Size,
) -> Gradients:
    """Walk back through the recurrence in some twenty launches a step."""
    steps, rows, hidden = saved.input_pre.shape
    width, latents = saved.deters.shape[2], saved.logits.shape[2]
    posterior = saved.logits.view(steps, rows, *groups)
    grad_deter = saved.deters.new_zeros(rows, width)
    grad_stoch = saved.deters.new_zeros(rows, latents)

    def zeros(layer: NormLinear) -> list[Tensor]:
        return [torch.zeros_like(layer.norm_weight), torch.zeros_like(layer.norm_bias)]

    gradients = Gradients(
        input=torch.empty_like(saved.input_pre),
        gates=torch.empty_like(saved.gates),
        hidden=torch.empty_like(saved.hidden_pre),
        logits=torch.empty_like(saved.logits),
        input_norm=zeros(weights.input),
        gates_norm=[],
        hidden_norm=zeros(weights.hidden),
        deter=grad_deter,
        stoch=grad_stoch,
        first=saved.deters.new_zeros(width),
    )
    states = saved.buffer[:, :, hidden : hidden + width]
    grad_deters = torch.empty_like(saved.deters)
    statistics = torch.empty(steps, rows, 2, device=grad_deters.device)
    for t in reversed(range(steps)):
        grad_deter = plus(grad_deter, grad_outputs.deter, t)
        grad_stoch = plus(grad_stoch, grad_outputs.stoch, t)
        grad_logits = SampleFunction.launch_backward(grad_stoch, posterior[t], shape.unimix)
        gradients.logits[t] = plus(grad_logits.view(rows, latents), grad_outputs.posterior, t)

        gradients.hidden[t], *affine = _hidden_backward(
            gradients.logits[t] @ weights.out.weight, saved, t, weights.hidden, shape
        )
        _add(gradients.hidden_norm, affine)
        torch.addmm(grad_deter, gradients.hidden[t], weights.hidden.weight, out=grad_deters[t])

        layer = weights.gru
        gradients.gates[t], grad_kept, _ = GruCellFunction.launch_backward(
            grad_deters[t], saved.gates[t], states[t], layer.norm_weight, layer.norm_bias,
            shape.eps, statistics[t],
        )  # fmt: skip
        through = gradients.gates[t] @ weights.gru.weight
        grad_deter = plus(grad_kept + through[:, hidden:], grad_outputs.previous_deter, t)

        layer = weights.input
        gradients.input[t], *affine = NormActFunction.launch_backward(
            through[:, :hidden], saved.input_pre[t], layer.norm_weight, layer.norm_bias, shape.eps
        )
        _add(gradients.input_norm, affine)
        grad_row = gradients.input[t] @ weights.input.weight
        grad_stoch = plus(grad_row[:, :latents], grad_outputs.previous_stoch, t)

        reset = is_first[:, t, None]
        gradients.first.add_((grad_deter * reset).sum(0))
        grad_deter = grad_deter.masked_fill(reset, 0.0)
        grad_stoch = grad_stoch.masked_fill(reset, 0.0)
    gates_norm = GruCellFunction.launch_affine(
        grad_deters.flatten(0, 1), saved.gates.flatten(0, 1), states.flatten(0, 1),
        *weights.gru[1:], statistics.flatten(0, 1),
    )  # fmt: skip
    return gradients._replace(gates_norm=[*gates_norm], deter=grad_deter, stoch=grad_stoch)


def _hidden_backward(
    grad: Tensor, saved: Saved, step: int, layer: NormLinear, shape: Shape
) -> tuple[Tensor, ...]:
    """Gradients before the posterior's hidden layer's norm (B, U), and of scale and shift (U,)."""
    hidden_pre = saved.hidden_pre[step]
    if shape.batch_norm is None:
        return NormActFunction.launch_backward(
            grad, hidden_pre, layer.norm_weight, layer.norm_bias, shape.eps
        )
    mean, var, use_batch = shape.batch_norm
    if use_batch:
        mean, var = saved.means[step], saved.variances[step]
    return BatchNormActFunction.launch_backward(
        grad, hidden_pre, layer.norm_weight, layer.norm_bias, mean, var, use_batch, shape.eps
    )


def plus(grad: Tensor, of_output: Tensor | None, step: int) -> Tensor:
    """A gradient, and what the caller has for a step of the output."""
    return grad if of_output is None else grad + of_output[step]


def _add(sums: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    for total, part in zip(sums, parts, strict=True):
        total += part
