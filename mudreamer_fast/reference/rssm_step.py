"""One step of the RSSM, shared by what observes and what imagines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mudreamer_fast.ops.distributions import bound_action
from mudreamer_fast.ops.signatures import RssmWeights
from mudreamer_fast.reference.layernorm_gru import layernorm_gru
from mudreamer_fast.reference.linear_norm_act import linear_norm_act


def rssm_prior(deter: Tensor, weights: RssmWeights, groups: int, eps: float) -> Tensor:
    """Logits (..., G, C) of the latents before the observation is seen, from (..., D)."""
    hidden = linear_norm_act(deter, weights.prior_hidden, eps)
    logits = F.linear(hidden, weights.prior_out.weight, weights.prior_out.bias)
    return logits.reshape(*logits.shape[:-1], groups, -1)


def rssm_sequence(
    deter: Tensor, stoch: Tensor, action: Tensor, weights: RssmWeights, eps: float
) -> Tensor:
    """Advance h one step: `h' = f(h, z, a)`, on (N, D), (N, G, C), (N, A)."""
    inputs = torch.cat([stoch.flatten(-2), bound_action(action)], dim=-1)
    return layernorm_gru(linear_norm_act(inputs, weights.input, eps), deter, weights.gru, eps)
