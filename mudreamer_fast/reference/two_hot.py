"""Scalars as distributions over fixed bins: two-hot cross entropy and mean, in symlog space."""

from __future__ import annotations

import torch
from torch import Tensor

from mudreamer_fast.ops.symlog import symexp, symlog

LIMIT = 20.0
"""The bins span [-LIMIT, LIMIT] in symlog space."""


def two_hot_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of a two-hot target: `-sum_k twohot(symlog y)_k ln softmax(l)_k`.

    The target's mass is split between the two bins beside it, by distance
    (DreamerV3, arXiv 2301.04104v1, eq. 9 and 10). No two-hot vector is built: two of the log
    probabilities are picked.

    Args:
        logits: (..., K), K bins evenly spaced over [-20, 20].
        target: (...), in plain units; no gradient flows to it.

    Returns:
        (...), in nats.

    Example:
        >>> logits = torch.zeros(3)  # bins at -20, 0 and 20, all alike
        >>> two_hot_loss(logits, torch.tensor(0.0))
        tensor(1.0986)
    """
    last = logits.shape[-1] - 1
    position = (symlog(target.detach()).clamp(-LIMIT, LIMIT) + LIMIT) * (last / (2 * LIMIT))
    below = position.floor().clamp(max=last - 1)
    weight = (position - below).unsqueeze(-1)
    # NaN would be no index; the mass carries it on.
    index = below.long().clamp(min=0).unsqueeze(-1)
    pair = logits.gather(-1, torch.cat([index, index + 1], dim=-1))
    mass = torch.cat([1.0 - weight, weight], dim=-1)
    return logits.logsumexp(-1) - (mass * pair).sum(-1)


def two_hot_mean(logits: Tensor) -> Tensor:
    """Read a scalar back: `symexp(sum_k softmax(l)_k b_k)`.

    Source: DreamerV3 (arXiv 2301.04104v1), eq. 8.

    Args:
        logits: (..., K).

    Returns:
        (...), in plain units, with a gradient to the logits.

    Example:
        >>> logits = torch.full((41,), -1e9)
        >>> logits[22] = 0.0  # the bin at 2, in symlog space
        >>> two_hot_mean(logits)
        tensor(6.3891)
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    bins = torch.linspace(-LIMIT, LIMIT, logits.shape[-1], dtype=exact, device=logits.device)
    return symexp(logits.softmax(-1) @ bins.to(logits.dtype))
