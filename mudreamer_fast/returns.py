"""The scale of returns, tracked by percentiles (DreamerV3, arXiv 2301.04104v1, eq. 12)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ReturnScale(nn.Module):
    """Moving averages of the 5th and 95th percentile of returns.

    `S = max(1, P95 - P5)`: large returns are scaled down, small ones are not scaled up, so that
    noise in sparse rewards is not amplified.

    Args:
        decay: weight of the past in each update.
    """

    low: Tensor
    high: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> Tensor:
        """Move the averages towards the percentiles of `returns` and give the new scale ()."""
        # Numbers sent from the host would be waited for, and could not be part of a CUDA graph.
        levels = torch.linspace(0.05, 0.95, 2, dtype=returns.dtype, device=returns.device)
        low, high = torch.quantile(returns.detach().flatten(), levels)
        self.low.lerp_(low, 1.0 - self.decay)
        self.high.lerp_(high, 1.0 - self.decay)
        return self.scale

    @property
    def scale(self) -> Tensor:
        """`max(1, P95 - P5)` of the averages, a scalar."""
        return (self.high - self.low).clamp(min=1.0)
