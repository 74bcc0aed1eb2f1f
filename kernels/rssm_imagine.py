"""The imagination rollout: few launches a step forward, and its reverse written out by hand.

Each step's row lies in one buffer as `[u | h | z | a]`, so that every matrix product reads a slice
of it: the cell `[u h]`, the actor `[h z]`, the input layer `[z a]`; nothing is concatenated. The
weights of the model have no gradient here, and those of the actor get theirs after the loop, in
one product over all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels import tiles
from mudreamer_fast.kernels.categorical import SampleFunction
from mudreamer_fast.kernels.checks import check
from mudreamer_fast.kernels.layernorm_gru import GruCellFunction
from mudreamer_fast.kernels.linear_norm_act import NormActFunction
from mudreamer_fast.ops.signatures import Imagined, Linear, MlpWeights, NormLinear, RssmWeights

MIN_STD = 0.1
MAX_STD = 1.0
UNIT_INIT_STD = 2.0
ALIGNMENT = 8
"""Elements that rows are padded to, so that tensor cores can read every slice."""
POLICY_TILE = 256


@triton.jit
def rssm_imagine_action_fwd_kernel(
    p_policy,  # (rows, 2 * SIZE), contiguous: mean before its tanh, std before its sigmoid
    p_noise,  # (rows, SIZE), row stride s_noise
    p_action,  # (rows, SIZE), contiguous
    p_bounded,  # (rows, SIZE), row stride s_bounded
    s_noise,
    s_bounded,
    elements,  # rows * SIZE
    SIZE: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SHIFT: tl.constexpr,
    TILE: tl.constexpr,
):
    o_element = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    m_element = o_element < elements
    i_row = o_element // SIZE
    i_action = o_element % SIZE
    p_policy += i_row * (2 * SIZE) + i_action
    b_mean = tl.load(p_policy, mask=m_element, other=0.0).to(tl.float32)
    b_std = tl.load(p_policy + SIZE, mask=m_element, other=0.0).to(tl.float32)
    b_noise = tl.load(p_noise + i_row * s_noise + i_action, mask=m_element, other=0.0)
    b_action = 2.0 * tl.sigmoid(2.0 * b_mean) - 1.0
    b_action += ((HIGH - LOW) * tl.sigmoid(b_std + SHIFT) + LOW) * b_noise.to(tl.float32)
    tl.store(p_action + o_element, b_action.to(p_action.dtype.element_ty), mask=m_element)
    b_bounded = b_action / tl.maximum(tl.abs(b_action), 1.0)
    p_bounded += i_row * s_bounded + i_action
    tl.store(p_bounded, b_bounded.to(p_bounded.dtype.element_ty), mask=m_element)


@triton.jit
def rssm_imagine_action_bwd_kernel(
    p_grad_bounded,  # (rows, SIZE), row stride s_grad_bounded
    p_grad_action,  # (rows, SIZE), row stride s_grad_action; unread without EXTRA
    p_policy,  # (rows, 2 * SIZE), contiguous
    p_noise,  # (rows, SIZE), row stride s_noise
    p_action,  # (rows, SIZE), contiguous
    p_grad_policy,  # (rows, 2 * SIZE), contiguous; added to
    s_grad_bounded,
    s_grad_action,
    s_noise,
    elements,  # rows * SIZE
    SIZE: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SHIFT: tl.constexpr,
    EXTRA: tl.constexpr,
    TILE: tl.constexpr,
):
    o_element = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    m_element = o_element < elements
    i_row = o_element // SIZE
    i_action = o_element % SIZE
    p_grad_bounded += i_row * s_grad_bounded + i_action
    b_grad = tl.load(p_grad_bounded, mask=m_element, other=0.0).to(tl.float32)
    b_action = tl.load(p_action + o_element, mask=m_element, other=0.0).to(tl.float32)
    b_grad = b_grad / tl.maximum(tl.abs(b_action), 1.0)
    if EXTRA:
        p_grad_action += i_row * s_grad_action + i_action
        b_grad += tl.load(p_grad_action, mask=m_element, other=0.0).to(tl.float32)
    p_policy += i_row * (2 * SIZE) + i_action
    b_mean = tl.load(p_policy, mask=m_element, other=0.0).to(tl.float32)
    b_std = tl.load(p_policy + SIZE, mask=m_element, other=0.0).to(tl.float32)
    b_noise = tl.load(p_noise + i_row * s_noise + i_action, mask=m_element, other=0.0)
    b_mean = 2.0 * tl.sigmoid(2.0 * b_mean) - 1.0
    b_std = tl.sigmoid(b_std + SHIFT)
    b_grad_mean = b_grad * (1.0 - b_mean * b_mean)
    b_grad_std = b_grad * b_noise.to(tl.float32) * (HIGH - LOW) * b_std * (1.0 - b_std)
    p_grad_policy += i_row * (2 * SIZE) + i_action
    dtype: tl.constexpr = p_grad_policy.dtype.element_ty
    b_grad_mean += tl.load(p_grad_policy, mask=m_element, other=0.0).to(tl.float32)
    b_grad_std += tl.load(p_grad_policy + SIZE, mask=m_element, other=0.0).to(tl.float32)
    tl.store(p_grad_policy, b_grad_mean.to(dtype), mask=m_element)
    tl.store(p_grad_policy + SIZE, b_grad_std.to(dtype), mask=m_element)


class _Shape(NamedTuple):
    """What the rollout's loops need besides tensors."""

    groups: int
    layers: int
    continuous: bool
    through_dynamics: bool
    unimix: float
    eps: float


