"""Hidden layer of every network: linear, layer norm, SiLU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mudreamer_fast.ops.signatures import MlpWeights, NormLinear


def linear_norm_act(x: Tensor, layer: NormLinear, eps: float) -> Tensor:
    """Apply `SiLU(LN(W x))` (DreamerV3, arXiv 2301.04104v1, appendix B).

    Args:
        x: (..., in).
        layer: W (out, in) and the norm's scale and shift (out,).
        eps: added to the variance.

    Returns:
        (..., out).

    Example:
        >>> layer = NormLinear(torch.eye(2), torch.ones(2), torch.zeros(2))
        >>> linear_norm_act(torch.tensor([3.0, 1.0]), layer, 0.0)
        tensor([ 0.7311, -0.2689])
    """
    y = F.linear(x, layer.weight)
    return F.silu(F.layer_norm(y, y.shape[-1:], layer.norm_weight, layer.norm_bias, eps))


def mlp(x: Tensor, weights: MlpWeights, eps: float) -> Tensor:
    """Hidden layers `SiLU(LN(W x))`, then a linear output, on (..., in).

    Example:
        >>> from mudreamer_fast.ops.signatures import Linear
        >>> hidden = NormLinear(torch.eye(2), torch.ones(2), torch.zeros(2))
        >>> weights = MlpWeights((hidden,), Linear(torch.ones(1, 2), torch.zeros(1)))
        >>> mlp(torch.tensor([3.0, 1.0]), weights, 0.0)
        tensor([0.4621])
    """
    for layer in weights.hidden:
        x = linear_norm_act(x, layer, eps)
    return F.linear(x, weights.out.weight, weights.out.bias)
