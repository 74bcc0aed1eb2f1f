"""The posterior's hidden norm and activation: what keeps the features from collapsing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mudreamer_fast.ops.signatures import BatchNormState, NormLinear


def batchnorm_posterior(
    x: Tensor, layer: NormLinear, state: BatchNormState, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply `SiLU(BN(x))` over the rows of one time step.

    `BN(x) = w (x - mean) / sqrt(var + eps) + b`, by column (MuDreamer, arXiv 2405.15083,
    section 3.2).

    Args:
        x: (B, U), one row per sequence.
        layer: the norm's scale and shift (U,).
        state: running statistics, and whether the rows' own are used instead.
        eps: added to the variance.

    Returns:
        The activations (B, U), and the mean and the biased variance (U,) of the rows, without
        gradient.

    Example:
        >>> layer = NormLinear(torch.eye(1), torch.ones(1), torch.zeros(1))
        >>> state = BatchNormState(torch.zeros(1), torch.ones(1), use_batch=True)
        >>> x = torch.tensor([[1.0], [5.0]])
        >>> _, mean, var = batchnorm_posterior(x, layer, state, 1e-3)
        >>> mean, var
        (tensor([3.]), tensor([4.]))
    """
    var, mean = torch.var_mean(x.detach(), dim=0, correction=0)
    weight, bias = layer.norm_weight, layer.norm_bias
    if not state.use_batch:
        out = F.batch_norm(x, state.running_mean, state.running_var, weight, bias, False, 0.0, eps)
    elif x.shape[0] == 1:  # a single row is its own mean, which F.batch_norm refuses
        out = (x - x.mean(0)) * weight + bias
    else:
        out = F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    return F.silu(out), mean, var
