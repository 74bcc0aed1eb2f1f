"""Adam (arXiv 1412.6980, algorithm 1), behind a bound on the gradient's global norm."""

from __future__ import annotations

import torch
from torch import Tensor

BETA1, BETA2 = 0.9, 0.999
CLIP_EPS = 1e-6
"""What `torch.nn.utils.clip_grad_norm_` adds to the norm that it divides by."""


class Adam:
    """The optimiser of one part: the weights called `names`, in the order of its state."""

    def __init__(self, names: list[str], rate: float, eps: float, clip: float) -> None:
        self.names, self.rate, self.eps, self.clip = names, rate, eps, clip
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}
        self.clipped = False

    def gradients(self, loss: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the weights that `loss` depends on."""
        found = torch.autograd.grad(
            loss, [weights[name] for name in self.names], retain_graph=True, allow_unused=True
        )
        return {name: g for name, g in zip(self.names, found, strict=True) if g is not None}

    def step(self, weights: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
        """Replace the weights by those after a step, and give the norm before clipping."""
        norm = torch.stack([(g**2).sum() for g in gradients.values()]).sum().sqrt()
        share = min(1.0, self.clip / (norm.item() + CLIP_EPS))
        self.clipped = share < 1
        for name, gradient in gradients.items():
            g = share * gradient
            t = self.steps.get(name, 0) + 1
            m = BETA1 * self.first.get(name, torch.zeros_like(g)) + (1 - BETA1) * g
            v = BETA2 * self.second.get(name, torch.zeros_like(g)) + (1 - BETA2) * g**2
            unbiased_m, unbiased_v = m / (1 - BETA1**t), v / (1 - BETA2**t)
            change = self.rate * unbiased_m / (unbiased_v.sqrt() + self.eps)
            weights[name] = weights[name].detach() - change
            self.steps[name], self.first[name], self.second[name] = t, m, v
        return norm

    def state(self) -> dict[str, Tensor]:
        """By the names that `torch.optim.Adam` keeps its state under."""
        found = {}
        for i, name in enumerate(self.names):
            if name in self.steps:
                found[f"{i}/step"] = torch.tensor(float(self.steps[name]))
                found[f"{i}/exp_avg"] = self.first[name]
                found[f"{i}/exp_avg_sq"] = self.second[name]
        return found