class _Weights(NamedTuple):
    """The model's weights as the loops use them."""

    input: NormLinear
    gru: NormLinear
    prior_hidden: NormLinear
    prior_out: Linear


class _Saved(NamedTuple):
    """What the forward pass computes, step by step, and the backward pass needs."""

    buffer: Tensor
    """(H + 1, N, U + D + G*C + A or more), `[u | h | z | a]` of each step."""
    input_pre: Tensor
    """(H, N, U), the input layer before its norm."""
    gates: Tensor
    """(H, N, 3D), before their norm."""
    prior_pre: Tensor
    """(H, N, U), the prior's hidden layer before its norm."""
    logits: Tensor
    """(H, N, G*C), of the prior."""
    policy: Tensor
    """(H, N, 2A or A), the actor's outputs."""
    action: Tensor
    """(H, N, A), as drawn."""
    noise: Tensor
    """(N, H, A or 1), what they were drawn from."""


class _ActorSaved(NamedTuple):
    """What the actor computes, a tensor (H, N, U) a hidden layer, and its weights."""

    layers: Sequence[Tensor]
    """Before their norms."""
    acts: Sequence[Tensor]
    """Behind their activations."""
    weights: MlpWeights


class _GradOutputs(NamedTuple):
    """Gradients (N, H or H + 1, ...) of what `forward` gave, None of what is not used."""

    deter: Tensor | None
    stoch: Tensor | None
    action: Tensor | None
    policy: Tensor | None


def _actor_of(tensors: Sequence[Tensor]) -> MlpWeights:
    """An actor's weights from its tensors, three a hidden layer and the two of its output."""
    *hidden, weight, bias = tensors
    layers = zip(hidden[::3], hidden[1::3], hidden[2::3], strict=True)
    return MlpWeights(tuple(NormLinear(*layer) for layer in layers), Linear(weight, bias))


