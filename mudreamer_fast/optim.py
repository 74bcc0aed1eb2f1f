"""Adam on one group of parameters, with its global gradient norm clipped."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mudreamer_fast.machine.ranks import ALONE, Ranks


class ClippedAdam:
    """Adam with a bound on the global gradient norm.

    Args:
        parameters: what is trained.
        learning_rate: Adam's step size.
        eps: Adam's epsilon.
        clip_norm: the largest global norm a gradient keeps.
        ranks: whose losses are averaged.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        eps: float,
        clip_norm: float,
        ranks: Ranks = ALONE,
    ) -> None:
        self.parameters = list(parameters)
        self.clip_norm = clip_norm
        self._ranks = ranks
        # A step may be recorded in a CUDA graph.
        self.capturable = self.parameters[0].is_cuda
        self.adam = torch.optim.Adam(
            self.parameters, lr=learning_rate, eps=eps, fused=True, capturable=self.capturable
        )

    def step(self, loss: Tensor, retain_graph: bool = False) -> Tensor:
        """Take one step down `loss` () and give the gradient's norm before clipping ().

        Only the gradients of this optimiser's own parameters are computed.
        """
        return self.apply(self.gradients(loss, retain_graph))

    def gradients(self, loss: Tensor, retain_graph: bool = False) -> tuple[Tensor | None, ...]:
        """Gradients of `loss` () for this optimiser's parameters, None where it has no say.

        With several ranks those of the mean of their losses.
        """
        return self._ranks.average(
            torch.autograd.grad(loss, self.parameters, retain_graph=retain_graph, allow_unused=True)
        )

    def apply(self, gradients: Iterable[Tensor | None]) -> Tensor:
        """Take one step along given gradients and give their norm before clipping ().

        Fused Adam walks raw memory, so a gradient must lie as its parameter does; one that does
        not is copied. Where the norm is not finite, parameters and moments stay as they are; the
        device sees to that alone.
        """
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else _laid_out_like(gradient, parameter)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        # Fused Adam takes no step where this is 1: so `torch.amp.GradScaler` tells it of overflows.
        self.adam.found_inf = 1.0 - norm.isfinite().float()  # type: ignore[attr-defined]
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments and step counts."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over copies of moments and step counts."""
        self.adam.load_state_dict(copy.deepcopy(state))  # PyTorch would keep the tensors themselves
        for group in self.adam.param_groups:
            group["capturable"] = self.capturable  # a state from another device brings its own


def _laid_out_like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """`gradient` in the memory layout of `parameter`: itself where it has that already."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


@torch.no_grad()
def move_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Move the parameters of `average` towards `current`: `w' <- d w' + (1 - d) w`."""
    slow: list[Tensor] = list(average.parameters())
    torch._foreach_lerp_(slow, list(current.parameters()), 1.0 - decay)
