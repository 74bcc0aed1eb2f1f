"""The formulas that every part shares: norms, distributions, returns."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def symlog(x: Tensor) -> Tensor:
    return x.sign() * (x.abs() + 1).log()


def symexp(x: Tensor) -> Tensor:
    return x.sign() * (x.abs().exp() - 1)


def normalise(
    x: Tensor, mean: Tensor, var: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> Tensor:
    return scale * (x - mean) / (var + eps).sqrt() + shift


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return normalise(x, mean, var, scale, shift, eps)


def moments_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the columns, which batch norm divides by."""
    mean = rows.mean(0)
    return mean, ((rows - mean) ** 2).mean(0)


def moved_statistics(
    old: tuple[Tensor, Tensor], rows: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    """Running mean and variance after `rows`, whose variance is estimated without bias."""
    mean, var = moments_of(rows.detach())
    var = var * len(rows) / (len(rows) - 1)
    return (
        (1 - momentum) * old[0].detach() + momentum * mean,
        (1 - momentum) * old[1].detach() + momentum * var,
    )


def log_softmax(logits: Tensor) -> Tensor:
    return logits - logits.logsumexp(-1, keepdim=True)


def mixed(logits: Tensor, unimix: float) -> Tensor:
    """Probabilities with a share of the uniform distribution."""
    return (1 - unimix) * log_softmax(logits).exp() + unimix / logits.shape[-1]


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(-1)


def divergence(q: Tensor, p: Tensor) -> Tensor:
    """KL(q || p) of (..., G, C), summed over the groups."""
    return (q * (q / p).log()).sum((-2, -1))


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """One-hot of the first class whose cumulative probability exceeds the uniform number.

    The gradient is the probabilities'.
    """
    one_hot = torch.zeros_like(probs)
    total = torch.zeros_like(uniforms)
    undecided = torch.ones_like(uniforms, dtype=torch.bool)
    for k in range(probs.shape[-1]):
        total = total + probs[..., k].detach()
        taken = undecided & ((uniforms < total) | (k == probs.shape[-1] - 1))
        one_hot[..., k] = taken.to(probs.dtype)
        undecided = undecided & ~taken
    return one_hot + (probs - probs.detach())


def margin(probs: Tensor, uniforms: Tensor) -> float:
    """How near a uniform number comes to a border between classes."""
    return (probs.detach().cumsum(-1) - uniforms.unsqueeze(-1)).abs().min().item()


def bins(count: int) -> Tensor:
    return torch.tensor([-20 + 40 * k / (count - 1) for k in range(count)], dtype=torch.float64)


def two_hot(target: Tensor, count: int) -> Tensor:
    """(..., K): the mass of symlog(target), split between the bins on its two sides."""
    position = symlog(target).clamp(-20, 20)
    width = 40 / (count - 1)
    return (1 - (position.unsqueeze(-1) - bins(count)).abs() / width).clamp(min=0)


def two_hot_loss(logits: Tensor, target: Tensor) -> Tensor:
    return -(two_hot(target.detach(), logits.shape[-1]) * log_softmax(logits)).sum(-1)


def two_hot_mean(logits: Tensor) -> Tensor:
    return symexp((log_softmax(logits).exp() * bins(logits.shape[-1])).sum(-1))


def normal_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    density = (-(((x - mean) / std) ** 2) / 2).exp() / (std * math.sqrt(2 * math.pi))
    return density.log().sum(-1)


def normal_entropy(std: Tensor) -> Tensor:
    return (0.5 + 0.5 * math.log(2 * math.pi) + std.log()).sum(-1)


def lambda_return(
    reward: Tensor, cont: Tensor, value: Tensor, is_first: Tensor, discount: float, lam: float
) -> Tensor:
    """`R_t = r_{t+1} + d c_{t+1} ((1-l) v_{t+1} + l R_{t+1})`, the last being its value.

    Before a first step, `R_t = v_t`. All are (N, T).
    """
    last = reward.shape[1] - 1
    returns = {last: value[:, last]}
    for t in reversed(range(last)):
        ahead = (1 - lam) * value[:, t + 1] + lam * returns[t + 1]
        one = reward[:, t + 1] + discount * cont[:, t + 1] * ahead
        returns[t] = torch.where(is_first[:, t + 1], value[:, t], one)
    return torch.stack([returns[t] for t in range(last + 1)], 1)


def percentile(x: Tensor, share: float) -> Tensor:
    """Linear between the two sorted values on either side."""
    ordered = x.detach().flatten().sort().values
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask].sum() / max(int(mask.sum()), 1)