class ImagineFunction(torch.autograd.Function):
    """The rollout; a gradient to the actor's weights, through the dynamics where asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        deter: Tensor,
        stoch: Tensor,
        weights: _Weights,
        uniforms: Tensor,
        noise: Tensor,
        shape: _Shape,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        actor = _actor_of(tensors)
        rows, horizon = uniforms.shape[:2]
        hidden, latents = weights.input.weight.shape[0], stoch[0].numel()
        width = deter.shape[1]
        outputs = len(actor.out.bias)
        actions = outputs // 2 if shape.continuous else outputs
        action_at = hidden + width + latents
        padded = -(-(action_at + actions) // ALIGNMENT) * ALIGNMENT
        # One more start than steps: the last row holds only the state that the rollout ends in.
        buffer = deter.new_zeros(horizon + 1, rows, padded)
        buffer[0, :, hidden : hidden + width] = deter
        buffer[0, :, hidden + width : action_at] = stoch.flatten(1)
        input_weight = F.pad(weights.input.weight, (0, padded - action_at - actions))

        new = deter.new_empty
        input_pre, prior_pre = new(horizon, rows, hidden), new(horizon, rows, hidden)
        gates, logits = new(horizon, rows, 3 * width), new(horizon, rows, latents)
        policy, action = new(horizon, rows, outputs), new(horizon, rows, actions)
        layers = [new(horizon, rows, len(layer.weight)) for layer in actor.hidden]
        acts = [torch.empty_like(layer) for layer in layers]
        prior_act = new(rows, hidden)
        by_group = logits.view(horizon, rows, shape.groups, latents // shape.groups)
        for t in range(horizon):
            row, following = buffer[t], buffer[t + 1]
            x = row[:, hidden:action_at]
            for layer, pre, act in zip(actor.hidden, layers, acts, strict=True):
                torch.mm(x, layer.weight.t(), out=pre[t])
                x = NormActFunction.launch_forward(
                    pre[t], layer.norm_weight, layer.norm_bias, shape.eps, act[t]
                )
            torch.addmm(actor.out.bias, x, actor.out.weight.t(), out=policy[t])
            bounded = row[:, action_at : action_at + actions]
            _act(policy[t], noise[:, t], action[t], bounded, shape)
            torch.mm(row[:, hidden + width :], input_weight.t(), out=input_pre[t])
            NormActFunction.launch_forward(
                input_pre[t],
                weights.input.norm_weight,
                weights.input.norm_bias,
                shape.eps,
                row[:, :hidden],
            )
            torch.mm(row[:, : hidden + width], weights.gru.weight.t(), out=gates[t])
            state = following[:, hidden : hidden + width]
            GruCellFunction.launch_forward(
                gates[t],
                row[:, hidden : hidden + width],
                weights.gru.norm_weight,
                weights.gru.norm_bias,
                shape.eps,
                state,
            )
            torch.mm(state, weights.prior_hidden.weight.t(), out=prior_pre[t])
            NormActFunction.launch_forward(
                prior_pre[t],
                weights.prior_hidden.norm_weight,
                weights.prior_hidden.norm_bias,
                shape.eps,
                prior_act,
            )
            torch.addmm(
                weights.prior_out.bias, prior_act, weights.prior_out.weight.t(), out=logits[t]
            )
            drawn = following[:, hidden + width : action_at]
            SampleFunction.launch_forward(by_group[t], uniforms[:, t], shape.unimix, drawn)
        ctx.set_materialize_grads(False)
        ctx.weights, ctx.shape, ctx.input_weight = weights, shape, input_weight
        saved = _Saved(buffer, input_pre, gates, prior_pre, logits, policy, action, noise)
        ctx.save_for_backward(*saved, *layers, *acts, *tensors)
        out = (
            buffer[:, :, hidden : hidden + width].transpose(0, 1),
            buffer[:, :, hidden + width : action_at]
            .unflatten(-1, by_group.shape[2:])
            .transpose(0, 1),
            action.transpose(0, 1),
            policy.transpose(0, 1),
        )
        if not shape.through_dynamics:
            ctx.mark_non_differentiable(*out[:3])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        saved, actor = _unpack(ctx.saved_tensors, ctx.shape.layers)
        grad_outputs = _GradOutputs(*grads)
        grad_policy = torch.zeros_like(saved.policy)
        if grad_outputs.policy is not None:
            grad_policy += grad_outputs.policy.transpose(0, 1)
        if ctx.shape.through_dynamics:
            _through_dynamics(ctx, saved, grad_outputs, grad_policy)
        hidden = ctx.weights.input.weight.shape[0]
        feature_size = ctx.weights.gru.weight.shape[0] // 3 + saved.logits.shape[2]
        features = saved.buffer[:-1].flatten(0, 1)[:, hidden : hidden + feature_size]
        return (
            None,
            None,
            None,
            None,
            None,
            None,
            *_actor_gradients(features, actor, grad_policy.flatten(0, 1), ctx.shape.eps),
        )


def _unpack(tensors: Sequence[Tensor], layers: int) -> tuple[_Saved, _ActorSaved]:
    """What `ImagineFunction.forward` saved, with names again."""
    count = len(_Saved._fields)
    behind = tensors[count:]
    actor = _ActorSaved(
        behind[:layers], behind[layers : 2 * layers], _actor_of(behind[2 * layers :])
    )
    return _Saved(*tensors[:count]), actor


def _act(policy: Tensor, noise: Tensor, action: Tensor, bounded: Tensor, shape: _Shape) -> None:
    """Draw a step's actions, and write them bounded into the row."""
    rows, actions = action.shape
    if not shape.continuous:
        SampleFunction.launch_forward(policy.view(rows, 1, actions), noise, shape.unimix, action)
        bounded.copy_(action)
        return
    if action.numel():
        rssm_imagine_action_fwd_kernel[(triton.cdiv(action.numel(), POLICY_TILE),)](
            policy, noise, action, bounded, noise.stride(0), bounded.stride(0), action.numel(),
            actions, MIN_STD, MAX_STD, UNIT_INIT_STD, POLICY_TILE, **tiles.launch(4),
        )  # fmt: skip


