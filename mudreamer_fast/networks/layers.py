"""Parameters that the networks are built from, with their initialisation."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

from mudreamer_fast.ops.operations import Operations
from mudreamer_fast.ops.signatures import BatchNormState, Linear, MlpWeights, NormLinear

Init = Literal["normal", "xavier", "zero"]
TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal cut at two."""


@torch.no_grad()
def init_weight(weight: Tensor, init: Init) -> Tensor:
    """Fill a weight (out, in, ...) in place: truncated normal, Xavier uniform or zero.

    The normal has std `sqrt(2 / (fan_in + fan_out))`, cut at two of it.
    """
    if init == "zero":
        return nn.init.zeros_(weight)
    if init == "xavier":
        return nn.init.xavier_uniform_(weight)
    field = weight[0, 0].numel() if weight.ndim > 2 else 1
    std = (2.0 / ((weight.shape[0] + weight.shape[1]) * field)) ** 0.5 / TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2.0 * std, b=2.0 * std)


class NormLinearParameters(nn.Module):
    """A linear map without bias and the affine part of the norm behind it."""

    def __init__(self, inputs: int, outputs: int, norm_size: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(init_weight(torch.empty(outputs, inputs), "normal"))
        self.norm_weight = nn.Parameter(torch.ones(norm_size or outputs))
        self.norm_bias = nn.Parameter(torch.zeros(norm_size or outputs))

    def tensors(self) -> NormLinear:
        """The parameters as the operations take them."""
        return NormLinear(self.weight, self.norm_weight, self.norm_bias)


class LinearParameters(nn.Module):
    """A linear map with a bias, for the outputs of distributions."""

    def __init__(self, inputs: int, outputs: int, init: Init = "xavier") -> None:
        super().__init__()
        self.weight = nn.Parameter(init_weight(torch.empty(outputs, inputs), init))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def tensors(self) -> Linear:
        """The parameters as the operations take them."""
        return Linear(self.weight, self.bias)


class Mlp(nn.Module):
    """Hidden layers `SiLU(LN(W x))` and a linear output.

    Args:
        inputs: width of the input.
        hidden: width of each hidden layer.
        layers: number of hidden layers.
        outputs: width of the output.
        ops: the operations, reference or fused.
        eps: added to the variances of the norms.
        init: how the output layer begins.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        layers: int,
        outputs: int,
        ops: Operations,
        eps: float,
        init: Init = "xavier",
    ) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * layers]
        self.hidden = nn.ModuleList(
            NormLinearParameters(a, b) for a, b in itertools.pairwise(widths)
        )
        self.out = LinearParameters(widths[-1], outputs, init)
        self.ops = ops
        self.eps = eps

    def tensors(self) -> MlpWeights:
        """The parameters as the operations take them."""
        return MlpWeights(
            tuple(layer.tensors() for layer in self.hidden),  # type: ignore[operator]
            self.out.tensors(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        out: Tensor = self.ops.mlp(x, self.tensors(), self.eps)
        return out


class RunningStatistics(nn.Module):
    """Moving averages of a batch norm's mean and variance.

    Args:
        size: number of columns.
        momentum: weight of the newest statistics.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, size: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))

    def state(self, use_batch: bool) -> BatchNormState:
        """What the operations normalise with."""
        # Copies: the averages move before the backward pass reads what the forward pass used.
        return BatchNormState(self.mean.clone(), self.var.clone(), use_batch)

    @torch.no_grad()
    def update(self, mean: Tensor, var: Tensor, rows: int, pooled: bool) -> None:
        """Move towards the statistics (T, size) of a batch's steps.

        As in `torch.nn.BatchNorm1d` the variance that is averaged is the unbiased estimate,
        `n / (n - 1)` times that of the `n` rows; a single row has none, and counts as zero.

        Args:
            mean: of each step.
            var: of each step, biased.
            rows: in each step.
            pooled: move once, towards the statistics over all steps (by the law of total
                variance); otherwise once per step.
        """
        if pooled:
            rows *= len(mean)
            mean, var = mean.mean(0, True), var.mean(0, True) + mean.var(0, False, keepdim=True)
        for step_mean, step_var in zip(mean, var * (rows / max(1, rows - 1)), strict=True):
            for average, new in ((self.mean, step_mean), (self.var, step_var)):
                # An average that has once taken in a NaN would never lose it again.
                average.lerp_(torch.where(new.isfinite(), new, average), self.momentum)
