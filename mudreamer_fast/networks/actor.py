"""Networks whose output is a distribution over actions: the actor and the action predictor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mudreamer_fast.config import ModelConfig
from mudreamer_fast.networks.layers import Mlp
from mudreamer_fast.ops.distributions import Policy, policy_distribution
from mudreamer_fast.ops.operations import Operations


class ActionHead(nn.Module):
    """An MLP to a distribution over actions.

    On the model state it is the actor; on the features beside the previous model state it is
    MuDreamer's action predictor (arXiv 2405.15083, eq. 2).

    Args:
        config: the model's configuration.
        inputs: width of the input.
        action_size: A.
        continuous: normal actions, or one-hot ones.
        ops: the operations, reference or fused.
    """

    def __init__(
        self,
        config: ModelConfig,
        inputs: int,
        action_size: int,
        continuous: bool,
        ops: Operations,
    ) -> None:
        super().__init__()
        dims = config.dimensions
        outputs = 2 * action_size if continuous else action_size
        self.mlp = Mlp(inputs, dims.hidden, dims.layers, outputs, ops, config.norm_eps)
        self.continuous = continuous
        self.unimix = config.unimix
        self.noise_size = action_size if continuous else 1

    def distribution(self, out: Tensor) -> Policy:
        """The distribution for raw outputs (..., 2A or A)."""
        return policy_distribution(out, self.continuous, self.unimix)

    def draw_noise(self, generator: torch.Generator, *shape: int) -> Tensor:
        """What `Policy.sample` turns into actions: (*shape, A) normal, or (*shape, 1) uniform."""
        draw = torch.randn if self.continuous else torch.rand
        return draw(*shape, self.noise_size, generator=generator, device=generator.device)

    def forward(self, inputs: Tensor) -> Policy:
        """The distribution of actions given (..., inputs)."""
        return self.distribution(self.mlp(inputs))