def _act_bwd(
    grad_bounded: Tensor,
    grad_action: Tensor | None,
    policy: Tensor,
    noise: Tensor,
    action: Tensor,
    grad_policy: Tensor,
    shape: _Shape,
) -> None:
    """Add to a step's `grad_policy` what comes through its action."""
    rows, actions = action.shape
    if not shape.continuous:
        grad = grad_bounded if grad_action is None else grad_bounded + grad_action
        logits = policy.view(rows, 1, actions)
        so_far = grad_policy.view(rows, 1, actions)
        SampleFunction.launch_backward(grad, logits, shape.unimix, more=so_far, out=so_far)
        return
    if action.numel():
        extra = grad_bounded if grad_action is None else grad_action
        rssm_imagine_action_bwd_kernel[(triton.cdiv(action.numel(), POLICY_TILE),)](
            grad_bounded, extra, policy, noise, action, grad_policy, grad_bounded.stride(0),
            extra.stride(0), noise.stride(0), action.numel(), actions, MIN_STD, MAX_STD,
            UNIT_INIT_STD, grad_action is not None, POLICY_TILE, **tiles.launch(4),
        )  # fmt: skip


def _through_dynamics(
    ctx: Any, saved: _Saved, grad_outputs: _GradOutputs, grad_policy: Tensor
) -> None:
    """Walk back in time and add to `grad_policy` (H, N, outputs) what comes from later states."""
    weights, shape = ctx.weights, ctx.shape
    buffer, input_pre, gates, prior_pre, logits, policy, action, noise = saved
    horizon, rows, actions = action.shape
    hidden, latents = input_pre.shape[2], logits.shape[2]
    width = gates.shape[2] // 3
    of_deter, of_stoch, of_action, _ = (
        None if grad is None else grad.transpose(0, 1) for grad in grad_outputs
    )
    if of_action is not None:
        of_action = of_action.contiguous()  # a kernel reads its memory
    grad_deter = buffer.new_zeros(rows, width)
    grad_stoch = buffer.new_zeros(rows, latents)
    by_group = logits.view(horizon, rows, shape.groups, -1)
    for t in reversed(range(horizon)):
        if of_deter is not None:
            grad_deter = grad_deter + of_deter[t + 1]
        if of_stoch is not None:
            grad_stoch = grad_stoch + of_stoch[t + 1].flatten(1)
        grad = SampleFunction.launch_backward(grad_stoch, by_group[t], shape.unimix)
        grad = grad.view(rows, latents) @ weights.prior_out.weight
        layer = weights.prior_hidden
        grad = NormActFunction.launch_backward(
            grad, prior_pre[t], layer.norm_weight, layer.norm_bias, shape.eps, affine=False
        )[0]
        grad_deter = torch.addmm(grad_deter, grad, weights.prior_hidden.weight)
        state = buffer[t, :, hidden : hidden + width]
        layer = weights.gru
        grad_gates, grad_deter, _ = GruCellFunction.launch_backward(
            grad_deter, gates[t], state, layer.norm_weight, layer.norm_bias, shape.eps
        )
        grad = grad_gates @ weights.gru.weight
        grad_deter += grad[:, hidden:]
        grad = NormActFunction.launch_backward(
            grad[:, :hidden],
            input_pre[t],
            weights.input.norm_weight,
            weights.input.norm_bias,
            shape.eps,
            affine=False,
        )[0]
        grad = grad @ ctx.input_weight
        grad_stoch = grad[:, :latents]
        _act_bwd(
            grad[:, latents : latents + actions],
            None if of_action is None else of_action[t],
            policy[t], noise[:, t], action[t], grad_policy[t], shape,
        )  # fmt: skip


