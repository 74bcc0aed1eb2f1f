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
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels.batchnorm_posterior import BatchNormActFunction
from mudreamer_fast.kernels.categorical import SampleFunction
from mudreamer_fast.kernels.checks import check
from mudreamer_fast.kernels.layernorm_gru import GruCellFunction
from mudreamer_fast.kernels.linear_norm_act import NormActFunction, linear_norm_act
from mudreamer_fast.kernels.rssm_observe_persistent_bwd import pull_persistently
from mudreamer_fast.kernels.rssm_observe_persistent_fwd import MAX_ROWS, Filled, run_persistently
from mudreamer_fast.ops.signatures import BatchNormState, Observed, RssmWeights

ALIGNMENT = 16
"""Elements that rows are padded to: what tensor cores read, and what a load takes at once."""
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


class _Shape(NamedTuple):
    """What the loops need besides tensors."""

    batch_norm: BatchNormState | None
    unimix: float
    eps: float
    persistent: bool


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
        new = deter.new_empty
        columns = hidden if shape.batch_norm else 0
        found = Filled(
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
        start = deter, stoch.flatten(1), first_deter, first_stoch.flatten()
        given = embed_part, action, is_first, uniforms
        if shape.persistent and 0 < rows <= MAX_ROWS:
            sums = _fill_at_once(found, given, start, weights, shape, stoch.shape[1:])
        else:
            sums = ()
            _fill_by_step(found, given, start, weights, shape, stoch.shape[1:])
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.groups, ctx.persistent = shape, stoch.shape[1:], len(sums) > 0
        ctx.save_for_backward(*found, is_first, *weights, *sums)
        by_group = found.logits.unflatten(-1, stoch.shape[1:])
        previous = buffer[:, :, hidden + width : state_end].unflatten(-1, stoch.shape[1:])
        by_step = (
            found.deters,
            found.stochs.view(by_group.shape),
            by_group,
            buffer[:, :, hidden : hidden + width],
            previous,
        )
        # Copies, as the kernels that read them want whole rows.
        whole = (tensor.transpose(0, 1).contiguous() for tensor in by_step)
        ctx.mark_non_differentiable(found.means, found.variances)
        return *whole, found.means, found.variances

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """Walk back in time, then take the gradients of all matrices at once."""
        count = len(Filled._fields)
        filled = Filled(*ctx.saved_tensors[:count])
        is_first, weights = ctx.saved_tensors[count], ctx.saved_tensors[count + 1 :][:11]
        wanted = _by_step(grads[:5])
        if ctx.persistent:
            sums = ctx.saved_tensors[-3:]
            found = _pull_at_once(filled, sums, wanted, is_first, weights, ctx.shape, ctx.groups)
        else:
            found = _pull_by_step(filled, wanted, is_first, weights, ctx.shape, ctx.groups)
        hidden, width = filled.input_pre.shape[2], filled.deters.shape[2]
        matrices = _matrix_gradients(
            (found.input, filled.buffer[:, :, hidden + width :][:, :, : weights[0].shape[1]]),
            (found.gates, filled.buffer[:, :, : hidden + width]),
            (found.hidden, filled.deters),
            (found.logits, filled.acts),
        )
        affine = found.affine
        return (
            found.hidden.transpose(0, 1), None, None, None, found.deter,
            found.stoch.view(-1, *ctx.groups), found.first, None, None,
            matrices[0], *affine[:2], matrices[1], *affine[2:4], matrices[2], *affine[4:],
            matrices[3], found.logits.sum((0, 1)),
        )  # fmt: skip


def _start(
    row: Tensor,
    first: Tensor,
    state: Sequence[Tensor],
    fresh: Sequence[Tensor],
    sizes: Sequence[int],
) -> None:
    """Write where a step starts from: `state`, or `fresh` where an episode begins.

    Args:
        row: (B, U + D + G*C + A), the step's `[u | h | z | a]`; h and z are written.
        first: (B,) bool, where an episode begins.
        state: h (B, D) and z (B, G*C) after the step before.
        fresh: h (D,) and z (G*C,), the learned start.
        sizes: U, D and G*C.
    """
    hidden, width, latents = sizes
    rssm_observe_reset_kernel[(len(row), triton.cdiv(width + latents, TILE))](
        *state, first, *fresh, row[:, hidden:], state[0].stride(0), state[1].stride(0),
        first.stride(0), row.stride(0), width, latents, TILE, num_warps=4,
    )  # fmt: skip


def _fill_by_step(
    found: Filled,
    given: Sequence[Tensor],
    start: Sequence[Tensor],
    weights: Sequence[Tensor],
    shape: _Shape,
    stoch: torch.Size,
) -> None:
    """Run the recurrence in nine launches a step."""
    embed_part, _, is_first, uniforms = given
    hidden, width, latents = (
        tensor.shape[2] for tensor in (found.input_pre, found.deters, found.logits)
    )
    input_weight = F.pad(
        weights[0], (0, found.buffer.shape[2] - hidden - width - weights[0].shape[1])
    )
    state = start[:2]
    for t, row in enumerate(found.buffer):
        _start(row, is_first[:, t], state, start[2:], (hidden, width, latents))
        input_pre, gates, deter = found.input_pre[t], found.gates[t], found.deters[t]
        before, hidden_pre, act = (
            row[:, hidden : hidden + width],
            found.hidden_pre[t],
            found.acts[t],
        )
        torch.mm(row[:, hidden + width :], input_weight.t(), out=input_pre)
        NormActFunction.run(input_pre, weights[1], weights[2], shape.eps, row[:, :hidden])
        torch.mm(row[:, : hidden + width], weights[3].t(), out=gates)
        GruCellFunction.run(gates, before, weights[4], weights[5], shape.eps, deter)
        torch.addmm(embed_part[:, t], deter, weights[6].t(), out=hidden_pre)
        if shape.batch_norm is None:
            NormActFunction.run(hidden_pre, weights[7], weights[8], shape.eps, act)
        else:
            BatchNormActFunction.run(
                hidden_pre, weights[7], weights[8], shape.batch_norm, shape.eps,
                (act, found.means[t], found.variances[t]),
            )  # fmt: skip
        torch.addmm(weights[10], act, weights[9].t(), out=found.logits[t])
        by_group = found.logits[t].view(len(row), *stoch)
        SampleFunction.run(by_group, uniforms[:, t], shape.unimix, found.stochs[t])
        state = deter, found.stochs[t]


def _fill_at_once(
    found: Filled,
    given: Sequence[Tensor],
    start: Sequence[Tensor],
    weights: Sequence[Tensor],
    shape: _Shape,
    stoch: torch.Size,
) -> tuple[Tensor, ...]:
    """Run the recurrence in one launch, and what it leaves to do for all steps at once."""
    embed_part, action, is_first, uniforms = given
    hidden, width, latents = (
        tensor.shape[2] for tensor in (found.input_pre, found.deters, found.logits)
    )
    action_part = F.linear(action, weights[0][:, latents:])
    _start(found.buffer[0], is_first[:, 0], start[:2], start[2:], (hidden, width, latents))
    weights = _latents_alone(weights, latents)
    sums = run_persistently(
        found, (embed_part, action_part, is_first, uniforms),
        start[2:], weights, shape.batch_norm, shape.unimix, shape.eps, stoch,
    )  # fmt: skip
    before = found.buffer.flatten(0, 1)[:, :hidden]
    NormActFunction.run(found.input_pre.flatten(0, 1), weights[1], weights[2], shape.eps, before)
    if shape.batch_norm is None:
        acts = found.acts.flatten(0, 1)
        NormActFunction.run(found.hidden_pre.flatten(0, 1), weights[7], weights[8], shape.eps, acts)
    return sums


def _latents_alone(weights: Sequence[Tensor], latents: int) -> list[Tensor]:
    """The weights, of the input layer's matrix the latents' columns: rows that begin aligned."""
    return [weights[0][:, :latents].contiguous(), *weights[1:]]


class _Pulled(NamedTuple):
    """Gradients that the reverse of the recurrence finds."""

    input: Tensor
    """(T, B, U), of the input layer before its norm."""
    gates: Tensor
    """(T, B, 3D), before their norm."""
    hidden: Tensor
    """(T, B, U), of the posterior's hidden layer before its norm."""
    logits: Tensor
    """(T, B, G*C), of the posterior."""
    affine: list[Tensor]
    """Of scale and shift of these three norms."""
    deter: Tensor
    """(B, D), of the h before the first step."""
    stoch: Tensor
    """(B, G*C), of the z before it."""
    first: Tensor
    """(D,), of the learned start."""


def _pull_by_step(
    filled: Filled,
    wanted: Sequence[Tensor | None],
    is_first: Tensor,
    weights: Sequence[Tensor],
    shape: _Shape,
    groups: torch.Size,
) -> _Pulled:
    """Reverse the recurrence in some twenty launches a step."""
    steps, rows, hidden = filled.input_pre.shape
    width, latents = filled.deters.shape[2], filled.logits.shape[2]
    posterior = filled.logits.view(steps, rows, *groups)
    grad_deter, grad_stoch = (
        filled.deters.new_zeros(rows, width),
        filled.deters.new_zeros(rows, latents),
    )
    found = _Pulled(
        input=torch.empty_like(filled.input_pre),
        gates=torch.empty_like(filled.gates),
        hidden=torch.empty_like(filled.hidden_pre),
        logits=torch.empty_like(filled.logits),
        affine=[torch.zeros_like(weights[i]) for i in (1, 2, 4, 5, 7, 8)],
        deter=grad_deter,
        stoch=grad_stoch,
        first=filled.deters.new_zeros(width),
    )
    for t in reversed(range(steps)):
        grad_deter = _plus(grad_deter, wanted[0], t)
        grad_stoch = _plus(grad_stoch, wanted[1], t)
        pulled = SampleFunction.pull(grad_stoch, posterior[t], shape.unimix)
        found.logits[t] = _plus(pulled.view(rows, latents), wanted[2], t)
        grad, hidden_pre = found.logits[t] @ weights[9], filled.hidden_pre[t]
        if shape.batch_norm is None:
            parts = NormActFunction.pull(grad, hidden_pre, weights[7], weights[8], shape.eps)
        else:
            mean, var, use_batch = shape.batch_norm
            if use_batch:
                mean, var = filled.means[t], filled.variances[t]
            parts = BatchNormActFunction.pull(
                grad, hidden_pre, weights[7], weights[8], mean, var, use_batch, shape.eps
            )
        found.hidden[t] = parts[0]
        _add(found.affine[4:], parts[1:])
        grad_deter = torch.addmm(grad_deter, parts[0], weights[6])
        state = filled.buffer[t, :, hidden : hidden + width]
        parts = GruCellFunction.pull(
            grad_deter, filled.gates[t], state, weights[4], weights[5], shape.eps
        )
        found.gates[t] = parts[0]
        _add(found.affine[2:4], parts[2:])
        through = parts[0] @ weights[3]
        grad_deter = _plus(parts[1] + through[:, hidden:], wanted[3], t)
        parts = NormActFunction.pull(
            through[:, :hidden], filled.input_pre[t], weights[1], weights[2], shape.eps
        )
        found.input[t] = parts[0]
        _add(found.affine[:2], parts[1:])
        grad_stoch = _plus((parts[0] @ weights[0])[:, :latents], wanted[4], t)
        reset = is_first[:, t, None]
        found.first.add_((grad_deter * reset).sum(0))
        grad_deter = grad_deter.masked_fill(reset, 0.0)
        grad_stoch = grad_stoch.masked_fill(reset, 0.0)
    return found._replace(deter=grad_deter, stoch=grad_stoch)


def _pull_at_once(
    filled: Filled,
    sums: Sequence[Tensor],
    wanted: Sequence[Tensor | None],
    is_first: Tensor,
    weights: Sequence[Tensor],
    shape: _Shape,
    groups: torch.Size,
) -> _Pulled:
    """Reverse the recurrence in one launch, and what it leaves to do for all steps at once."""
    hidden, width = filled.input_pre.shape[2], filled.deters.shape[2]
    reset = is_first.t().unsqueeze(-1)
    asked = [torch.zeros_like(like) for like in (filled.deters, filled.stochs, filled.logits)]
    for tensor, extra in zip(asked, wanted[:3], strict=True):
        if extra is not None:
            tensor += extra
    # What a step starts from is what the one before ended in, where no episode begins.
    for tensor, extra in zip(asked, wanted[3:], strict=False):
        if extra is not None:
            tensor[:-1] += extra[1:].masked_fill(reset[1:], 0.0)
    steps = pull_persistently(
        filled, sums, asked, is_first, _latents_alone(weights, filled.stochs.shape[2]),
        shape.batch_norm, shape.unimix, shape.eps, groups,
    )  # fmt: skip
    flat = lambda tensor: tensor.flatten(0, 1)  # noqa: E731
    grad_input, *affine = NormActFunction.pull(
        flat(steps.input), flat(filled.input_pre), weights[1], weights[2], shape.eps
    )
    states = flat(filled.buffer[:, :, hidden : hidden + width])
    grad_gates, _, *of_gates = GruCellFunction.pull(
        flat(steps.deter), flat(filled.gates), states, weights[4], weights[5], shape.eps
    )
    if shape.batch_norm is None:
        grad_hidden, *of_hidden = NormActFunction.pull(
            flat(steps.acts), flat(filled.hidden_pre), weights[7], weights[8], shape.eps
        )
    else:
        grad_hidden, of_hidden = steps.hidden, [*steps.affine.sum(0).to(weights[7].dtype)]
    before = steps.before if wanted[3] is None else steps.before + wanted[3]
    stoch = _plus(
        grad_input[: len(reset[0])] @ weights[0][:, : filled.stochs.shape[2]], wanted[4], 0
    )
    return _Pulled(
        grad_input.view_as(steps.input),
        grad_gates.view_as(steps.gates),
        grad_hidden.view_as(steps.hidden),
        steps.logits,
        [*affine, *of_gates, *of_hidden],
        before[0].masked_fill(reset[0], 0.0),
        stoch.masked_fill(reset[0], 0.0),
        (before * reset).sum((0, 1)),
    )


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
    found = ObserveFunction.apply(
        F.linear(embed.flatten(0, 1), layer.weight[:, :size]).view(rows, steps, -1),
        action,
        is_first.contiguous(),
        uniforms,
        deter,
        stoch,
        first_deter,
        first_stoch,
        _Shape(batch_norm, unimix, eps, persistent),
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


rssm_observe_persistent = functools.partial(_observe, persistent=True)
"""`rssm_observe` in one launch, where the batch fits; elsewhere as ever."""
