"""What the world model predicts: reward, value, continuation and the previous action."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mudreamer_fast.config import ModelConfig
from mudreamer_fast.networks.layers import Mlp
from mudreamer_fast.ops.operations import Operations


class ScalarHead(nn.Module):
    """A scalar as a two-hot distribution over symlog bins; begins at zero everywhere.

    Serves as the reward head, the value head and the critic.

    Args:
        config: the model's configuration.
        inputs: F, width of the model state.
        ops: the operations, reference or fused.
    """

    def __init__(self, config: ModelConfig, inputs: int, ops: Operations) -> None:
        super().__init__()
        dims = config.dimensions
        self.arguments = (config, inputs, ops)
        self.ops = ops
        self.mlp = Mlp(
            inputs, dims.hidden, dims.layers, config.bins, ops, config.norm_eps, init="zero"
        )

    def frozen_copy(self) -> ScalarHead:
        """A head with the same weights that is not trained, to become a moving average."""
        copy = ScalarHead(*self.arguments).requires_grad_(False)
        copy.load_state_dict(self.state_dict())
        return copy

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (..., K) of the bins, from model states (..., F)."""
        out: Tensor = self.mlp(feature)
        return out

    def mean(self, logits: Tensor) -> Tensor:
        """The scalar (...) that logits (..., K) stand for."""
        out: Tensor = self.ops.two_hot_mean(logits)
        return out

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross entropy (...) to scalar targets (...)."""
        # Steps are often cut off the end, and the kernels read whole rows.
        out: Tensor = self.ops.two_hot_loss(logits.contiguous(), target.contiguous())
        return out


class ContinueHead(nn.Module):
    """The probability that the episode goes on.

    Args:
        config: the model's configuration.
        inputs: F, width of the model state.
        ops: the operations, reference or fused.
    """

    def __init__(self, config: ModelConfig, inputs: int, ops: Operations) -> None:
        super().__init__()
        dims = config.dimensions
        self.mlp = Mlp(inputs, dims.hidden, dims.layers, 1, ops, config.norm_eps)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (...) from model states (..., F)."""
        out: Tensor = self.mlp(feature)
        return out[..., 0]

    def probability(self, feature: Tensor) -> Tensor:
        """Probability (...) of going on, in [0, 1]."""
        return torch.sigmoid(self(feature))

    def loss(self, logits: Tensor, is_terminal: Tensor) -> Tensor:
        """Binary cross entropy (...) to `1 - is_terminal` (...)."""
        target = 1.0 - is_terminal.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none")
