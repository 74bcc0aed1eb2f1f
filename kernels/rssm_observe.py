"""The RSSM along a replayed sequence: few launches a step, and its reverse written out by hand.

Each step's row lies in one buffer as `[u | h | z | a]`, the state before the step with the action
that led to it, so that the input layer reads `[z a]` and the cell `[u h]` where they lie. What does
not depend on the step before is done for all steps at once: the embedding's part of the posterior,
the prior, and the gradients of all matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mudreamer_fast.kernels.checks import check
from mudreamer_fast.kernels.layernorm_gru import GruCellFunction
from mudreamer_fast.kernels.linear_norm_act import NormActFunction, linear_norm_act
from mudreamer_fast.kernels.rssm_observe_by_step import (
    Shape,
    Start,
    backward_by_step,
    forward_by_step,
    start_from,
)
from mudreamer_fast.kernels.rssm_observe_persistent import (
    MAX_ROWS,
    Gradients,
    Inputs,
    ObserveWeights,
    Saved,
    Sums,
    Wanted,
)
from mudreamer_fast.kernels.rssm_observe_persistent_bwd import launch_backward
from mudreamer_fast.kernels.rssm_observe_persistent_fwd import launch_forward
from mudreamer_fast.ops.signatures import BatchNormState, Observed, RssmWeights


class GradOutputs(NamedTuple):
    """Gradients (T, B, size) of what `forward` gave, None of what is not used."""

    deter: Tensor | None
    stoch: Tensor | None
    posterior: Tensor | None
    previous_deter: Tensor | None
    previous_stoch: Tensor | None


ALIGNMENT = 16
"""Elements that rows are padded to: what tensor cores read, and what a load takes at once."""


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
        shape: Shape,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """See `rssm_observe`; `tensors` are those of `ObserveWeights`."""
        weights = ObserveWeights.of(tensors)
        rows, steps, hidden = embed_part.shape
        width, latents, actions = deter.shape[1], stoch[0].numel(), action.shape[2]
        state_end = hidden + width + latents
        padded = -(-(state_end + actions) // ALIGNMENT) * ALIGNMENT
        buffer = deter.new_zeros(steps, rows, padded)
        buffer[:, :, state_end : state_end + actions] = action.transpose(0, 1)
        new = deter.new_empty
        columns = hidden if shape.batch_norm else 0
        saved = Saved(
            buffer,
            input_pre=new(steps, rows, hidden),
            gates=new(steps, rows, 3 * width),
            deters=new(steps, rows, width),
            hidden_pre=new(steps, rows, hidden),
            acts=new(steps, rows, hidden),
            means=new(steps, columns),
            variances=new(steps, columns),
            logits=new(steps, rows, latents),
            stochs=new(steps, rows, latents),
        )
        start = Start(deter, stoch.flatten(1), first_deter, first_stoch.flatten())
        groups = stoch.shape[1:]
        sums: tuple[Tensor, ...] = ()
        if shape.persistent and 0 < rows <= MAX_ROWS:
            action_part = F.linear(action, weights.input.weight[:, latents:])
            inputs = Inputs(embed_part, action_part, is_first, uniforms)
            sums = _forward_at_once(saved, inputs, start, weights, shape, groups)
        else:
            forward_by_step(saved, embed_part, is_first, uniforms, start, weights, shape, groups)
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.groups, ctx.persistent = shape, groups, len(sums) > 0
        ctx.save_for_backward(*saved, is_first, *tensors, *sums)
        by_group = saved.logits.unflatten(-1, groups)
        by_step = (
            saved.deters,
            saved.stochs.view(by_group.shape),
            by_group,
            buffer[:, :, hidden : hidden + width],
            buffer[:, :, hidden + width : state_end].unflatten(-1, groups),
        )
        # Copies, as the kernels that read them want whole rows.
        whole = (tensor.transpose(0, 1).contiguous() for tensor in by_step)
        ctx.mark_non_differentiable(saved.means, saved.variances)
        return *whole, saved.means, saved.variances

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """Walk back in time, then take the gradients of all matrices at once."""
        saved, is_first, weights, sums = _unpack(ctx.saved_tensors, ctx.persistent)
        shape, reset = ctx.shape, is_first.t().unsqueeze(-1)
        grad_outputs = GradOutputs(*_by_step(grads[: len(GradOutputs._fields)]))
        wanted = _wanted(saved, grad_outputs, reset)
        latents_alone = _latents_alone(weights, saved.stochs.shape[2])
        if sums is not None:
            gradients = launch_backward(
                saved, sums, wanted, is_first, latents_alone, shape.batch_norm, shape.unimix,
                shape.eps, ctx.groups,
            )  # fmt: skip
        else:
            gradients = backward_by_step(saved, wanted, reset, latents_alone, shape, ctx.groups)
        return _for_all_steps(saved, gradients, grad_outputs, reset, weights, shape, ctx.groups)


def _unpack(
    tensors: Sequence[Tensor], persistent: bool
) -> tuple[Saved, Tensor, ObserveWeights, Sums | None]:
    """What `ObserveFunction.forward` saved, with names again."""
    count = len(Saved._fields)
    behind = tensors[count + 1 :]
    sums = len(Sums._fields) if persistent else 0
    weights = ObserveWeights.of(behind[: len(behind) - sums])
    saved, is_first = Saved(*tensors[:count]), tensors[count]
    return saved, is_first, weights, Sums(*behind[-sums:]) if persistent else None


def _forward_at_once(
    saved: Saved,
    inputs: Inputs,
    start: Start,
    weights: ObserveWeights,
    shape: Shape,
    groups: torch.Size,
) -> Sums:
    """Run the recurrence in one launch, and what it leaves to do for all steps at once."""
    hidden = saved.input_pre.shape[2]
    start_from(saved.buffer[0], inputs.is_first[:, 0], start.deter, start.stoch, start, hidden)
    sums = launch_forward(
        saved, inputs, (start.fresh_deter, start.fresh_stoch),
        _latents_alone(weights, saved.stochs.shape[2]), shape.batch_norm, shape.unimix, shape.eps,
        groups,
    )  # fmt: skip
    layer, before = weights.input, saved.buffer.flatten(0, 1)[:, :hidden]
    NormActFunction.launch_forward(
        saved.input_pre.flatten(0, 1), layer.norm_weight, layer.norm_bias, shape.eps, before
    )
    if shape.batch_norm is None:
        layer, acts = weights.hidden, saved.acts.flatten(0, 1)
        NormActFunction.launch_forward(
            saved.hidden_pre.flatten(0, 1), layer.norm_weight, layer.norm_bias, shape.eps, acts
        )
    return sums


def _latents_alone(weights: ObserveWeights, latents: int) -> ObserveWeights:
    """The weights, of the input layer's matrix the latents' columns: rows that begin aligned."""
    aligned = weights.input.weight[:, :latents].contiguous()
    return weights._replace(input=weights.input._replace(weight=aligned))


def _wanted(saved: Saved, grad_outputs: GradOutputs, reset: Tensor) -> Wanted:
    """What is asked of each step's results, as its own or as what the next step starts from."""
    wanted = Wanted(
        *(torch.zeros_like(like) for like in (saved.deters, saved.stochs, saved.logits))
    )
    for grad, of_output in zip(wanted, grad_outputs[:3], strict=True):
        if of_output is not None:
            grad += of_output
    # What a step starts from is what the one before ended in, where no episode begins.
    for grad, of_previous in zip(wanted, grad_outputs[3:], strict=False):
        if of_previous is not None:
            grad[:-1] += of_previous[1:].masked_fill(reset[1:], 0.0)
    return wanted


