"""One step of the recurrent cell: a GRU with a single layer norm over its three gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mudreamer_fast.ops.signatures import NormLinear


def layernorm_gru(u: Tensor, h: Tensor, layer: NormLinear, eps: float) -> Tensor:
    """Advance the state: `h' = g c + (1 - g) h`.

    `p = LN(W [u, h])`, split in three; `r = sigmoid(p_r)`, `c = tanh(r p_c)`,
    `g = sigmoid(p_g - 1)` (DreamerV2, arXiv 2010.02193, kept in DreamerV3). The shift by one
    makes an untrained cell remember.

    Args:
        u: (..., U), the input.
        h: (..., D), the state.
        layer: W (3D, U + D), rows in the order reset, candidate, update; norm (3D,).
        eps: added to the variance.

    Returns:
        (..., D), the next state.

    Example:
        >>> layer = NormLinear(torch.zeros(6, 3), torch.ones(6), torch.zeros(6))
        >>> h = torch.tensor([1.0, -1.0])
        >>> layernorm_gru(torch.zeros(1), h, layer, 1e-3)  # an untrained cell keeps 73% of h
        tensor([ 0.7311, -0.7311])
    """
    p = F.linear(torch.cat([u, h], dim=-1), layer.weight)
    p = F.layer_norm(p, p.shape[-1:], layer.norm_weight, layer.norm_bias, eps)
    reset, candidate, update = p.chunk(3, dim=-1)
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    return torch.lerp(h, candidate, torch.sigmoid(update - 1.0))
