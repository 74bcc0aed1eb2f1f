"""Categorical latents: sampling with a straight-through gradient, entropy and divergence."""

from __future__ import annotations

from torch import Tensor

from mudreamer_fast.ops.distributions import (
    one_hot_straight_through,
    sample_index,
    unimix_log_probs,
    unimix_probs,
)


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

    Example:
        >>> logits = torch.tensor([0.6, 0.3, 0.1]).log()
        >>> categorical_sample(logits, torch.tensor(0.7), unimix=0.0)
        tensor([0., 1., 0.])
    """
    probs = unimix_probs(logits, unimix)
    return one_hot_straight_through(probs, sample_index(probs, uniforms))


def categorical_entropy(logits: Tensor, unimix: float) -> Tensor:
    """Entropy of categoricals: `-sum_c p ln p`, the uniform share included.

    Args:
        logits: (..., C).
        unimix: share of the uniform distribution.

    Returns:
        (...), in nats.

    Example:
        >>> categorical_entropy(torch.zeros(8), unimix=0.01)
        tensor(2.0794)
    """
    probs = unimix_probs(logits, unimix)
    return -(probs * unimix_log_probs(logits, probs, unimix)).sum(-1)


def categorical_kl(posterior: Tensor, prior: Tensor, unimix: float) -> Tensor:
    """Divergence of groups of categoricals: `sum_g sum_c q (ln q - ln p)`.

    The uniform share is in both distributions, as they are the ones sampled from.

    Args:
        posterior: (..., G, C), logits of q.
        prior: (..., G, C), logits of p.
        unimix: share of the uniform distribution.

    Returns:
        (...), in nats, summed over the groups.

    Example:
        >>> sure = torch.tensor([[20.0, 0.0]])
        >>> categorical_kl(sure, torch.zeros(1, 2), unimix=0.0)
        tensor(0.6931)
    """
    q = unimix_probs(posterior, unimix)
    p = unimix_probs(prior, unimix)
    log_q = unimix_log_probs(posterior, q, unimix)
    log_p = unimix_log_probs(prior, p, unimix)
    return (q * (log_q - log_p)).sum((-2, -1))