def _for_all_steps(
    saved: Saved,
    gradients: Gradients,
    grad_outputs: GradOutputs,
    reset: Tensor,
    weights: ObserveWeights,
    shape: Shape,
    groups: torch.Size,
) -> tuple[Any, ...]:
    """Gradients of `ObserveFunction`'s arguments: what the recurrence leaves for all steps."""
    steps, rows, hidden = saved.input_pre.shape
    width, latents = saved.deters.shape[2], saved.stochs.shape[2]
    layer = weights.input
    grad_input, *input_norm = NormActFunction.launch_backward(
        gradients.input.flatten(0, 1), saved.input_pre.flatten(0, 1), layer.norm_weight,
        layer.norm_bias, shape.eps,
    )  # fmt: skip
    layer, states = weights.gru, saved.buffer[:, :, hidden : hidden + width].flatten(0, 1)
    cell = gradients.deter.flatten(0, 1), saved.gates.flatten(0, 1), states, *layer[1:]
    grad_gates, _, statistics = GruCellFunction.launch_backward(*cell, shape.eps)
    gates_norm = GruCellFunction.launch_affine(*cell, statistics)
    layer = weights.hidden
    if shape.batch_norm is None:
        grad_hidden, *hidden_norm = NormActFunction.launch_backward(
            gradients.acts.flatten(0, 1), saved.hidden_pre.flatten(0, 1), layer.norm_weight,
            layer.norm_bias, shape.eps,
        )  # fmt: skip
        grad_hidden = grad_hidden.view(steps, rows, hidden)
    else:
        grad_hidden = gradients.hidden
        hidden_norm = [*gradients.affine.sum(0).to(layer.norm_weight.dtype)]
    before = gradients.before
    if grad_outputs.previous_deter is not None:
        before = before + grad_outputs.previous_deter
    grad_stoch = grad_input[:rows] @ weights.input.weight[:, :latents]
    if grad_outputs.previous_stoch is not None:
        grad_stoch = grad_stoch + grad_outputs.previous_stoch[0]
    columns = weights.input.weight.shape[1]
    latents_and_action = saved.buffer[:, :, hidden + width :][:, :, :columns]
    return (
        grad_hidden.transpose(0, 1), None, None, None, before[0].masked_fill(reset[0], 0.0),
        grad_stoch.masked_fill(reset[0], 0.0).view(rows, *groups),
        before.masked_fill(~reset, 0.0).sum((0, 1)), None, None,
        _matrix_gradient(grad_input, latents_and_action), *input_norm,
        _matrix_gradient(grad_gates, saved.buffer[:, :, : hidden + width]), *gates_norm,
        _matrix_gradient(grad_hidden.flatten(0, 1), saved.deters), *hidden_norm,
        _matrix_gradient(gradients.logits.flatten(0, 1), saved.acts),
        gradients.logits.sum((0, 1)),
    )  # fmt: skip


