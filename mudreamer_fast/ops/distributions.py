"""Distributions of latents and actions, sampled from noise that the caller draws."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_STD = 0.1
MAX_STD = 1.0
UNIT_INIT_STD = 2.0
"""Added before the sigmoid, so that an untrained policy explores with a std near MAX_STD."""


def entropy_range(size: int, continuous: bool, unimix: float) -> tuple[float, float]:
    """The lowest and the highest entropy that a policy can have, in nats.

    Args:
        size: A, numbers or choices.
        continuous: `ScaledNormal`; otherwise `OneHotCategorical`.
        unimix: share of the uniform distribution in the latter.
    """
    if continuous:
        unit = 0.5 * math.log(2 * math.pi * math.e)
        return size * (math.log(MIN_STD) + unit), size * (math.log(MAX_STD) + unit)
    rest = unimix / size
    probs = [1.0 - unimix + rest] + (size - 1) * [rest]
    return -sum(p * math.log(p) for p in probs if p > 0), math.log(size)


class _StraightThrough(torch.autograd.Function):
    """One-hot value, gradient of the probabilities."""

    @staticmethod
    def forward(ctx: Any, probs: Tensor, index: Tensor) -> Tensor:
        return torch.zeros_like(probs).scatter_(-1, index.unsqueeze(-1), 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad_out,) = grads
        return grad_out, None


def unimix_probs(logits: Tensor, unimix: float) -> Tensor:
    """Mix the uniform distribution into a softmax: `(1 - m) softmax(l) + m / C`.

    Source: DreamerV3 (arXiv 2301.04104v1), "Discrete latents".

    Args:
        logits: (..., C).
        unimix: m, the share of the uniform distribution, in [0, 1).
    """
    probs = F.softmax(logits, dim=-1)
    return probs * (1.0 - unimix) + unimix / logits.shape[-1] if unimix else probs


def unimix_log_probs(logits: Tensor, probs: Tensor, unimix: float) -> Tensor:
    """Logarithm of `probs`, which `unimix_probs` made of `logits`; finite at any logits."""
    # With no uniform share a probability can underflow to zero, but not its log-softmax.
    return probs.log() if unimix else F.log_softmax(logits, dim=-1)


def sample_index(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw classes by inverting the cumulative distribution: the first k with `u < P(k)`.

    Args:
        probs: (..., C), non-negative, of sum 1 up to rounding.
        uniforms: (...), in [0, 1).

    Returns:
        (...) int64 in [0, C).
    """
    cumulative = probs.detach().cumsum(-1)
    # Scaled by the last sum, so that rounding can not leave a draw without a class.
    index = (cumulative <= uniforms.unsqueeze(-1) * cumulative[..., -1:]).sum(-1)
    return index.clamp_(max=probs.shape[-1] - 1)


def one_hot_straight_through(probs: Tensor, index: Tensor) -> Tensor:
    """One-hot vectors of `index` (...) whose gradient goes to `probs` (..., C) unchanged."""
    out: Tensor = _StraightThrough.apply(probs, index)  # type: ignore[no-untyped-call]
    return out


class ScaledNormal:
    """Continuous policy: a normal with mean `tanh(m)` and std `0.9 sigmoid(q + 2) + 0.1`.

    Source: DreamerV3 (arXiv 2301.04104v1), continuous control.

    Args:
        out: (..., 2A), `m` then `q`.
    """

    def __init__(self, out: Tensor) -> None:
        mean, std = out.chunk(2, dim=-1)
        self.mean = torch.tanh(mean)
        self.std = (MAX_STD - MIN_STD) * torch.sigmoid(std + UNIT_INIT_STD) + MIN_STD

    def sample(self, noise: Tensor) -> Tensor:
        """Draw `mean + std * noise` (..., A), with a gradient to both; noise is standard normal."""
        return self.mean + self.std * noise

    @property
    def mode(self) -> Tensor:
        """The most likely action (..., A)."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density (...) of actions (..., A)."""
        scaled = (action - self.mean) / self.std
        each = -0.5 * scaled.square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        return each.sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy (...) in nats."""
        return (self.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class OneHotCategorical:
    """Discrete policy: one-hot actions from a softmax with the uniform distribution mixed in.

    Args:
        out: (..., A) logits.
        unimix: share of the uniform distribution.
    """

    def __init__(self, out: Tensor, unimix: float) -> None:
        self.probs = unimix_probs(out, unimix)
        self._out, self._unimix = out, unimix

    def sample(self, noise: Tensor) -> Tensor:
        """Draw one-hot actions (..., A), straight-through, from uniform noise (..., 1)."""
        return one_hot_straight_through(self.probs, sample_index(self.probs, noise[..., 0]))

    @property
    def mode(self) -> Tensor:
        """The most likely action (..., A), one-hot."""
        index = self.probs.argmax(-1, keepdim=True)
        return torch.zeros_like(self.probs).scatter_(-1, index, 1.0)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log probability (...) of one-hot actions (..., A)."""
        return (self._log_probs() * action).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy (...) in nats."""
        return -(self.probs * self._log_probs()).sum(-1)

    def _log_probs(self) -> Tensor:
        return unimix_log_probs(self._out, self.probs, self._unimix)


Policy = ScaledNormal | OneHotCategorical


def policy_distribution(out: Tensor, continuous: bool, unimix: float) -> Policy:
    """The actor's distribution for its raw output: `ScaledNormal` or `OneHotCategorical`."""
    return ScaledNormal(out) if continuous else OneHotCategorical(out, unimix)


def bound_action(action: Tensor) -> Tensor:
    """Clip to [-1, 1] as `a / max(1, |a|)`, elementwise, with no gradient through the scale."""
    return action / action.detach().abs().clamp(min=1.0)
