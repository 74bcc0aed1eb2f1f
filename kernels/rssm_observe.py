"""The RSSM along a replayed sequence: few launches a step, and its reverse written out by hand.

Each step's row lies in one buffer as `[u | h | z | a]`, the state before the step with the action
that led to it, so that the input layer reads `[z a]` and the cell `[u h]` where they lie. What does
not depend on the step before is done for all steps at once: the embedding's part of the posterior,
the prior, and the gradients of all matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels.batchnorm_posterior import BatchNormActFunction
from mudreamer_fast.kernels.categorical import SampleFunction
from mudreamer_fast.kernels.checks import check
from mudreamer_fast.kernels.layernorm_gru import GruCellFunction
from mudreamer_fast.kernels.linear_norm_act import NormActFunction, linear_norm_act
from mudreamer_fast.weights import BatchNormState, Observed, RssmWeights

ALIGNMENT = 8
"""Elements that rows are padded to, so that tensor cores can read every slice."""
TILE = 1024


@triton.jit
def rssm_observe_fwd_kernel(
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


class _Shape(NamedTuple):
    """What the loops need besides tensors."""

    batch_norm: BatchNormState | None
    unimix: float
    eps: float


class ObserveFunction(torch.autograd.Function):
    """The recurrence: everything but the embedding's product and the prior."""

    @staticmethod
    def forward(
        ctx: Any,
        embed_part: Tensor,
        action: Tensor,
        is_first: Tensor,
        uniforms: Tensor,
        deter: Tensor,
        stoch: Tensor,
        first_deter: Tensor,
        first_stoch: Tensor,
        shape: _Shape,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        """See `rssm_observe`.

        The weights are those of the input layer (3), the cell (3), the posterior's hidden layer
        without the embedding's columns (3) and its output (2).
        """
        rows, steps, hidden = embed_part.shape
        width, latents, actions = deter.shape[1], stoch[0].numel(), action.shape[2]
        state_end = hidden + width + latents
        padded = -(-(state_end + actions) // ALIGNMENT) * ALIGNMENT
        buffer = deter.new_zeros(steps, rows, padded)
        buffer[:, :, state_end : state_end + actions] = action.transpose(0, 1)
        input_weight = F.pad(weights[0], (0, padded - state_end - actions))

        new = deter.new_empty
        input_pre, gates = new(steps, rows, hidden), new(steps, rows, 3 * width)
        deters, stochs = new(steps, rows, width), new(steps, rows, latents)
        logits = new(steps, rows, latents)
        by_group = logits.view(steps, rows, *stoch.shape[1:])
        hidden_pre, acts = new(steps, rows, hidden), new(steps, rows, hidden)
        columns = hidden if shape.batch_norm else 0
        means, variances = new(steps, columns), new(steps, columns)
        first_stoch = first_stoch.flatten()
        before = deter, stoch.flatten(1)
        grid = (rows, triton.cdiv(width + latents, TILE))
        for t in range(steps):
            row, first = buffer[t], is_first[:, t]
            state = row[:, hidden : hidden + width]
            rssm_observe_fwd_kernel[grid](
                *before, first, first_deter, first_stoch, row[:, hidden:], before[0].stride(0),
                before[1].stride(0), first.stride(0), padded, width, latents, TILE, num_warps=4,
            )  # fmt: skip
            torch.mm(row[:, hidden + width :], input_weight.t(), out=input_pre[t])
            NormActFunction.run(input_pre[t], weights[1], weights[2], shape.eps, row[:, :hidden])
            torch.mm(row[:, : hidden + width], weights[3].t(), out=gates[t])
            GruCellFunction.run(gates[t], state, weights[4], weights[5], shape.eps, deters[t])
            torch.addmm(embed_part[:, t], deters[t], weights[6].t(), out=hidden_pre[t])
            if shape.batch_norm is None:
                NormActFunction.run(hidden_pre[t], weights[7], weights[8], shape.eps, acts[t])
            else:
                BatchNormActFunction.run(
                    hidden_pre[t], weights[7], weights[8], shape.batch_norm, shape.eps,
                    (acts[t], means[t], variances[t]),
                )  # fmt: skip
            torch.addmm(weights[10], acts[t], weights[9].t(), out=logits[t])
            SampleFunction.run(by_group[t], uniforms[:, t], shape.unimix, stochs[t])
            before = deters[t], stochs[t]
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.input_weight, ctx.sizes = shape, input_weight, (hidden, width, latents)
        ctx.groups = stoch.shape[1:]
        ctx.save_for_backward(
            buffer, input_pre, gates, deters, logits, hidden_pre, acts, means, variances,
            is_first, *weights,
        )  # fmt: skip
        previous = buffer[:, :, hidden + width : state_end].unflatten(-1, stoch.shape[1:])
        by_step = (
            deters,
            stochs.view(by_group.shape),
            by_group,
            buffer[:, :, hidden : hidden + width],
            previous,
        )
        # Copies, as the kernels that read them want whole rows.
        out = (*(tensor.transpose(0, 1).contiguous() for tensor in by_step), means, variances)
        ctx.mark_non_differentiable(means, variances)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """Walk back in time, then take the gradients of all matrices at once."""
        shape, (hidden, width, latents) = ctx.shape, ctx.sizes
        buffer, input_pre, gates, deters, logits, hidden_pre, acts, means, variances, is_first = (
            ctx.saved_tensors[:10]
        )
        weights = ctx.saved_tensors[10:]
        steps, rows = deters.shape[:2]
        posterior = logits.view(steps, rows, *ctx.groups)
        wanted = _by_step(grads[:5])
        grad_deter, grad_stoch = deters.new_zeros(rows, width), deters.new_zeros(rows, latents)
        grad_logits, grad_hidden = torch.empty_like(logits), torch.empty_like(hidden_pre)
        grad_gates, grad_input = torch.empty_like(gates), torch.empty_like(input_pre)
        grad_first = deters.new_zeros(width)
        affine = [torch.zeros_like(weights[i]) for i in (1, 2, 4, 5, 7, 8)]
        for t in reversed(range(steps)):
            grad_deter = _plus(grad_deter, wanted[0], t)
            grad_stoch = _plus(grad_stoch, wanted[1], t)
            pulled = SampleFunction.pull(grad_stoch, posterior[t], shape.unimix)
            grad_logits[t] = _plus(pulled.view(rows, latents), wanted[2], t)
            grad = grad_logits[t] @ weights[9]
            if shape.batch_norm is None:
                found = NormActFunction.pull(grad, hidden_pre[t], weights[7], weights[8], shape.eps)
            else:
                mean, var, use_batch = shape.batch_norm
                if use_batch:
                    mean, var = means[t], variances[t]
                found = BatchNormActFunction.pull(
                    grad, hidden_pre[t], weights[7], weights[8], mean, var, use_batch, shape.eps
                )
            grad_hidden[t] = found[0]
            _add(affine[4:], found[1:])
            grad_deter = torch.addmm(grad_deter, found[0], weights[6])
            state = buffer[t, :, hidden : hidden + width]
            found = GruCellFunction.pull(
                grad_deter, gates[t], state, weights[4], weights[5], shape.eps
            )
            grad_gates[t] = found[0]
            _add(affine[2:4], found[2:])
            through = found[0] @ weights[3]
            grad_deter = _plus(found[1] + through[:, hidden:], wanted[3], t)
            found = NormActFunction.pull(
                through[:, :hidden], input_pre[t], weights[1], weights[2], shape.eps
            )
            grad_input[t] = found[0]
            _add(affine[:2], found[1:])
            grad_stoch = _plus((found[0] @ ctx.input_weight)[:, :latents], wanted[4], t)
            reset = is_first[:, t, None]
            grad_first += (grad_deter * reset).sum(0)
            grad_deter = grad_deter.masked_fill(reset, 0.0)
            grad_stoch = grad_stoch.masked_fill(reset, 0.0)
        matrices = _matrix_gradients(
            (grad_input, buffer[:, :, hidden + width :][:, :, : weights[0].shape[1]]),
            (grad_gates, buffer[:, :, : hidden + width]),
            (grad_hidden, deters),
            (grad_logits, acts),
        )
        return (
            grad_hidden.transpose(0, 1), None, None, None, grad_deter,
            grad_stoch.view(rows, *posterior.shape[2:]), grad_first, None, None,
            matrices[0], *affine[:2], matrices[1], *affine[2:4], matrices[2], *affine[4:],
            matrices[3], grad_logits.sum((0, 1)),
        )  # fmt: skip


def _by_step(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients (B, T, ...) as (T, B, size); None stays."""
    return [None if grad is None else grad.transpose(0, 1).flatten(2) for grad in grads]


def _plus(tensor: Tensor, wanted: Tensor | None, step: int) -> Tensor:
    return tensor if wanted is None else tensor + wanted[step]


def _add(sums: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    for total, part in zip(sums, parts, strict=True):
        total += part


def _matrix_gradients(*pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
    """For each product, from its output's gradients (T, B, out) and inputs (T, B, in)."""
    return [grad.flatten(0, 1).t() @ inputs.flatten(0, 1) for grad, inputs in pairs]


def rssm_initial(weights: RssmWeights, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """The learned start: `h_0 = tanh(w)` (D,) and `z_0`, the mode of the prior there (G, C)."""
    deter = torch.tanh(weights.initial)
    prior = _prior(deter, weights, groups, eps)
    mode = prior.argmax(-1, keepdim=True)
    return deter, torch.zeros_like(prior).scatter_(-1, mode, 1.0)


def _prior(deter: Tensor, weights: RssmWeights, groups: int, eps: float) -> Tensor:
    """Logits (..., G, C) of the latents before the observation is seen, from (..., D)."""
    hidden = linear_norm_act(deter, weights.prior_hidden, eps)
    logits = F.linear(hidden, weights.prior_out.weight, weights.prior_out.bias)
    return logits.reshape(*logits.shape[:-1], groups, -1)


def rssm_observe(
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    uniforms: Tensor,
    state: tuple[Tensor, Tensor],
    weights: RssmWeights,
    batch_norm: BatchNormState | None,
    unimix: float,
    eps: float,
) -> Observed:
    """Filter a batch of sequences (MuDreamer, arXiv 2405.15083, eq. 1).

    `h_t = f(h_{t-1}, z_{t-1}, a_{t-1})`, `z_t ~ q(z | h_t, x_t)`; where an episode begins, h and
    z are set to the learned start and the action to zero.

    Args:
        embed: (B, T, E), the encoder's features x.
        action: (B, T, A), the action that led to each step; no gradient flows to it.
        is_first: (B, T) bool, where an episode begins.
        uniforms: (B, T, G), the latents' randomness, in [0, 1).
        state: h (B, D) and z (B, G, C) before the first step.
        weights: parameters of the RSSM.
        batch_norm: what the posterior's batch norm uses, or None for layer norm.
        unimix: share of the uniform distribution in every categorical.
        eps: added to the variances.
    """
    check("embed", embed, None, None, None)
    rows, steps, size = embed.shape
    deter, stoch = state
    groups, classes = stoch.shape[-2:]
    width, hidden = deter.shape[-1], len(weights.input.norm_weight)
    latents = groups * classes
    check("action", action, rows, steps, None, like=embed)
    check("uniforms", uniforms, rows, steps, groups)
    check("state[0]", deter, rows, width, like=embed)
    check("state[1]", stoch, rows, groups, classes, like=embed)
    inputs = latents + action.shape[-1]
    check("weights.input", weights.input.weight, hidden, inputs, like=embed)
    check("weights.gru", weights.gru.weight, 3 * width, hidden + width, like=embed)
    layer = weights.posterior_hidden
    check("weights.posterior_hidden", layer.weight, hidden, size + width, like=embed)
    check("weights.posterior_out", weights.posterior_out.weight, latents, hidden, like=embed)
    if is_first.dtype != torch.bool or is_first.shape != (rows, steps):
        raise ValueError(
            f"is_first must be bool of shape ({rows}, {steps}), got {is_first.dtype} of "
            f"{tuple(is_first.shape)}"
        )
    first_deter, first_stoch = rssm_initial(weights, groups, eps)
    action = action.detach().masked_fill(is_first.unsqueeze(-1), 0.0)
    action = action / action.abs().clamp(min=1.0)
    found = ObserveFunction.apply(
        F.linear(embed.flatten(0, 1), layer.weight[:, :size]).view(rows, steps, -1),
        action,
        is_first,
        uniforms,
        deter,
        stoch,
        first_deter,
        first_stoch,
        _Shape(batch_norm, unimix, eps),
        *weights.input,
        *weights.gru,
        layer.weight[:, size:],
        layer.norm_weight,
        layer.norm_bias,
        *weights.posterior_out,
    )
    deters, stochs, posterior, previous_deter, previous_stoch, mean, var = found
    prior = _prior(deters, weights, groups, eps)
    return Observed(deters, stochs, posterior, prior, previous_deter, previous_stoch, mean, var)
