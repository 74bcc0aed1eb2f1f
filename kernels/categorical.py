"""Categorical latents: sampling with a straight-through gradient, entropy and divergence.

A program takes a tile of groups; a group's classes lie along the second axis, padded to a power of
two with logits of minus infinity and probabilities of zero.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels import tiles
from mudreamer_fast.kernels.checks import check


@triton.jit
def _load_logits(p_logits, i_row, m_row, o_class, CLASSES: tl.constexpr):
    p_logits += i_row[:, None] * CLASSES + o_class[None, :]
    b_logits = tl.load(p_logits, mask=m_row[:, None], other=0.0).to(tl.float32)
    return tl.where(o_class[None, :] < CLASSES, b_logits, float("-inf"))


@triton.jit
def probs(b_logits, o_class, CLASSES: tl.constexpr, UNIMIX: tl.constexpr):
    """Softmax, its mixture with the uniform distribution, and the logarithm of that."""
    m_class = o_class[None, :] < CLASSES
    b_shifted = b_logits - tl.max(b_logits, axis=1)[:, None]
    b_exp = tl.exp(b_shifted)
    b_sum = tl.sum(b_exp, axis=1)[:, None]
    b_soft = b_exp / b_sum
    b_probs = tl.where(m_class, b_soft * (1.0 - UNIMIX) + UNIMIX / CLASSES, 0.0)
    if UNIMIX > 0.0:
        b_log = tl.log(tl.where(m_class, b_probs, 1.0))
    else:  # a probability can underflow to zero, but not its log-softmax
        b_log = tl.where(m_class, b_shifted - tl.log(b_sum), 0.0)
    return b_soft, b_probs, b_log


@triton.jit
def drawn(b_probs, b_uniform, o_class, CLASSES: tl.constexpr):
    """Class that each uniform number falls to, by the sums of the probabilities before it."""
    b_below = tl.cumsum(b_probs, axis=1)
    # Scaled by the last sum, so that rounding can not leave a draw without a class.
    b_total = tl.sum(tl.where(o_class[None, :] == CLASSES - 1, b_below, 0.0), axis=1)
    b_passed = (b_below <= (b_uniform * b_total)[:, None]) & (o_class[None, :] < CLASSES)
    return tl.minimum(tl.sum(b_passed.to(tl.int32), axis=1), CLASSES - 1)


@triton.jit
def to_logits(b_grad, b_soft, UNIMIX: tl.constexpr):
    """Take the gradient of mixed probabilities back to the logits."""
    b_grad = b_grad * (1.0 - UNIMIX)
    return b_soft * (b_grad - tl.sum(b_grad * b_soft, axis=1)[:, None])


@triton.jit
def categorical_sample_fwd_kernel(
    p_logits,  # (rows, GROUPS, CLASSES), contiguous
    p_uniforms,  # (rows, GROUPS), row stride s_uniforms
    p_out,  # (rows, GROUPS, CLASSES), row stride s_out
    s_uniforms,
    s_out,
    groups,  # rows * GROUPS
    GROUPS: tl.constexpr,
    CLASSES: tl.constexpr,
    UNIMIX: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_group = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    o_class = tl.arange(0, BLOCK)
    m_group = i_group < groups
    i_row = i_group // GROUPS
    i_in_row = i_group % GROUPS
    b_logits = _load_logits(p_logits, i_group, m_group, o_class, CLASSES)
    _, b_probs, _ = probs(b_logits, o_class, CLASSES, UNIMIX)
    p_uniforms += i_row * s_uniforms + i_in_row
    b_uniform = tl.load(p_uniforms, mask=m_group, other=0.0).to(tl.float32)
    b_index = drawn(b_probs, b_uniform, o_class, CLASSES)
    b_out = (o_class[None, :] == b_index[:, None]).to(tl.float32).to(p_out.dtype.element_ty)
    p_out += (i_row * s_out + i_in_row * CLASSES)[:, None] + o_class[None, :]
    tl.store(p_out, b_out, mask=m_group[:, None] & (o_class[None, :] < CLASSES))


@triton.jit
def categorical_sample_bwd_kernel(
    p_grad,  # (rows, GROUPS, CLASSES), row stride s_grad
    p_logits,  # (rows, GROUPS, CLASSES), contiguous
    p_more,  # (rows, GROUPS, CLASSES), contiguous: what the logits are asked besides; or None
    p_grad_logits,  # (rows, GROUPS, CLASSES), contiguous
    s_grad,
    groups,  # rows * GROUPS
    GROUPS: tl.constexpr,
    CLASSES: tl.constexpr,
    UNIMIX: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_group = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    o_class = tl.arange(0, BLOCK)
    m_group = i_group < groups
    m_tile = m_group[:, None] & (o_class[None, :] < CLASSES)
    b_logits = _load_logits(p_logits, i_group, m_group, o_class, CLASSES)
    b_soft, _, _ = probs(b_logits, o_class, CLASSES, UNIMIX)
    p_grad += (i_group // GROUPS * s_grad + i_group % GROUPS * CLASSES)[:, None] + o_class[None, :]
    b_grad = tl.load(p_grad, mask=m_tile, other=0.0).to(tl.float32)
    b_grad = to_logits(b_grad, b_soft, UNIMIX)
    o_tile = i_group[:, None] * CLASSES + o_class[None, :]
    if p_more is not None:
        b_grad += tl.load(p_more + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    p_grad_logits += o_tile
    tl.store(p_grad_logits, b_grad.to(p_grad_logits.dtype.element_ty), mask=m_tile)


@triton.jit
def categorical_entropy_fwd_kernel(
    p_logits,  # (groups, CLASSES), contiguous
    p_out,  # (groups,)
    groups,
    CLASSES: tl.constexpr,
    UNIMIX: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_group = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    o_class = tl.arange(0, BLOCK)
    m_group = i_group < groups
    b_logits = _load_logits(p_logits, i_group, m_group, o_class, CLASSES)
    _, b_probs, b_log = probs(b_logits, o_class, CLASSES, UNIMIX)
    b_entropy = -tl.sum(b_probs * b_log, axis=1)
    tl.store(p_out + i_group, b_entropy.to(p_out.dtype.element_ty), mask=m_group)


@triton.jit
def categorical_entropy_bwd_kernel(
    p_grad,  # (groups,)
    p_logits,  # (groups, CLASSES), contiguous
    p_grad_logits,  # (groups, CLASSES), contiguous
    groups,
    CLASSES: tl.constexpr,
    UNIMIX: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_group = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    o_class = tl.arange(0, BLOCK)
    m_group = i_group < groups
    b_logits = _load_logits(p_logits, i_group, m_group, o_class, CLASSES)
    b_soft, _, b_log = probs(b_logits, o_class, CLASSES, UNIMIX)
    b_grad = tl.load(p_grad + i_group, mask=m_group, other=0.0).to(tl.float32)
    # The derivative of p ln p is ln p + 1; the one is the same for all classes and cancels.
    b_grad = to_logits(-b_grad[:, None] * b_log, b_soft, UNIMIX)
    p_grad_logits += i_group[:, None] * CLASSES + o_class[None, :]
    m_tile = m_group[:, None] & (o_class[None, :] < CLASSES)
    tl.store(p_grad_logits, b_grad.to(p_grad_logits.dtype.element_ty), mask=m_tile)


@triton.jit
def categorical_kl_fwd_kernel(
    p_posterior,  # (rows, GROUPS, CLASSES), contiguous
    p_prior,  # (rows, GROUPS, CLASSES), contiguous
    p_out,  # (rows,)
    GROUPS: tl.constexpr,
    CLASSES: tl.constexpr,
    UNIMIX: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_group = tl.arange(0, TILE)
    o_class = tl.arange(0, BLOCK)
    m_group = o_group < GROUPS
    i_group = i_row * GROUPS + o_group
    b_logits = _load_logits(p_posterior, i_group, m_group, o_class, CLASSES)
    _, b_q, b_log_q = probs(b_logits, o_class, CLASSES, UNIMIX)
    b_logits = _load_logits(p_prior, i_group, m_group, o_class, CLASSES)
    _, _, b_log_p = probs(b_logits, o_class, CLASSES, UNIMIX)
    b_kl = tl.where(m_group, tl.sum(b_q * (b_log_q - b_log_p), axis=1), 0.0)
    tl.store(p_out + i_row, tl.sum(b_kl).to(p_out.dtype.element_ty))


@triton.jit
def categorical_kl_bwd_kernel(
    p_grad,  # (rows,)
    p_posterior,  # (rows, GROUPS, CLASSES), contiguous
    p_prior,  # (rows, GROUPS, CLASSES), contiguous
    p_grad_posterior,  # (rows, GROUPS, CLASSES), contiguous; unread and unwritten without OF_Q
    p_grad_prior,  # (rows, GROUPS, CLASSES), contiguous; likewise without OF_P
    GROUPS: tl.constexpr,
    CLASSES: tl.constexpr,
    UNIMIX: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    OF_Q: tl.constexpr,
    OF_P: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_group = tl.arange(0, TILE)
    o_class = tl.arange(0, BLOCK)
    m_group = o_group < GROUPS
    i_group = i_row * GROUPS + o_group
    m_class = o_class[None, :] < CLASSES
    b_logits = _load_logits(p_posterior, i_group, m_group, o_class, CLASSES)
    b_soft_q, b_q, b_log_q = probs(b_logits, o_class, CLASSES, UNIMIX)
    b_logits = _load_logits(p_prior, i_group, m_group, o_class, CLASSES)
    b_soft_p, b_p, b_log_p = probs(b_logits, o_class, CLASSES, UNIMIX)
    b_grad = tl.load(p_grad + i_row).to(tl.float32)
    o_tile = i_group[:, None] * CLASSES + o_class[None, :]
    m_tile = m_group[:, None] & m_class
    if OF_Q:
        b_q_logits = to_logits(b_grad * (b_log_q - b_log_p), b_soft_q, UNIMIX)
        tl.store(
            p_grad_posterior + o_tile, b_q_logits.to(p_grad_posterior.dtype.element_ty), mask=m_tile
        )
    if OF_P:
        if UNIMIX > 0.0:
            b_ratio = b_q / tl.where(m_class, b_p, 1.0)
            b_p_logits = to_logits(-b_grad * b_ratio, b_soft_p, UNIMIX)
        else:
            b_p_logits = b_grad * (b_soft_p - b_q)
        tl.store(p_grad_prior + o_tile, b_p_logits.to(p_grad_prior.dtype.element_ty), mask=m_tile)


def _tile(groups: int, classes: int) -> dict[str, int]:
    """Groups that a program holds, the padded length of a group, and the warps for them."""
    block = tiles.block(classes)
    tile = min(triton.next_power_of_2(max(1, groups)), max(1, tiles.GROUP_TILE // block))
    return {"TILE": tile, "BLOCK": block, **tiles.launch(tiles.warps(tile * block))}


class SampleFunction(torch.autograd.Function):
    """One-hot draws whose gradient is that of their probabilities."""

    @staticmethod
    def launch_forward(logits: Tensor, uniforms: Tensor, unimix: float, out: Tensor) -> Tensor:
        """Fill `out` (rows, G * C), any row stride, from logits (rows, G, C) and uniforms."""
        rows, groups, classes = logits.shape
        if logits.numel():
            tile = _tile(rows * groups, classes)
            categorical_sample_fwd_kernel[(triton.cdiv(rows * groups, tile["TILE"]),)](
                logits, uniforms, out, uniforms.stride(0), out.stride(0), rows * groups, groups,
                classes, unimix, **tile,
            )  # fmt: skip
        return out

    @staticmethod
    def launch_backward(
        grad: Tensor,
        logits: Tensor,
        unimix: float,
        more: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Gradient of `launch_forward`'s logits (rows, G, C), from that of its draws.

        Args:
            grad: (rows, G * C), of the draws.
            logits: (rows, G, C), contiguous.
            unimix: share of the uniform distribution.
            more: (rows, G, C), contiguous, is added.
            out: where it is written, contiguous; None makes room.
        """
        rows, groups, classes = logits.shape
        grad_logits = torch.empty_like(logits) if out is None else out
        if logits.numel():
            tile = _tile(rows * groups, classes)
            categorical_sample_bwd_kernel[(triton.cdiv(rows * groups, tile["TILE"]),)](
                grad, logits, more, grad_logits, grad.stride(0), rows * groups, groups, classes,
                unimix, **tile,
            )  # fmt: skip
        return grad_logits

    @staticmethod
    def forward(ctx: Any, logits: Tensor, uniforms: Tensor, unimix: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.unimix = unimix
        out = torch.empty_like(logits.flatten(1))
        return SampleFunction.launch_forward(logits, uniforms, unimix, out).view_as(logits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,) = grads
        (logits,) = ctx.saved_tensors
        grad = grad_out.reshape(len(logits), logits.shape[1] * logits.shape[2]).contiguous()
        return SampleFunction.launch_backward(grad, logits, ctx.unimix), None, None


class EntropyFunction(torch.autograd.Function):
    """Entropy of each group (groups, C)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, unimix: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.unimix = unimix
        groups, classes = logits.shape
        out = logits.new_empty(groups)
        if groups:
            tile = _tile(groups, classes)
            categorical_entropy_fwd_kernel[(triton.cdiv(groups, tile["TILE"]),)](
                logits, out, groups, classes, unimix, **tile
            )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,) = grads
        (logits,) = ctx.saved_tensors
        groups, classes = logits.shape
        grad_logits = torch.empty_like(logits)
        if groups:
            tile = _tile(groups, classes)
            categorical_entropy_bwd_kernel[(triton.cdiv(groups, tile["TILE"]),)](
                grad_out.contiguous(), logits, grad_logits, groups, classes, ctx.unimix, **tile
            )
        return grad_logits, None


class KlFunction(torch.autograd.Function):
    """Divergence of rows (rows, G, C)."""

    @staticmethod
    def forward(ctx: Any, posterior: Tensor, prior: Tensor, unimix: float) -> Tensor:
        ctx.save_for_backward(posterior, prior)
        ctx.unimix = unimix
        rows, groups, classes = posterior.shape
        out = posterior.new_empty(rows)
        if rows:
            categorical_kl_fwd_kernel[(rows,)](
                posterior, prior, out, groups, classes, unimix, **_whole_row(groups, classes)
            )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,) = grads
        posterior, prior = ctx.saved_tensors
        rows, groups, classes = posterior.shape
        of_q, of_p = ctx.needs_input_grad[:2]
        grad_posterior = torch.empty_like(posterior) if of_q else None
        grad_prior = torch.empty_like(prior) if of_p else None
        if rows:
            categorical_kl_bwd_kernel[(rows,)](
                grad_out.contiguous(), posterior, prior,
                posterior if grad_posterior is None else grad_posterior,
                prior if grad_prior is None else grad_prior,
                groups, classes, ctx.unimix, OF_Q=of_q, OF_P=of_p, **_whole_row(groups, classes),
            )  # fmt: skip
        return grad_posterior, grad_prior, None


def _whole_row(groups: int, classes: int) -> dict[str, int]:
    """As `_tile`, but with all groups of a row in one program."""
    tile, block = triton.next_power_of_2(groups), tiles.block(classes)
    return {"TILE": tile, "BLOCK": block, **tiles.launch(tiles.warps(tile * block))}


def categorical_sample(logits: Tensor, uniforms: Tensor, unimix: float) -> Tensor:
    """Draw one-hot latents whose gradient is that of their probabilities.

    `z = onehot(k) + p - sg(p)` with `k ~ p = (1 - m) softmax(l) + m / C`
    (DreamerV2, arXiv 2010.02193, algorithm 1).

    Args:
        logits: (..., C).
        uniforms: (...), the draws' randomness, in [0, 1).
        unimix: m, the share of the uniform distribution.

    Returns:
        (..., C), one-hot.
    """
    check("logits", logits, None)
    check("uniforms", uniforms, *logits.shape[:-1])
    classes = logits.shape[-1]
    out: Tensor = SampleFunction.apply(logits.view(-1, 1, classes), uniforms.view(-1, 1), unimix)
    return out.view_as(logits)


def categorical_entropy(logits: Tensor, unimix: float) -> Tensor:
    """Entropy (...) in nats of categoricals with logits (..., C)."""
    check("logits", logits, None)
    out: Tensor = EntropyFunction.apply(logits.view(-1, logits.shape[-1]), unimix)
    return out.view(logits.shape[:-1])


def categorical_kl(posterior: Tensor, prior: Tensor, unimix: float) -> Tensor:
    """Divergence of groups of categoricals: `sum_g sum_c q (ln q - ln p)`.

    The uniform share is in both distributions, as they are the ones sampled from.

    Args:
        posterior: (..., G, C), logits of q.
        prior: (..., G, C), logits of p.
        unimix: share of the uniform distribution.

    Returns:
        (...), in nats, summed over the groups.
    """
    check("posterior", posterior, None, None)
    check("prior", prior, *posterior.shape, like=posterior)
    rows = (-1, *posterior.shape[-2:])
    out: Tensor = KlFunction.apply(posterior.view(rows), prior.view(rows), unimix)
    return out.view(posterior.shape[:-2])
