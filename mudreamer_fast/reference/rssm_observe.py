"""The RSSM along a replayed sequence: what the model believes once it has seen each observation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mudreamer_fast.ops.signatures import BatchNormState, Observed, RssmWeights
from mudreamer_fast.reference.batchnorm_posterior import batchnorm_posterior
from mudreamer_fast.reference.categorical import categorical_sample
from mudreamer_fast.reference.rssm_step import rssm_prior, rssm_sequence


def rssm_initial(weights: RssmWeights, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """The learned start: `h_0 = tanh(w)` (D,) and `z_0`, the mode of the prior there (G, C).

    Example:
        >>> from mudreamer_fast import reference
        >>> from mudreamer_fast.config import ModelConfig
        >>> from mudreamer_fast.networks import Rssm
        >>> config = ModelConfig(deter=16, hidden=16, groups=4, classes=8)
        >>> rssm = Rssm(config, embed_size=32, action_size=2, ops=reference)
        >>> deter, stoch = rssm_initial(rssm.tensors(), groups=4, eps=1e-3)
        >>> deter.shape, stoch.sum(-1)
        (torch.Size([16]), tensor([1., 1., 1., 1.]))
    """
    deter = torch.tanh(weights.initial)
    prior = rssm_prior(deter, weights, groups, eps)
    mode = prior.argmax(-1, keepdim=True)
    return deter, torch.zeros_like(prior).scatter_(-1, mode, 1.0)


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
        action: (B, T, A), the action that led to each step.
        is_first: (B, T) bool, where an episode begins.
        uniforms: (B, T, G), the latents' randomness, in [0, 1).
        state: h (B, D) and z (B, G, C) before the first step.
        weights: parameters of the RSSM.
        batch_norm: what the posterior's batch norm uses, or None for layer norm.
        unimix: share of the uniform distribution in every categorical.
        eps: added to the variances.

    Example:
        >>> from mudreamer_fast import reference
        >>> from mudreamer_fast.config import ModelConfig
        >>> from mudreamer_fast.networks import Rssm
        >>> config = ModelConfig(deter=16, hidden=16, groups=4, classes=8, batch_norm="none")
        >>> rssm = Rssm(config, embed_size=32, action_size=2, ops=reference)
        >>> embed, action, first = torch.rand(3, 5, 32), torch.rand(3, 5, 2), torch.eye(3, 5) > 0
        >>> noise, start = torch.rand(3, 5, 4), rssm.empty_state(rows=3)
        >>> weights = rssm.tensors()
        >>> seen = rssm_observe(embed, action, first, noise, start, weights, None, 0.01, 1e-3)
        >>> seen.deter.shape, seen.stoch.shape
        (torch.Size([3, 5, 16]), torch.Size([3, 5, 4, 8]))
    """
    groups = uniforms.shape[-1]
    layer = weights.posterior_hidden
    # As one matrix: a 3-D input times a slice of the weight would be a slow batched product.
    embed_part = F.linear(embed.flatten(0, 1), layer.weight[:, : embed.shape[-1]])
    embed_part = embed_part.view(*embed.shape[:2], -1)
    deter_weight = layer.weight[:, embed.shape[-1] :]
    first_deter, first_stoch = rssm_initial(weights, groups, eps)
    action = action.masked_fill(is_first.unsqueeze(-1), 0.0)
    deter, stoch = state
    columns: list[tuple[Tensor, ...]] = []
    for t in range(embed.shape[1]):
        reset = is_first[:, t, None]
        previous_deter = torch.where(reset, first_deter, deter)
        previous_stoch = torch.where(reset.unsqueeze(-1), first_stoch, stoch)
        deter = rssm_sequence(previous_deter, previous_stoch, action[:, t], weights, eps)
        hidden = embed_part[:, t] + F.linear(deter, deter_weight)
        if batch_norm is None:
            hidden = F.silu(
                F.layer_norm(hidden, hidden.shape[-1:], layer.norm_weight, layer.norm_bias, eps)
            )
            mean = var = hidden.new_empty(0)
        else:
            hidden, mean, var = batchnorm_posterior(hidden, layer, batch_norm, eps)
        posterior = F.linear(hidden, weights.posterior_out.weight, weights.posterior_out.bias)
        rows = posterior.shape[0]  # len() would be a constant of an exported program
        posterior = posterior.view(rows, groups, -1)
        stoch = categorical_sample(posterior, uniforms[:, t], unimix)
        columns.append((deter, stoch, posterior, previous_deter, previous_stoch, mean, var))
    deters, stochs, posteriors, previous_deters, previous_stochs, means, variances = zip(
        *columns, strict=True
    )
    all_deter = torch.stack(deters, 1)
    return Observed(
        all_deter,
        torch.stack(stochs, 1),
        torch.stack(posteriors, 1),
        rssm_prior(all_deter, weights, groups, eps),
        torch.stack(previous_deters, 1),
        torch.stack(previous_stochs, 1),
        torch.stack(means),
        torch.stack(variances),
    )