def _actor_gradients(
    features: Tensor, saved: _ActorSaved, grad: Tensor, eps: float
) -> list[Tensor]:
    """Gradients of the actor's tensors, in their order, over all steps at once."""
    inputs = [features, *(act.flatten(0, 1) for act in saved.acts)]
    gradients = [grad.t() @ inputs[-1], grad.sum(0)]
    grad = grad @ saved.weights.out.weight
    for i, layer in reversed([*enumerate(saved.weights.hidden)]):
        grad, *affine = NormActFunction.launch_backward(
            grad, saved.layers[i].flatten(0, 1), layer.norm_weight, layer.norm_bias, eps
        )
        gradients = [grad.t() @ inputs[i], *affine, *gradients]
        if i:
            grad = grad @ layer.weight
    return gradients


def rssm_imagine(
    deter: Tensor,
    stoch: Tensor,
    weights: RssmWeights,
    actor: MlpWeights,
    uniforms: Tensor,
    action_noise: Tensor,
    continuous: bool,
    through_dynamics: bool,
    unimix: float,
    eps: float,
) -> Imagined:
    """Roll the actor out: `a_t ~ pi(a | sg(s_t))`, `s_{t+1} ~ p(s | s_t, a_t)`.

    Source: DreamerV3 (arXiv 2301.04104v1), section "Actor critic learning".

    Args:
        deter: (N, D), where to start; no gradient flows to it.
        stoch: (N, G, C), likewise.
        weights: parameters of the RSSM; no gradient flows to them.
        actor: parameters of the actor.
        uniforms: (N, H, G), the latents' randomness, in [0, 1).
        action_noise: (N, H, A) standard normal, or (N, H, 1) uniform for discrete actions.
        continuous: whether actions are normal or one-hot.
        through_dynamics: whether later states carry a gradient to earlier actions.
        unimix: share of the uniform distribution in every categorical.
        eps: added to the variances.
    """
    check("deter", deter, None, None)
    rows, groups = len(deter), stoch.shape[-2]
    classes, horizon = stoch.shape[-1], uniforms.shape[-2]
    outputs = len(actor.out.bias)
    actions = outputs // 2 if continuous else outputs
    check("stoch", stoch, rows, groups, classes, like=deter)
    check("uniforms", uniforms, rows, horizon, groups)
    check("action_noise", action_noise, rows, horizon, actions if continuous else 1)
    hidden, width = len(weights.input.norm_weight), deter.shape[1]
    check("weights.input", weights.input.weight, hidden, groups * classes + actions, like=deter)
    check("weights.gru", weights.gru.weight, 3 * width, hidden + width, like=deter)
    check("weights.prior_hidden", weights.prior_hidden.weight, hidden, width, like=deter)
    check("weights.prior_out", weights.prior_out.weight, groups * classes, hidden, like=deter)
    size = width + groups * classes
    for i, layer in enumerate(actor.hidden):
        check(f"actor.hidden[{i}]", layer.weight, len(layer.norm_weight), size, like=deter)
        size = len(layer.norm_weight)
    check("actor.out", actor.out.weight, outputs, size, like=deter)
    fixed = _Weights(
        NormLinear(*(tensor.detach() for tensor in weights.input)),
        NormLinear(*(tensor.detach() for tensor in weights.gru)),
        NormLinear(*(tensor.detach() for tensor in weights.prior_hidden)),
        Linear(*(tensor.detach() for tensor in weights.prior_out)),
    )
    shape = _Shape(groups, len(actor.hidden), continuous, through_dynamics, unimix, eps)
    tensors = [tensor for layer in (*actor.hidden, actor.out) for tensor in layer]
    return Imagined(
        *ImagineFunction.apply(
            deter.detach(), stoch.detach(), fixed, uniforms, action_noise, shape, *tensors
        )
    )