def _by_step(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients (B, T, ...) as (T, B, size); None stays."""
    return [None if grad is None else grad.transpose(0, 1).flatten(2) for grad in grads]


def _matrix_gradient(grad: Tensor, inputs: Tensor) -> Tensor:
    """Of a product's matrix, from its output's gradients (T B, out) and inputs (T, B, in)."""
    return grad.t() @ inputs.flatten(0, 1)


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
    return _observe(
        embed, action, is_first, uniforms, state, weights, batch_norm, unimix, eps, persistent=False
    )


def _observe(
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    uniforms: Tensor,
    state: tuple[Tensor, Tensor],
    weights: RssmWeights,
    batch_norm: BatchNormState | None,
    unimix: float,
    eps: float,
    persistent: bool,
) -> Observed:
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
    recurrent = ObserveWeights(
        weights.input,
        weights.gru,
        layer._replace(weight=layer.weight[:, size:]),
        weights.posterior_out,
    )
    deters, stochs, posterior, previous_deter, previous_stoch, mean, var = ObserveFunction.apply(
        F.linear(embed.flatten(0, 1), layer.weight[:, :size]).view(rows, steps, -1),
        action,
        is_first.contiguous(),
        uniforms,
        deter,
        stoch,
        first_deter,
        first_stoch,
        Shape(batch_norm, unimix, eps, persistent),
        *recurrent.tensors(),
    )
    prior = _prior(deters, weights, groups, eps)
    return Observed(deters, stochs, posterior, prior, previous_deter, previous_stoch, mean, var)


rssm_observe_persistent = functools.partial(_observe, persistent=True)
"""`rssm_observe` in one launch, where the batch fits; elsewhere as ever."""
