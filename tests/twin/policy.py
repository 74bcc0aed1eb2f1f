"""Distributions over actions, of the actor and of the action predictor."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.twin.maths import draw, entropy, margin, mixed, normal_entropy, normal_log_prob


class Policy:
    """A normal with mean `tanh(m)` and std `0.9 sigmoid(q + 2) + 0.1`, or a one-hot categorical."""

    def __init__(self, out: Tensor, continuous: bool, unimix: float) -> None:
        self.continuous = continuous
        if continuous:
            half = out.shape[-1] // 2
            self.mean = torch.tanh(out[..., :half])
            self.std = 0.9 * torch.sigmoid(out[..., half:] + 2) + 0.1
        else:
            self.probs = mixed(out, unimix)

    def sample(self, noise: Tensor) -> Tensor:
        if self.continuous:
            return self.mean + self.std * noise
        return draw(self.probs, noise[..., 0])

    def log_prob(self, action: Tensor) -> Tensor:
        if self.continuous:
            return normal_log_prob(action, self.mean, self.std)
        return (action * self.probs.log()).sum(-1)

    def entropy(self) -> Tensor:
        return normal_entropy(self.std) if self.continuous else entropy(self.probs)

    def margin(self, noise: Tensor) -> float:
        """How near the draw came to another action; a normal has no borders."""
        return 1.0 if self.continuous else margin(self.probs, noise[..., 0])
