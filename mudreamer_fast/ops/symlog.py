"""The symmetric logarithm and its inverse (DreamerV3, arXiv 2301.04104v1, eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """Compress large values of either sign: `sign(x) ln(|x| + 1)`, elementwise."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """Invert `symlog`: `sign(x) (exp(|x|) - 1)`, elementwise."""
    return torch.sign(x) * torch.expm1(torch.abs(x))
